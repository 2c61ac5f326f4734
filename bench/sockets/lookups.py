"""Nanoseconds for a look-up, by BPF_PROG_TEST_RUN: ours beside the baseline and an empty program, in one run.

The machine drifts, so programs take turns, and each figure is the median of its turns.
"""

from __future__ import annotations

import random
import socket
import statistics
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from unmoor.model import EdgeDocument
from unmoor.sockets import compiler, generation, libbpf, lookup, status
from unmoor.sockets.layout import DESCRIPTOR, KEY, SOCKET_SLOTS, group
from unmoor.sockets.pins import Pins

ROUNDS = 7
ADDRESSES = 8
REPEAT = 200_000
_HERE = Path(__file__).parent
_BASELINE_KEY = struct.Struct("=IBH16s")
_BASELINE_VALUE = struct.Struct("=II")
Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Figures:
    """Nanoseconds a look-up, median over turns and addresses: of ours, the baseline and an empty program."""

    ours: float
    baseline: float
    empty: float


@contextmanager
def programs(document: EdgeDocument, pins: Pins, code: bytes, baseline: bytes) -> Iterator[dict[str, int]]:
    """Ours loaded with `document`, the baseline with the same, and the empty one; descriptors by name."""
    generation.load(document, code, pins)
    service = status.read_status(pins).record.services["web"]
    with ExitStack() as stack:
        bpf = stack.enter_context(libbpf.open_object(baseline, entries={}, shared={}, initial={}))
        _fill_baseline(bpf.map_fd("bindings"), document)
        ours = stack.enter_context(libbpf.opened(pins.root / "sockets"))
        for number, family in enumerate((socket.AF_INET, socket.AF_INET6)):
            server = stack.enter_context(socket.create_server(("", 0), family=family))
            slot = group(service, "tcp", (4, 6)[number]) * SOCKET_SLOTS
            libbpf.update(ours, KEY.pack(slot), DESCRIPTOR.pack(server.fileno()))
            libbpf.update(bpf.map_fd("sockets"), KEY.pack(number), DESCRIPTOR.pack(server.fileno()))
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


def measure(by_name: dict[str, int], addresses: list[Address], port: int, repeat: int = REPEAT) -> Figures:
    """Take turns over the programs and addresses."""
    turns: dict[str, list[int]] = {name: [] for name in by_name}
    for _ in range(ROUNDS):
        for address in addresses:
            context = lookup.context("tcp", address, port)
            for name, program in by_name.items():
                turns[name].append(libbpf.run_test(program, context, repeat // len(addresses)).nanoseconds)
    return Figures(**{name: statistics.median(found) for name, found in turns.items()})


def sample(document: EdgeDocument, family: int) -> list[Address]:
    """Some addresses that are bound."""
    draw = random.Random(2)
    prefixes = [prefix for prefix in document.prefixes if prefix.version == family]
    return [draw.choice(prefixes)[0] + draw.randrange(1) for _ in range(ADDRESSES)]


def compile_both(directory: Path) -> tuple[bytes, bytes]:
    """Our program and the baseline, as BPF objects."""
    compiler.compile_program(directory / "dispatch.o")
    compiler.compile_program(directory / "baseline.o", source=_HERE / "baseline.bpf.c")
    return (directory / "dispatch.o").read_bytes(), (directory / "baseline.o").read_bytes()


NOT_OURS = ip_address("198.18.0.9")
