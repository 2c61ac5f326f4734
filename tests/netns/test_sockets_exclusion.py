"""A registration and a switch exclude each other: no socket ends up with another service's id."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support.sockets import Bed, ask, listener, refuses
from unmoor.bpf import libbpf
from unmoor.bpf import pins as pinned
from unmoor.bpf.pins import Pins
from unmoor.errors import UnmoorError
from unmoor.sockets.activation import registrar
from unmoor.sockets.activation.registrar import RefusedError
from unmoor.sockets.dispatch import generation

A = {"label": "a", "ports": [80]}
B = {"label": "b", "ports": [81]}
C = {"label": "c", "ports": [82]}


class Paused:
    """Runs `act` in another process, which pauses before it calls `where.name` until it may continue."""

    def __init__(self, act: Callable[[], object], where: Any, name: str) -> None:
        self._stopped, stopped = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(stopped)
            os.close(go)
            return
        try:
            original = getattr(where, name)

            def paused(*arguments: Any, **options: Any) -> Any:
                setattr(where, name, original)
                os.write(stopped, b"!")
                os.read(go, 1)
                return original(*arguments, **options)

            setattr(where, name, paused)
            act()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(1)

    def wait_until_it_stops(self) -> bool:
        """Whether it stops there; False where it ends before."""
        return os.read(self._stopped, 1) == b"!"

    def go_on(self) -> None:
        with suppress(BrokenPipeError):  # it did not stop there, and has ended
            os.write(self._go, b"!")

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def paused(act: Callable[[], object], where: Any, name: str) -> Iterator[Paused]:
    child = Paused(act, where, name)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child.pid, signal.SIGKILL)
            child.wait()


def test_a_registration_in_flight_across_three_loads(bed: Bed) -> None:
    """The id of b is another service's three loads later."""
    bed.load(A, B)

    def three_loads() -> None:
        bed.load(A)
        bed.load({**A, "ports": [80, 83]})
        bed.load(A, C)

    with (
        listener(says="b") as server,
        paused(lambda: bed.register("b", server), registrar, "_fill_slots") as r,
    ):
        assert r.wait_until_it_stops()
        # Either the loads come to an end, or they wait for the registration.
        with paused(three_loads, pinned.time, "sleep") as loads:
            loads.wait_until_it_stops()
            r.go_on()
            assert r.wait() == 0
            loads.go_on()
            assert loads.wait() == 0
        record = generation.read_current(bed.pins)
        assert record
        assert record.services == {"a": 0, "c": 1}
        assert refuses("198.18.1.1", 82), f"c's packet reached {ask('198.18.1.1', 82)}"


def test_a_registration_waits_for_a_switch_and_gives_up(bed: Bed) -> None:
    bed.load(A, B)
    with listener(says="a") as server, paused(lambda: bed.load(A), libbpf, "switch") as load:
        assert load.wait_until_it_stops()
        with pytest.raises(RefusedError, match="the dispatch table is being changed: try again"):
            bed.register("a", server)
        load.go_on()
        assert load.wait() == 0
        bed.register("a", server)
        assert ask("198.18.1.1", 80).startswith("a")


def test_a_registration_that_waited_goes_by_the_new_table(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.load(A, B)
    sleep = time.sleep
    with listener(says="b") as server, paused(lambda: bed.load(A), libbpf, "switch") as load:
        assert load.wait_until_it_stops()

        def release(seconds: float) -> None:
            load.go_on()
            sleep(seconds)

        # It has read the old table, and waits.
        monkeypatch.setattr(pinned.time, "sleep", release)
        with pytest.raises(RefusedError, match="unknown service 'b'"):
            bed.register("b", server)


def test_a_killed_process_holds_no_lock(bed: Bed) -> None:
    bed.load(A, B)
    with listener(says="a") as server:
        with paused(lambda: bed.load(A), libbpf, "switch") as load:
            assert load.wait_until_it_stops()
            os.kill(load.pid, signal.SIGKILL)
            assert load.wait() == -signal.SIGKILL
            bed.register("a", server)
        with paused(lambda: bed.register("b", server), registrar, "_fill_slots") as other:
            assert other.wait_until_it_stops()
            os.kill(other.pid, signal.SIGKILL)
            assert other.wait() == -signal.SIGKILL
            assert bed.load(A).changed
        assert ask("198.18.1.1", 80).startswith("a")


def test_a_load_gives_up_in_the_end_and_changes_nothing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.load(A, B)
    guarded = Pins.guarded
    monkeypatch.setattr(Pins, "guarded", lambda self, *_: guarded(self, 0.2))
    with listener() as server, paused(lambda: bed.register("b", server), registrar, "_fill_slots") as r:
        assert r.wait_until_it_stops()
        for change in (lambda: bed.load(A), lambda: generation.rollback(bed.pins)):
            with pytest.raises(
                UnmoorError, match=r"guard: another process has held this lock .*\n +fix: try"
            ):
                change()
        assert len(generation.read_current(bed.pins).bindings) == 4
        assert not bed.pins.new.exists()
        r.go_on()
        assert r.wait() == 0
    assert bed.load(A).changed


def test_nothing_is_misdirected_while_both_go_on(bed: Bed, tmp_path: Path) -> None:
    """Services come and go, and take one another's ids; each registers all the time."""
    labels = ["a", "b", "c", "d"]
    ports = {label: 80 + number for number, label in enumerate(labels)}

    def services(without: int) -> list[dict[str, Any]]:
        chosen = [label for number, label in enumerate(labels) if number != without % 4]
        return [{"label": label, "ports": [ports[label]]} for label in chosen]

    bed.load(*services(0))
    wrong: list[str] = []
    with ExitStack() as stack:
        servers: dict[str, socket.socket] = {
            label: stack.enter_context(listener(says=label)) for label in labels
        }
        child = os.fork()
        if not child:
            try:
                for number in range(16):
                    bed.load(*services(number))
                os._exit(0)
            finally:
                os._exit(1)
        registered = 0
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            for label, server in servers.items():
                try:
                    bed.register(label, server)
                    registered += 1
                except RefusedError as error:
                    if "unknown service" not in str(error) and "try again" not in str(error):
                        raise
                for each, port in ports.items():
                    try:
                        found = ask("198.18.1.1", port)
                    except ConnectionRefusedError:
                        continue
                    if not found.startswith(each):
                        wrong.append(f"{each}: {found}")
    assert wrong == []
    assert registered
