"""CPU time per packet by kind of packet, beside Knot; writes bench/results/dns-costs.json.

    python bench/dns/costs.py [--rounds N] [--packets N] [--only WORD] [--save FILE] [--before FILE]

Shows which packets are expensive: an attacker sends those. Both servers serve the same zones and get the same
packets, in turn, one worker each, on one core. The CPU time is that of the server's processes, from the
kernel's schedstat; the figure is the median over the rounds. Baselines are Knot's CPU time for the same
packets. Knot sends other replies to some: BADCOOKIE to a first cookie, and silence to malformed packets.

Goals are ratios to a plain answer of our own, since CPU time differs from machine to machine. With
`--before`, the results of an earlier run are shown beside these.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))
import load
import peers
from figures import RESULTS, Figure, read, show, write

from support.peers import KNOT, OPTIONS, command, has

#: Packets in flight; large ones are sent in smaller batches, which fit into the server's receive buffer.
BATCH, FEW = 32, 4
ADDRESS = "127.0.0.1"
SECRET = peers.FEATURES["cookie_secret"]
POOL = "pool.example"
DEEP = 115
RECORDS = 400

SOA = "$TTL 30\n@ SOA ns1 hostmaster 1 7200 900 1209600 300\n@ NS ns1\nns1 A 198.18.0.53\n"
#: The zone of both servers: example.com.
STATIC = (
    SOA
    + "www TXT hello\nmail MX 10 ns1\nalias CNAME www\n*.wild A 198.18.0.1\n*.wild MX 10 ns1\na.b.ent TXT x\n"
    + "sub NS ns.sub\nns.sub A 198.18.0.2\n"
    + "".join(f"big A 198.18.{at >> 8}.{at & 255}\n" for at in range(RECORDS))
    + "".join(f"host{at} A 198.18.{at >> 8}.{at & 255}\n" for at in range(1000))
)
KNOT_CONF = (
    KNOT
    + """
mod-geoip:
  - id: pool
    config-file: {directory}/pool.conf
    ttl: 30
    mode: weighted
mod-cookies:
  - id: cookies
    secret: 0x{secret}
zone:
  - domain: example.com
    storage: {directory}
    file: static
    module: [mod-cookies/cookies]
  - domain: {pool}
    storage: {directory}
    file: pool
    module: [mod-cookies/cookies, mod-geoip/pool]
"""
)

Packet = Callable[[random.Random], bytes]


@dataclass
class Kind:
    """A kind of packet: what makes one, and the goal for its cost as a multiple of a plain answer's."""

    name: str
    packet: Packet
    goal: float | None = None
    batch: int = BATCH
    over_tcp: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)


def query(
    name: bytes, rtype: int = 1, flags: int = 0, options: bytes | None = None, more: bytes = b""
) -> bytes:
    """Encode a query; `options` are those of its OPT record, `more` holds further records of 11 octets."""
    additional = (options is not None) + len(more) // 11
    head = struct.pack("!5H", flags, 1, 0, 0, additional)
    opt = b"" if options is None else b"\0\0\x29\x04\xd0\0\0\0\0" + len(options).to_bytes(2, "big") + options
    return b"\0\0" + head + name + struct.pack("!2H", rtype, 1) + opt + more


def below(base: str, *labels: bytes) -> bytes:
    wire = b"".join(bytes((len(each),)) + each for each in (*labels, *base.encode().split(b".")))
    return wire + b"\0"


def label(chance: random.Random) -> bytes:
    return b"%08x" % chance.getrandbits(32)


def deep(chance: random.Random, base: str) -> bytes:
    """Return a name with DEEP labels that differ from query to query."""
    return below(base, *(b"%x" % chance.randrange(16) for _ in range(DEEP - base.count(".") - 1)))


def cookie(client: bytes) -> bytes:
    return b"\0\x0a\0\x08" + client


def plain(chance: random.Random, **more: object) -> bytes:
    return query(below(POOL, b"host%d" % chance.randrange(1000)), **more)  # type: ignore[arg-type] # by name


EMPTY_RECORD = b"\0\0\x10\0\1\0\0\0\0\0\0"
EMPTY_OPTION = b"\xfd\xe9\0\0"

