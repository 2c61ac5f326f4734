"""A server of this checkout under measurement, and a report of its figures."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peers
from figures import RESULTS, Figure, show, write

from support.dns_server import Running


def document(port: int, prefix: str, ttl: int, names: int) -> dict[str, Any]:
    """One policy that answers `names` names, h0 and so on, from `prefix`, on loopback, by two workers."""
    hostnames = [{"names": [f"h{n}" for n in range(names)]}]
    return peers.document(
        port,
        workers=2,
        pools={"all": {"ipv4": [prefix]}},
        policies=[{"name": "all", "answer": {"pool": "all", "ttl": ttl}}],
        zones=[{"name": peers.ZONE, "records": peers.SOA, "hostnames": hostnames}],
    )


def query(ident: int, name: int) -> bytes:
    """A query for the address of the name with this number."""
    label = b"h%d" % name
    question = bytes((len(label),)) + label + b"\7example\3com\0\0\1\0\1"
    return (ident & 0xFFFF).to_bytes(2, "big") + b"\0\0\0\1\0\0\0\0\0\0" + question


@contextmanager
def serving(first: dict[str, Any]) -> Iterator[Running]:
    """Run a server with this document; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        server = Running(Path(name), first)
        try:
            yield server.wait()
        finally:
            server.stop()


def reload(server: Running, data: dict[str, Any]) -> None:
    """Bring another document into force, and return once it is."""
    server.write(data)
    reply = server.reload()
    if not reply.done:
        sys.exit("\n".join(reply.lines))


def row(name: str, value: float, unit: str, goal: str = "", met: bool | None = None) -> Figure:
    """A figure without a baseline."""
    return Figure(name, value, unit, goal=goal, met=met)


def report(name: str, rows: list[Figure]) -> int:
    """Print the figures and write them to bench/results; returns the exit status: 1 if a goal was missed."""
    show(rows)
    write(RESULTS / f"{name}.json", rows)
    return int(any(each.met is False for each in rows))
