"""The dispatch program beside the floor, for each state of a service's slots.

The floor program looks a socket up, assigns and releases it; no program that chooses a socket can do less.
Look-ups are test runs (BPF_PROG_TEST_RUN) with the usual 13 ports, floods go across a veth pair. Programs
take turns, and a ratio is the median of the turns' ratios.

    python bench/sockets/slots.py [--beside CHECKOUT]

With --beside, the program and the table of another checkout take the same turns.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from operator import truediv
from pathlib import Path

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))

import floods
import run as whole
import tables
from figures import RESULTS, Figure, show, write

from unmoor.bpf import libbpf
from unmoor.bpf.compiler import compile_program
from unmoor.bpf.layout import DESCRIPTOR, KEY
from unmoor.bpf.pins import Pins
from unmoor.model import EdgeDocument
from unmoor.sockets.activation.protocol import Request
from unmoor.sockets.activation.registrar import Peer, Registrar
from unmoor.sockets.dispatch import generation, lookup

HERE = Path(__file__).parent
ROUNDS, REPEAT = 31, 60_000
FLOOD_TURNS, MILLISECONDS = 61, 200
#: Goals of the ratios to the floor: 45 ns on the machine where 60 for a miss and 80 for dual-stack were set.
HIT, MISS, DUAL_STACK = 1.15, 1.33, 1.78
#: The part of a flood's rate that may be lost beside the floor.
FLOOD = 0.01
OWN, BESIDE = Pins(Path("/sys/fs/bpf/unmoor")), Pins(Path("/sys/fs/bpf/beside"))
PACKETS = {"ipv4": ip_address("198.18.3.7"), "ipv6": ip_address("2001:db8::37")}
_OURS = ("ours", "beside")
_TITLES = {
    "ours": "ours",
    "beside": "the other checkout's",
    "floor": "the floor",
    "empty": "an empty program",
}

#: Descriptors of programs by name: ours, floor, empty, and beside if there is such a checkout.
Programs = Mapping[str, int]


def prepare(pins: Pins, document: EdgeDocument, descriptors: Sequence[int]) -> None:
    """Compile and load the program of the checkout that runs this, and register sockets for `web`."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "dispatch.o"
        compile_program(program)
        generation.load(document, program.read_bytes(), pins)
    Registrar(pins).handle(Request("register", "web"), descriptors, Peer(0, 0, frozenset()))
    pins.link.unlink()  # detached


def prepare_beside(checkout: Path, document: EdgeDocument, descriptors: Sequence[int]) -> None:
    """Do the same by the code of another checkout, in a process of its own."""
    subprocess.run(
        [sys.executable, __file__, "--prepare", document.model_dump_json(), *map(str, descriptors)],
        check=True,
        pass_fds=descriptors,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
    )


@contextmanager
def prepared(
    document: EdgeDocument,
    sockets: Sequence[socket.socket],
    floor: Sequence[socket.socket],
    checkout: Path | None,
) -> Iterator[Programs]:
    """Load all programs, none of them attached, with `sockets` registered; those of `floor` are the floor's.

    `floor` holds one for IPv4, and one for IPv6 if that is measured.
    """
    descriptors = [each.fileno() for each in sockets]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found: dict[str, int] = {}
        for name, pins in (("beside", BESIDE), ("ours", OWN)):
            if name == "ours":
                prepare(pins, document, descriptors)
            elif checkout:
                prepare_beside(checkout, document, descriptors)
            else:
                continue
            stack.callback(generation.unload, pins)
            found[name] = stack.enter_context(libbpf.opened(pins.current / "dispatch"))
        compile_program(directory / "baseline.o", source=HERE / "baseline.bpf.c")
        code = (directory / "baseline.o").read_bytes()
        bpf = stack.enter_context(libbpf.open_object(code, entries={}, shared={}, initial={}))
        for number, sock in enumerate(floor):
            libbpf.update(bpf.map_fd("sockets"), KEY.pack(number), DESCRIPTOR.pack(sock.fileno()))
        yield {**found, "floor": bpf.program_fd("least"), "empty": bpf.program_fd("empty")}


def in_turns(names: Sequence[str], rounds: int, measure: Callable[[str], float]) -> dict[str, list[float]]:
    """Measure everything once a round, each time in another order."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            found[name].append(measure(name))
    return found


def look_ups(checkout: Path | None) -> Iterator[Figure]:
    """Look-ups with a socket in the first slot, with a dual-stack socket only, and with none."""
    with (
        socket.create_server(("127.0.0.1", 0)) as floor4,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as floor6,
        socket.create_server(("127.0.0.1", 0)) as ipv4,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as dual_stack,
        prepared(tables.thirteen(), [ipv4, dual_stack], [floor4, floor6], checkout) as programs,
    ):
        for family in PACKETS:
            yield from _look_up(f"hit, {family}", programs, family, HIT)
        ipv4.close()
        yield from _look_up("hit, ipv4 packet to a [::] socket", programs, "ipv4", DUAL_STACK)
        dual_stack.close()
        for family in PACKETS:
            yield from _look_up(f"miss, {family}", programs, family, MISS)


def _look_up(name: str, programs: Programs, family: str, goal: float) -> Iterator[Figure]:
    packet = lookup.context("tcp", PACKETS[family], tables.PORTS[0])
    turns = in_turns(
        list(programs),
        ROUNDS,
        lambda program: libbpf.run_test(programs[program], packet, REPEAT).nanoseconds,
    )
    floor = statistics.median(turns["floor"])
    for program in _OURS:
        if program in turns:
            ratio = statistics.median(map(truediv, turns[program], turns["floor"]))
            title = f"look-up, {name}, {_TITLES[program]} beside the floor"
            value = statistics.median(turns[program])
            yield Figure(title, value, "ns", floor, ratio, f"<= {goal}", ratio <= goal)


def flood(checkout: Path | None) -> Iterator[Figure]:
    """A UDP flood with each program attached, beside the same flood with none."""
    with (
        tempfile.TemporaryDirectory() as directory,
        floods.veth_pair() as client,
        floods.sink("") as sock,
        prepared(tables.floods(), [sock], [sock], checkout) as programs,
        generation.OWN_NETNS.open("rb") as namespace,
    ):
        command = f"{directory}/flood"
        floods.run("clang", "-O2", "-o", command, str(HERE / "flood.c"))

        def rate(program: str) -> float:
            with ExitStack() as stack:
                if program != "none":
                    link = libbpf.attach(programs[program], namespace.fileno())
                    stack.enter_context(libbpf.closing(link))
                return floods.rate(command, client, "udp", MILLISECONDS)

        turns = in_turns(["none", *programs], FLOOD_TURNS, rate)
    kept = {program: statistics.median(map(truediv, turns[program], turns["none"])) for program in programs}
    none = statistics.median(turns["none"])
    for program, ratio in kept.items():
        goal = kept["floor"] - FLOOD if program in _OURS else None
        yield Figure(
            f"UDP flood across veth, {_TITLES[program]} beside none, per CPU second",
            statistics.median(turns[program]),
            "1/s",
            none,
            ratio,
            f">= {goal:.3f}" if goal else "",
            ratio >= goal if goal else None,
        )


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout to measure")
    parser.add_argument("--prepare", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        document, *descriptors = options.prepare
        prepare(BESIDE, EdgeDocument.model_validate_json(document), list(map(int, descriptors)))
        return
    whole.isolate()
    figures = [*look_ups(options.beside), *flood(options.beside)]
    show(figures)
    write(RESULTS / "slots.json", figures)


if __name__ == "__main__":
    main()