KINDS = [
    Kind("policy answer", plain),
    Kind("policy answer, EDNS", lambda chance: plain(chance, options=b""), 1.3),
    Kind("policy answer, RD", lambda chance: plain(chance, flags=0x0100), 1.3),
    Kind(
        "policy answer, a cookie seen before", lambda chance: plain(chance, options=cookie(b"12345678")), 1.5
    ),
    Kind(
        "policy answer, a cookie not seen before",
        lambda chance: plain(chance, options=cookie(chance.randbytes(8))),
        3,
    ),
    Kind("policy answer at a wildcard", lambda chance: query(below("w." + POOL, label(chance))), 2),
    Kind("policy NODATA", lambda chance: query(below(POOL, b"host%d" % chance.randrange(1000)), 16), 2),
    Kind("static A", lambda chance: query(below("example.com", b"host%d" % chance.randrange(1000))), 2),
    Kind("static MX", lambda chance: query(below("example.com", b"mail"), 15), 2),
    Kind("static CNAME and its target", lambda chance: query(below("example.com", b"alias"), 16)),
    Kind("wildcard A", lambda chance: query(below("wild.example.com", label(chance))), 2),
    Kind("wildcard MX", lambda chance: query(below("wild.example.com", label(chance)), 15), 2),
    Kind("NODATA", lambda chance: query(below("example.com", b"www"), 28), 2),
    Kind("NODATA, EDNS and DO", lambda chance: query(below("example.com", b"www"), 28, options=b""), 2),
    Kind("NXDOMAIN", lambda chance: query(below("example.com", label(chance))), 2),
    Kind(f"NXDOMAIN, {DEEP} labels", lambda chance: query(deep(chance, "example.com")), 4),
    Kind(f"wildcard A, {DEEP} labels", lambda chance: query(deep(chance, "wild.example.com")), 4),
    Kind("referral", lambda chance: query(below("sub.example.com", label(chance)))),
    Kind("out of zone", lambda chance: query(below("example.org", label(chance)))),
    Kind(f"{RECORDS} records, truncated", lambda _: query(below("example.com", b"big")), 4),
    Kind(
        f"{RECORDS} records, truncated, EDNS", lambda _: query(below("example.com", b"big"), options=b""), 4
    ),
    Kind("ANY", lambda _: query(below("example.com", b"www"), 255)),
    Kind("opcode STATUS", lambda _: query(below("example.com", b"www"), flags=0x1000)),
    Kind(
        "4 KB of empty options",
        lambda _: query(below("example.com", b"www"), options=EMPTY_OPTION * 1000),
        4,
        FEW,
    ),
    Kind(
        "350 additional records",
        lambda _: query(below("example.com", b"www"), more=EMPTY_RECORD * 350),
        4,
        FEW,
    ),
    Kind(
        "64 KB of empty options, TCP",
        lambda _: query(below("example.com", b"www"), options=EMPTY_OPTION * 16000),
        None,
        FEW,
        True,
    ),
    Kind(
        "64 KB of additional records, TCP",
        lambda _: query(below("example.com", b"www"), more=EMPTY_RECORD * 5900),
        None,
        FEW,
        True,
    ),
    Kind("64 KB of labels, TCP", lambda _: query(b"\1a" * 32000 + b"\0"), None, FEW, True),
    Kind("a small query, TCP", plain, None, BATCH, True),
]


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=4000, help="of each kind in a round")
    parser.add_argument("--only", default="", help="kinds whose name contains this word")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="of the servers, of the sender")
    parser.add_argument("--save", type=Path, default=RESULTS / "dns-costs.json")
    parser.add_argument("--before", type=Path, help="results of an earlier run to show beside these")
    chosen = parser.parse_args()
    core, sender = chosen.cores
    os.sched_setaffinity(0, {sender})
    kinds = [each for each in KINDS if chosen.only in each.name or each is KINDS[0]]
    with tempfile.TemporaryDirectory() as name, running(Path(name), core) as (ours, theirs):
        for _ in range(chosen.rounds):
            for each in kinds:
                each.ours.append(cost(*ours, each, chosen.packets))
                if theirs:
                    each.theirs.append(cost(*theirs, each, chosen.packets))
    found = list(figures(kinds))
    if chosen.before:
        _compare(found, read(chosen.before))
    show(found)
    write(chosen.save, found)


@contextmanager
def running(directory: Path, core: int) -> Iterator[tuple[tuple[int, int], tuple[int, int] | None]]:
    """Run both servers; yield the process and the port of each, None for a Knot that is not here."""
    servers = [_ours(directory / "ours"), *_knot(directory / "knot")]
    with load.running(servers, directory, core) as pids:
        found = [(pid, server.port) for pid, server in zip(pids, servers, strict=True)]
        yield found[0], found[1] if len(found) > 1 else None


