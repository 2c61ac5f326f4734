"""A worker's memory stays within the bounds of docs/observe.md, whatever clients send."""

from __future__ import annotations

import os
import random
import re
import socket
from pathlib import Path

import dns.message

from support.dns_server import Running, running

PACKETS = 100_000
#: Octets by which a worker's memory may grow after it has warmed up: reserves of its allocator.
SLACK = 3 << 20

QUESTION = dns.message.make_query("host1.example.com", "A").to_wire()[12:]


def private(pid: int) -> int:
    """Private memory of this process, octets."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(
        1024 * int(size) for size in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+)", text, re.MULTILINE)
    )


def packet(rng: random.Random, number: int) -> bytes:
    """A packet with a new cookie, a new name, a new client subnet, or garbage."""
    head = rng.randbytes(2)
    plain, with_opt = b"\1\0\0\1\0\0\0\0\0\0", b"\1\0\0\1\0\0\0\0\0\1"
    kind = number % 6
    if kind == 0:
        option = b"\0\x0a\0\x08" + rng.randbytes(8)
        return (
            head + with_opt + QUESTION + b"\0\0\x29\4\xd0\0\0\0\0" + len(option).to_bytes(2, "big") + option
        )
    if kind == 1:
        option = b"\0\x08\0\x07\0\1\x18\0" + rng.randbytes(3)
        return (
            head + with_opt + QUESTION + b"\0\0\x29\4\xd0\0\0\0\0" + len(option).to_bytes(2, "big") + option
        )
    if kind == 2:
        return head + plain + b"\x10" + rng.randbytes(16) + b"\7example\3com\0\0\1\0\1"
    if kind == 3:
        return head + plain + b"\x10" + rng.randbytes(16) + b"\0" + rng.randbytes(4)
    if kind == 4:
        return head + with_opt + QUESTION + rng.randbytes(rng.randrange(60))
    return rng.randbytes(rng.randrange(200))


def flood(server: Running, packets: int, seed: int) -> None:
    """Send from changing clients, no faster than the worker answers."""
    rng = random.Random(seed)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for number in range(packets):
        if number % 20 == 0:
            sock.close()
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(10)
            sock.bind((f"127.{rng.randrange(1, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}", 0))
        sock.sendto(packet(rng, number), ("127.0.0.1", server.port))
        if number % 20 == 19:
            ident = os.urandom(2)
            sock.sendto(ident + b"\1\0\0\1\0\0\0\0\0\0" + QUESTION, ("127.0.0.1", server.port))
            while sock.recv(4096)[:2] != ident:
                pass
    sock.close()


def test_a_hundred_thousand_packets_take_no_memory(tmp_path: Path) -> None:
    log = {"sample": 10, "to": "dnstap", "socket": str(tmp_path / "nobody")}
    with running(tmp_path, workers=1, listen=["127.0.0.1"], rate_limit=10**6, query_log=log) as server:
        (worker,) = server.workers()
        flood(server, 30_000, seed=1)  # more than any table holds
        before = private(worker)
        flood(server, PACKETS, seed=2)
        grown = private(worker) - before
        assert server.workers() == [worker]
    assert grown < SLACK, f"{grown:,} octets more than {before:,}"
