"""A change is one atomic step: killed anywhere, under load, or for the hundredth time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sockets_support import Bed, ask, document, listener, make_local, refuses

from unmoor.errors import UnmoorError
from unmoor.sockets import generation, libbpf
from unmoor.sockets import verify as verification
from unmoor.sockets.pins import Pins
from unmoor.sockets.status import read_status

OLD = [{"label": "web", "ports": [80, 81]}]
NEW = [{"label": "web", "ports": [80, 82]}, {"label": "more", "ports": [83]}]


@pytest.fixture
def bed(netns: None, pins: Pins, code: bytes) -> Iterator[Bed]:
    make_local()
    bed = Bed(pins, code)
    bed.load(*OLD)
    with listener(says="web") as web:
        bed.register("web", web)
        yield bed


STEPS: list[tuple[Any, str]] = [
    *((libbpf, name) for name in ("pin", "freeze", "switch", "attach", "update", "create_map")),
    *((Path, name) for name in ("mkdir", "rename", "unlink", "rmdir", "chmod")),
]


def run_killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act` in a process that is killed after so many steps; whether it got to the end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        done = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal done
                result = function(*arguments, **options)
                done += 1
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for where, name in STEPS:
            setattr(where, name, counted(getattr(where, name)))
        act()
        os._exit(0)
    finally:
        os._exit(1)


def live(bed: Bed) -> str:
    """Which of both tables packets see: all of one, or the test fails."""
    assert ask("198.18.1.1", 80).startswith("web")
    found = not refuses("198.18.1.1", 81), not refuses("198.18.1.1", 82), bed_misses(bed)
    names = {(True, False, False): "old", (False, True, True): "new"}
    assert found in names, found
    return names[found]


def bed_misses(bed: Bed) -> bool:
    """Whether port 83 is bound (it has no socket)."""
    before = [
        each.counters["misses"] for each in read_status(bed.pins).destinations if each.service == "more"
    ]
    assert refuses("198.18.1.1", 83)
    after = [each.counters["misses"] for each in read_status(bed.pins).destinations if each.service == "more"]
    return sum(after) > sum(before)


def test_killed_at_any_step_of_a_load_the_old_or_the_new_table_is_whole(bed: Bed) -> None:
    new = document(*NEW)
    seen = []
    for step in range(1, 500):
        finished = run_killed_at(step, lambda: generation.load(new, bed.code, bed.pins))
        seen.append(live(bed))
        assert len(bed.count("web").sockets) == 1
        if finished:
            break
        # Whatever was left behind, the next load works and ends where it should.
        bed.load(*OLD)
        assert live(bed) == "old"
        assert {path.name for path in bed.pins.root.iterdir()} & {"new", "displaced"} == set()
    assert finished
    assert len(seen) > 20
    assert seen == sorted(seen, reverse=True), "once the new table is live it stays"
    assert seen[0] == "old"


def test_killed_at_any_step_of_a_rollback_one_table_is_whole(bed: Bed) -> None:
    bed.load(*NEW)
    for step in range(1, 100):
        finished = run_killed_at(step, lambda: generation.rollback(bed.pins))
        found = live(bed)
        with bed.pins.locked():
            bed.pins.settle()
        assert live(bed) == found
        assert bed.pins.current.exists()
        assert bed.pins.previous.exists()
        if finished:
            break
        if found == "old":
            generation.rollback(bed.pins)
    assert finished
    assert found == "old"
    assert step > 2


def test_killed_at_any_step_of_the_first_load(netns: None, pins: Pins, code: bytes) -> None:
    bed = Bed(pins, code)
    for step in range(1, 500):
        finished = run_killed_at(step, lambda: generation.load(document(*OLD), bed.code, bed.pins))
        if finished:
            break
        bed.load(*OLD)
        assert read_status(bed.pins).bindings
        generation.unload(bed.pins)
        assert not bed.pins.root.exists()
    assert finished
    assert step > 20


def test_a_table_that_is_wrong_is_not_switched_in(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    build = generation.table.build

    def wrong(bindings: Any, *arguments: Any) -> Any:
        return build([each for each in bindings if each.first_port != 82], *arguments)

    monkeypatch.setattr(generation.table, "build", wrong)
    with pytest.raises(UnmoorError, match="the new table is wrong, nothing was switched"):
        bed.load(*NEW)
    assert live(bed) == "old"
    monkeypatch.undo()
    bed.load(*NEW)
    assert live(bed) == "new"


def test_everything_is_proved_before_the_switch(bed: Bed) -> None:
    record = generation.read_current(bed.pins)
    assert record
    # Two ports and two prefixes, each with its ends, its middle and its neighbours.
    assert verification.verify(bed.pins.current, record) == 2 * 2 * 5


def test_two_loads_at_a_time_wait_for_one_another(bed: Bed) -> None:
    errors = []

    def load(services: list[dict[str, Any]]) -> None:
        child = os.fork()
        if not child:
            try:
                for _ in range(5):
                    bed.load(*services)
                os._exit(0)
            finally:
                os._exit(1)
        errors.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    threads = [threading.Thread(target=load, args=(services,)) for services in (OLD, NEW)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [0, 0]
    assert live(bed) in ("old", "new")


def test_no_connection_is_lost_while_tables_and_programs_change(bed: Bed, code: bytes) -> None:
    upgraded = code + b"\0"  # another object file, the same program
    stopping = threading.Event()
    failures: list[str] = []
    connections = [0] * 10

    def hammer(number: int) -> None:
        while not stopping.is_set():
            try:
                address = f"198.18.{number}.{connections[number] % 256}"
                if ask(address, 80) != f"web {address} 80":
                    failures.append("misdirected")
            except OSError as error:
                failures.append(repr(error))
            connections[number] += 1

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for number in range(200):
        assert bed.load(*(NEW if number % 2 == 0 else OLD)).changed
    for number in range(50):
        bed.code = upgraded if number % 2 == 0 else code
        assert bed.load(*OLD).new_program
    stopping.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(connections) > 10


def test_readers_always_find_a_generation(bed: Bed) -> None:
    child = os.fork()
    if not child:
        try:
            for number in range(40):
                bed.load(*(NEW if number % 2 == 0 else OLD))
            os._exit(0)
        finally:
            os._exit(1)
    end = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert read_status(bed.pins).bindings
        assert time.monotonic() < end
