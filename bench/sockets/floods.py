"""Measure the cost of the program per packet with SYN and UDP floods across a veth pair.

Floods have one source address and 10,000 source ports. The listener never accepts, and the filter of the UDP
socket drops everything. The figure is packets per second of the sender's CPU time, which includes the
receiving side of a veth pair. Only the ratio of two turns in direct succession is meaningful.
"""

from __future__ import annotations

import ctypes
import os
import socket
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path

import tables

from support.sockets import Bed
from unmoor.bpf import libbpf
from unmoor.bpf.pins import Pins
from unmoor.sockets.dispatch import generation
from unmoor.sockets.observe.status import read_status

TURNS = 101
MILLISECONDS = 100
#: The number of plain listeners, one for each address of a /20, and of turns with and without them.
PLAIN = 4096
PLAIN_TURNS = 11
#: The destination port of each kind of load.
PORTS = {"connect": 8080, "udp": 80, "tcp": 80}
KINDS = tuple(PORTS)
_HERE = Path(__file__).parent
_CLIENT, _SERVER, _TARGET = "198.51.100.2", "198.51.100.1", "198.18.3.3"
Condition = Callable[[], AbstractContextManager[None]]
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0
_SO_ATTACH_FILTER = 26


def run(*command: str) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def veth_pair() -> Iterator[str]:
    """Create a namespace for the client, joined to this (new) one by a veth pair; yields its name."""
    name = f"unmoor-bench-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", "bench0", "type", "veth", "peer", "name", "bench1", "netns", name)
        run("ip", "addr", "add", f"{_SERVER}/24", "dev", "bench0")
        run("ip", "link", "set", "bench0", "up")
        run("ip", "-n", name, "addr", "add", f"{_CLIENT}/24", "dev", "bench1")
        run("ip", "-n", name, "link", "set", "bench1", "up")
        run("ip", "-n", name, "route", "add", "198.18.0.0/20", "via", _SERVER)
        run("ip", "route", "replace", "local", "198.18.0.0/20", "dev", "lo")
        yield name
    finally:
        run("ip", "netns", "del", name)


@dataclass(frozen=True)
class Rates:
    """Packets or connections per second of CPU time, with something and without; medians of turns.

    A turn is a pair, one right after the other, and `ratio` is the median of the pairs' ratios.
    """

    one: float
    none: float
    ratio: float


def compare(pins: Pins, code: bytes) -> dict[str, Rates]:
    """Compare SYN floods, UDP floods and whole connections, with the program and without.

    Also both floods with a plain listener for each address (`plain tcp`, `plain udp`), and with one for all.
    """
    with tempfile.TemporaryDirectory() as directory, veth_pair() as client:
        flood = f"{directory}/flood"
        run("clang", "-O2", "-o", flood, str(_HERE / "flood.c"))

        def measure(kind: str) -> float:
            return rate(flood, client, kind, MILLISECONDS)

        with _prepared(pins, code, flood) as ours:
            found = {kind: _pairs(ours, nullcontext, partial(measure, kind), TURNS) for kind in KINDS}
        _check(pins)
        generation.unload(pins)
        for kind in ("tcp", "udp"):
            found[f"plain {kind}"] = _pairs(
                partial(_listeners, kind, _addresses(PLAIN)),
                partial(_listeners, kind, [""]),
                partial(measure, kind),
                PLAIN_TURNS,
            )
    return found


def rate(flood: str, client: str, kind: str, milliseconds: int) -> float:
    """Flood from the namespace `client` by the program `flood`; packets per second of its CPU time."""
    command = ("ip", "netns", "exec", client, flood, kind, _CLIENT, _TARGET, str(PORTS[kind]))
    return float(run(*command, str(milliseconds)))


@contextmanager
def _prepared(pins: Pins, code: bytes, flood: str) -> Iterator[Condition]:
    """Load and register everything; yields a context manager that attaches the program."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("", PORTS["tcp"]), backlog=16))
        udp = stack.enter_context(sink(""))
        acceptor = stack.enter_context(socket.create_server(("", PORTS["connect"]), backlog=1024))
        stack.callback(_start(flood, acceptor).kill)
        _load(pins, code, tcp, udp, acceptor)
        program = stack.enter_context(libbpf.opened(pins.current / "dispatch"))
        namespace = stack.enter_context(generation.OWN_NETNS.open("rb"))
        pins.link.unlink()  # detached; from now on attached only while it is measured

        @contextmanager
        def ours() -> Iterator[None]:
            with libbpf.closing(libbpf.attach(program, namespace.fileno())):
                yield

        yield ours
        with libbpf.closing(libbpf.attach(program, namespace.fileno())) as link:
            libbpf.pin(link, pins.link)


def _pairs(one: Condition, none: Condition, rate: Callable[[], float], turns: int) -> Rates:
    def measure(condition: Condition) -> float:
        with condition():
            return rate()

    pairs = []
    for turn in range(turns):
        if turn % 2:
            pairs.append((measure(one), measure(none)))
        else:
            pairs.append((measure(none), measure(one))[::-1])
    ones, nones = zip(*pairs, strict=True)
    return Rates(
        statistics.median(ones), statistics.median(nones), statistics.median(map(truediv, ones, nones))
    )


def _addresses(count: int) -> list[str]:
    return [f"198.18.{number >> 8}.{number & 255}" for number in range(count)]


@contextmanager
def _listeners(kind: str, addresses: list[str]) -> Iterator[None]:
    """Open a socket for each address, on one port."""
    with ExitStack() as sockets:
        for address in addresses:
            sockets.enter_context(
                sink(address) if kind == "udp" else socket.create_server((address, PORTS[kind]), backlog=16)
            )
        yield


def sink(address: str) -> socket.socket:
    """A UDP socket that drops everything."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    program = ctypes.create_string_buffer(_DROP_ALL)
    filter_program = struct.pack("@HP", 1, ctypes.addressof(program))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, PORTS["udp"]))
    return sock


def _start(flood: str, acceptor: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen([flood, "accept", str(acceptor.fileno())], pass_fds=[acceptor.fileno()])


def _load(pins: Pins, code: bytes, tcp: socket.socket, udp: socket.socket, acceptor: socket.socket) -> None:
    generation.load(tables.floods(), code, pins)
    bed = Bed(pins, code)
    bed.register("web", tcp, udp)
    bed.register("connect", acceptor)


def _check(pins: Pins) -> None:
    for each in read_status(pins).destinations:
        if each.family == 4 and not each.counters["lookups"]:
            raise RuntimeError(f"the flood of {each.protocol} did not pass the program")


def listeners_that_fit(wanted: int = 53_248) -> tuple[int, str]:
    """Open plain listeners, one per address and port; returns their number and the error that ended it."""
    sockets: list[socket.socket] = []
    why = "nothing"
    try:
        for number in range(wanted):
            address = f"198.18.{number // 13 >> 8}.{number // 13 & 255}"
            sockets.append(socket.create_server((address, tables.PORTS[number % 13])))
    except OSError as error:
        why = error.strerror or str(error)
    count = len(sockets)
    for sock in sockets:
        with suppress(OSError):
            sock.close()
    return count, why