def _ours(directory: Path) -> peers.Server:
    port = peers.FIRST_PORT + 50
    names = [*(f"host{at}" for at in range(1000)), "*.w"]
    zones = [
        {"name": "example.com", "records": STATIC},
        {"name": POOL, "records": SOA, "hostnames": [{"names": names}]},
    ]
    peers.write(directory, peers.document(port, zones=zones, **peers.FEATURES))
    return peers.serving("unmoor", directory, port)


def _knot(directory: Path) -> Iterator[peers.Server]:
    if not has("knotd"):
        print("knotd is not here: tools/peers fetch")
        return
    directory.mkdir()
    port = peers.FIRST_PORT + 51
    (directory / "static").write_text(STATIC)
    hosts = "".join(f"host{at} A 198.18.0.1\n" for at in range(1000))
    (directory / "pool").write_text(SOA + hosts + "*.w A 198.18.0.1\n")
    weighted = "".join(f"  - weight: 1\n    A: 198.18.{at >> 8}.{at & 255}\n" for at in range(4096))
    (directory / "pool.conf").write_text(f"*.{POOL}:\n{weighted}")
    (directory / "conf").write_text(
        KNOT_CONF.format(directory=directory, port=port, pool=POOL, secret=SECRET)
    )
    yield peers.Server("knot", port, list(map(str, command("knotd", *OPTIONS["knotd"], directory / "conf"))))


def cost(pid: int, port: int, kind: Kind, count: int) -> float:
    """Send `count` packets; return the CPU time that the server takes for each, microseconds."""
    chance = random.Random()
    small = max(count * kind.batch // BATCH // 8, 40)
    rounds = -(-(small if kind.over_tcp and kind.batch == FEW else count) // kind.batch)
    batches = [[kind.packet(chance) for _ in range(kind.batch)] for _ in range(rounds)]
    send = _over_tcp if kind.over_tcp else _over_udp
    send(port, batches[:1])  # the first packets are slower: caches are empty
    before, _ = load.times(pid)
    extra = send(port, batches)
    spent = load.times(pid)[0] - before
    return spent / 1000 / (rounds * kind.batch + extra)


def _over_udp(port: int, batches: list[list[bytes]]) -> int:
    """Send batches, each followed by a query whose reply shows that the batch was read.

    Returns how many of these queries were sent; they are as cheap as any.
    """
    marker = query(below(POOL, b"host1"))[2:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.settimeout(10)
        sock.connect((ADDRESS, port))
        waiting: list[bytes] = []
        for number, batch in enumerate(batches):
            for packet in batch:
                sock.send(packet)
            ident = (number % 0xFFFE + 1).to_bytes(2, "big")
            sock.send(ident + marker)
            waiting.append(ident)
            if len(waiting) > 1:
                _await(sock, waiting.pop(0))
        for ident in waiting:
            _await(sock, ident)
    return len(batches)


def _await(sock: socket.socket, ident: bytes) -> None:
    while sock.recv(4096)[:2] != ident:
        pass


def _over_tcp(port: int, batches: list[list[bytes]]) -> int:
    """Send each batch on a connection of its own; it ends when the server has closed it."""
    for batch in batches:
        with socket.create_connection((ADDRESS, port), 10) as sock:
            try:
                sock.sendall(b"".join(len(packet).to_bytes(2, "big") + packet for packet in batch))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except TimeoutError:
                raise
            except OSError:  # it closes the connection at a malformed packet
                continue
    return 0


def figures(kinds: list[Kind]) -> Iterator[Figure]:
    """Yield each cost beside Knot's, then beside a plain answer."""
    middle = {each.name: statistics.median(each.ours) for each in kinds}
    for each in kinds:
        theirs = statistics.median(each.theirs) if each.theirs else None
        ratio = middle[each.name] / theirs if theirs else None
        yield Figure(each.name, middle[each.name], "us", theirs, ratio)
    least = middle[kinds[0].name]
    for each in kinds[1:]:
        times = statistics.median(one / base for one, base in zip(each.ours, kinds[0].ours, strict=True))
        goal, met = (f"<= {each.goal}", times <= each.goal) if each.goal else ("", None)
        yield Figure(f"{each.name}, beside a plain answer", middle[each.name], "us", least, times, goal, met)


def _compare(now: list[Figure], before: list[Figure]) -> None:
    then = {each.name: each for each in before if each.value}
    print(f"{'before':>9}  {'now':>9}  {'now/before':>10}  us by kind")
    for each in now:
        if each.value and (old := then.get(each.name)) and old.value and "beside" not in each.name:
            print(f"{old.value:>9.2f}  {each.value:>9.2f}  {each.value / old.value:>10.2f}  {each.name}")


if __name__ == "__main__":
    main()
