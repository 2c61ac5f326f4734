"""Measure nanoseconds per look-up of `dispatch`, the baseline and an empty program (BPF_PROG_TEST_RUN).

The machine drifts, so the programs take turns, and each figure is the median of its turns.
"""

from __future__ import annotations

import random
import socket
import statistics
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from operator import truediv
from pathlib import Path

from unmoor.bpf import compiler, libbpf
from unmoor.bpf.layout import DESCRIPTOR, KEY
from unmoor.bpf.pins import Pins
from unmoor.model import EdgeDocument
from unmoor.sockets.activation.protocol import Request
from unmoor.sockets.activation.registrar import Peer, Registrar
from unmoor.sockets.dispatch import generation, lookup

ROUNDS = 7
#: Twice each of the 13 ports, and as many addresses.
QUESTIONS = 26
REPEAT = 400_000
#: A port that nothing is bound to: ssh.
NOT_OURS = 22
_HERE = Path(__file__).parent
_BASELINE_KEY = struct.Struct("=IBH16s")
_BASELINE_VALUE = struct.Struct("=II")
#: An address and a port.
Question = tuple[IPv4Address | IPv6Address, int]


@dataclass(frozen=True)
class Figures:
    """Nanoseconds per look-up of each program, median over turns; `ratio` is `dispatch` to the baseline.

    Ratios are taken turn by turn, since the machine drifts, and their median is `ratio`. `least` is a program
    that only looks a socket up, assigns and releases it; `empty` does nothing.
    """

    ours: float
    baseline: float
    least: float
    empty: float
    ratio: float


@contextmanager
def programs(document: EdgeDocument, pins: Pins, code: bytes, baseline: bytes) -> Iterator[dict[str, int]]:
    """Load `document` into `dispatch` and the baseline; yields the programs' descriptors by name."""
    generation.load(document, code, pins)
    with ExitStack() as stack:
        bpf = stack.enter_context(libbpf.open_object(baseline, entries={}, shared={}, initial={}))
        _fill_baseline(bpf.map_fd("bindings"), document)
        servers = [
            stack.enter_context(socket.create_server(("", 0), family=family))
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        for number, server in enumerate(servers):
            libbpf.update(bpf.map_fd("sockets"), KEY.pack(number), DESCRIPTOR.pack(server.fileno()))
        registered = [server.fileno() for server in servers]
        Registrar(pins).handle(Request("register", "web"), registered, Peer(0, 0, frozenset()))
        yield {
            "ours": stack.enter_context(libbpf.opened(pins.current / "dispatch")),
            "baseline": bpf.program_fd("baseline"),
            "least": bpf.program_fd("least"),
            "empty": bpf.program_fd("empty"),
        }


def _fill_baseline(bindings: int, document: EdgeDocument) -> None:
    for binding in document.bindings():
        address = binding.prefix.network_address
        packed = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
        length = binding.prefix.prefixlen + (96 if address.version == 4 else 0)
        key = _BASELINE_KEY.pack(24 + length, 6, binding.first_port, packed)
        libbpf.update(bindings, key, _BASELINE_VALUE.pack(address.version == 6, length))


def measure(by_name: dict[str, int], questions: list[Question], repeat: int = REPEAT) -> Figures:
    """Take turns over the programs and questions."""
    turns: dict[str, list[int]] = {name: [] for name in by_name}
    for _ in range(ROUNDS):
        for address, port in questions:
            context = lookup.context("tcp", address, port)
            for name, program in by_name.items():
                turns[name].append(libbpf.run_test(program, context, repeat // len(questions)).nanoseconds)
    ratio = statistics.median(map(truediv, turns["ours"], turns["baseline"]))
    return Figures(**{name: statistics.median(found) for name, found in turns.items()}, ratio=ratio)


def sample(document: EdgeDocument, family: int) -> list[Question]:
    """Random addresses of random prefixes that are bound, at each of the ports in turn."""
    draw = random.Random(2)
    prefixes = [prefix for prefix in document.prefixes if prefix.version == family]
    ports = [int(port) for service in document.services for port in service.ports]
    found = []
    for number in range(QUESTIONS):
        prefix = draw.choice(prefixes)
        found.append((prefix[draw.randrange(prefix.num_addresses)], ports[number % len(ports)]))
    return found


def not_ours(questions: list[Question]) -> list[Question]:
    """The same addresses at a port that is not bound."""
    return [(address, NOT_OURS) for address, _ in questions]


def compile_both(directory: Path) -> tuple[bytes, bytes]:
    """Compile our program and the baseline to BPF objects."""
    compiler.compile_program(directory / "dispatch.o")
    compiler.compile_program(directory / "baseline.o", source=_HERE / "baseline.bpf.c")
    return (directory / "dispatch.o").read_bytes(), (directory / "baseline.o").read_bytes()
