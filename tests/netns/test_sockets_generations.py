"""A change is one atomic step: killed anywhere, under load, or for the hundredth time."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from support.sockets import Bed, ask, document, listener, refuses
from unmoor.bpf import libbpf
from unmoor.bpf.compiler import compile_program
from unmoor.bpf.layout import LEAF
from unmoor.bpf.pins import Pins
from unmoor.errors import UnmoorError
from unmoor.model import EdgeDocument
from unmoor.sockets.dispatch import generation
from unmoor.sockets.dispatch import verify as verification
from unmoor.sockets.observe.status import read_status
from unmoor.sockets.table import table
from unmoor.sockets.table.packed import Packed

OLD = [{"label": "web", "ports": [80, 81]}]
NEW = [{"label": "web", "ports": [80, 82]}, {"label": "more", "ports": [83]}]


@pytest.fixture
def bed(bed: Bed) -> Iterator[Bed]:
    bed.load(*OLD)
    with listener(says="web") as web:
        bed.register("web", web)
        yield bed


STEPS: list[tuple[Any, str]] = [
    *((libbpf, name) for name in ("pin", "freeze", "switch", "attach", "update", "create_map", "run_test")),
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
    # From here on every load begins with the same pins, so takes the same steps.
    bed.load(*NEW)
    bed.load(*OLD)
    for step in range(1, 500):
        finished = run_killed_at(step, lambda: generation.load(new, bed.code, bed.pins))
        seen.append(live(bed))
        assert len(bed.count("web").sockets) == 1
        if finished:
            break
        # Whatever state was left behind, the next load succeeds.
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

    def wrong(rules: Any, *arguments: Any) -> Any:
        return build([each for each in rules if each.first != 82], *arguments)

    monkeypatch.setattr(generation.table, "build", wrong)
    with pytest.raises(UnmoorError, match="the new table is wrong, nothing was switched"):
        bed.load(*NEW)
    assert live(bed) == "old"
    monkeypatch.undo()
    bed.load(*NEW)
    assert live(bed) == "new"


MANY = 40_000
MIDDLE = "198.18.156.64"  # the address of the binding in the middle of so many


def many(count: int = MANY) -> EdgeDocument:
    """So many single addresses, and no two side by side."""
    prefixes = [
        f"198.{18 + (number >> 15)}.{number >> 7 & 255}.{number << 1 & 255}/32" for number in range(count)
    ]
    assert prefixes[count // 2].split("/")[0] == MIDDLE or count != MANY
    return document({"label": "web", "ports": [80]}, prefixes=prefixes)


Harm = Callable[["array[int]", int], None]


def _other_service(leaves: array[int], leaf: int) -> None:
    leaves[leaf + 4] += 1 << 32


def _shorter(leaves: array[int], leaf: int) -> None:
    leaves[leaf + 2] &= ~(1 << 32)  # so that the neighbour behind it is in it, too


def _no_match(leaves: array[int], leaf: int) -> None:
    leaves[leaf] ^= 1 << 33


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_other_service, rf"tcp {MIDDLE} port 80 must reach 'web', not 2 "),
        (_shorter, r"tcp 198.18.156.65 port 80 must reach no service, not 'web'"),
        (_no_match, rf"tcp {MIDDLE} port 80 must reach 'web', not no service"),
    ],
)
def test_one_wrong_leaf_of_forty_thousand_is_found(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, harm: Harm, complaint: str
) -> None:
    build = generation.table.build

    def wrong(*arguments: Any) -> table.Table:
        compiled = build(*arguments)
        leaves = array("Q", compiled.leaves)
        assert len(leaves) == (MANY + 1) * LEAF.size // 8
        harm(leaves, (MANY // 2 + 1) * LEAF.size // 8)
        return dataclasses.replace(compiled, leaves=leaves.tobytes())

    before = read_status(bed.pins)
    monkeypatch.setattr(generation.table, "build", wrong)
    with pytest.raises(UnmoorError, match=f"the new table is wrong, nothing was switched: {complaint}"):
        generation.load(many(), bed.code, bed.pins)
    assert live(bed) == "old"
    assert read_status(bed.pins).bindings == before.bindings
    assert not bed.pins.new.exists()
    assert not bed.pins.previous.exists()
    monkeypatch.undo()
    assert len(generation.load(many(), bed.code, bed.pins).added) == MANY


def test_a_wrong_port_is_found(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    build = generation.table.build
    for name, at in (("ports", 80 * 2), ("ports", 82 * 2), ("ports", 79 * 2), ("ports", 84 * 2 + 1)):

        def wrong(*arguments: Any, name: str = name, at: int = at) -> table.Table:
            compiled = build(*arguments)
            numbers = array("I", getattr(compiled, name))
            numbers[at] = 0 if numbers[at] else max(numbers[at % 2 :: 2])
            return dataclasses.replace(compiled, **{name: numbers.tobytes()})

        monkeypatch.setattr(generation.table, "build", wrong)
        with pytest.raises(UnmoorError, match=rf"nothing was switched: tcp .* port {at // 2} must reach"):
            bed.load(*NEW)
        assert live(bed) == "old"


def test_a_program_that_is_wrong_is_not_switched_in(bed: Bed, tmp_path: Path) -> None:
    """The table is right, and so are `prove` and `explain`; only `dispatch` is not."""
    source = (files("unmoor.sockets.dispatch") / "dispatch.bpf.c").read_text()
    for number, (right, wrong) in enumerate(
        (
            ("return run(ctx, 0);", "return run(ctx, 0) | SK_PASS;"),
            ("return run(ctx, 0);", "return run(ctx, 0) & SK_DROP;"),
            ("return run(ctx, 0);", "return run(ctx, 1);"),
            ("bpf_ntohl(ctx->local_ip4) << 32", "ctx->local_ip4 << 32"),
            ("count->lookups++;", "count->lookups += 2;"),
        )
    ):
        assert right in source
        (tmp_path / "wrong.bpf.c").write_text(source.replace(right, wrong))
        output = tmp_path / f"{number}.o"
        compile_program(output, source=tmp_path / "wrong.bpf.c")
        with pytest.raises(UnmoorError, match="the new program is wrong, nothing was switched: tcp"):
            generation.load(document(*NEW), output.read_bytes(), bed.pins)
        assert live(bed) == "old"
    # Runs of the copy of the program are not counted.
    before = bed.count("web").counters["lookups"]
    bed.load(*NEW)
    assert bed.count("web").counters["lookups"] == before


def test_a_proof_goes_on_after_a_signal(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = []
    run_test = libbpf.run_test

    def interrupt(program: int, context: bytes, repeat: int = 1) -> libbpf.TestRun:
        # A signal that comes at once, as one by a timer would during a long run.
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        try:
            return run_test(program, context, repeat)
        except InterruptedError:
            interrupted.append(repeat)
            raise

    monkeypatch.setattr(libbpf, "run_test", interrupt)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        assert len(generation.load(many(), bed.code, bed.pins).added) == MANY
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted


def test_everything_is_proved_before_the_switch(bed: Bed) -> None:
    asked = []
    for claim in verification.claims(Packed.of(document(*NEW)).rules):
        for first, last, taker in claim.stretches:
            asked += [
                (claim.protocol, port, address, taker) for port in claim.ports for address in (first, last)
            ]
    base, base6 = int(ip_address("198.18.0.0")), int(ip_address("2001:db8::"))
    for port, taker in ((79, None), (80, "web"), (81, None), (82, "web"), (83, "more"), (84, None)):
        for first, size in ((base, 1 << 12), (base6, 1 << 84)):
            assert ("tcp", port, first, taker) in asked
            assert ("tcp", port, first + size - 1, taker) in asked
            if taker:
                assert ("tcp", port, first - 1, None) in asked
                assert ("tcp", port, first + size, None) in asked


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
