"""Reload 200 times in a minute under 20,000 queries a second: `python bench/dns/reloads.py [--reloads N]`.

Every generation has its own TTL and its own pool, so each answer shows its generation, and whether all of it
is from that generation. Each of the clients' sockets is served by one worker (the kernel chooses it by the
socket's address and port), so an answer of a newer generation is never followed by one of an older there.
"""

from __future__ import annotations

import argparse
import select
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))
from figures import Figure
from ours import document, query, reload, report, row, serving

PORT = 5392
RATE = 20_000
NAMES = 20_000
SOCKETS = 8
#: Maximum number of queries without a reply; the server's socket buffers hold more.
WINDOW = 2_000
#: Seconds after which a query counts as lost.
LOST = 5.0


def generation(number: int) -> dict[str, Any]:
    """A document whose answers have `number` twice: as the TTL, and as the third octet of the address."""
    return document(PORT, f"198.18.{number % 256}.0/24", number, NAMES)


@dataclass
class Seen:
    """Counts of the clients."""

    asked: int = 0
    answered: int = 0
    lost: int = 0
    mixed: int = 0
    older: int = 0
    seconds: float = 0.0
    generations: set[int] = field(default_factory=set)
    latencies: list[float] = field(default_factory=list)


class Client(threading.Thread):
    """Sends `rate` queries a second over some sockets until `enough` is set, then waits for replies."""

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.seen = Seen()
        self.enough = threading.Event()
        self._rate = rate
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._newest: dict[int, int] = {}
        self._under_way: dict[tuple[int, bytes], float] = {}
        for _ in range(SOCKETS):
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.setblocking(False)
            sock.connect(("127.0.0.1", PORT))
            self._sockets[sock.fileno()] = sock
            self._newest[sock.fileno()] = 0
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def run(self) -> None:
        began = time.monotonic()
        while not self.enough.is_set():
            now = time.monotonic()
            due = min(int((now - began) * self._rate) - self.seen.asked, WINDOW - len(self._under_way), 64)
            if due > 0:
                self._ask(due, now)
            self._read(0.0 if due >= 64 else 0.001)
        self.seen.seconds = time.monotonic() - began
        deadline = time.monotonic() + LOST
        while self._under_way and time.monotonic() < deadline:
            self._read(0.1)
        self.seen.lost = len(self._under_way)

    def _ask(self, count: int, now: float) -> None:
        sock = self._sockets[list(self._sockets)[(self.seen.asked // 64) % SOCKETS]]
        for _ in range(count):
            ident = (self.seen.asked & 0xFFFF).to_bytes(2, "big")
            sock.send(query(self.seen.asked, self.seen.asked * 7919 % NAMES))
            self._under_way[sock.fileno(), ident] = now
            self.seen.asked += 1

    def _read(self, timeout: float) -> None:
        for descriptor, _ in self._poll.poll(timeout):
            sock = self._sockets[descriptor]
            now = time.monotonic()
            while True:
                try:
                    reply = sock.recv(512)
                except BlockingIOError:
                    break
                self._judge(descriptor, reply, now)

    def _judge(self, descriptor: int, reply: bytes, now: float) -> None:
        seen = self.seen
        began = self._under_way.pop((descriptor, reply[:2]), None)
        ttl, third = int.from_bytes(reply[-10:-6], "big"), reply[-2]
        if began is None or reply[2:4] != b"\x84\0" or ttl % 256 != third or reply[-4:-2] != b"\xc6\x12":
            seen.mixed += 1
            return
        seen.answered += 1
        seen.latencies.append(now - began)
        seen.generations.add(ttl)
        if ttl < self._newest[descriptor]:
            seen.older += 1
        self._newest[descriptor] = max(ttl, self._newest[descriptor])


@dataclass
class Reloads:
    """Seconds: of each reload, of all with their pauses, and of the parent's CPU time for one."""

    took: list[float] = field(default_factory=list)
    whole: float = 0.0
    cost: float = 0.0


def cpu_time(pid: int) -> float:
    """CPU time of a process without its children, seconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(reloads: int, seconds: float, rate: int) -> tuple[Seen, Reloads]:
    """Reload `reloads` times, evenly over `seconds`."""
    found = Reloads()
    with serving(generation(1)) as server:
        client = Client(rate)
        client.start()
        try:
            began, spent = time.monotonic(), cpu_time(server.process.pid)
            for number in range(reloads):
                time.sleep(max(0.0, began + number * seconds / reloads - time.monotonic()))
                before = time.monotonic()
                reload(server, generation(number + 2))
                found.took.append(time.monotonic() - before)
            found.whole = time.monotonic() - began
            found.cost = (cpu_time(server.process.pid) - spent) / reloads
        finally:
            client.enough.set()
            client.join()
    return client.seen, found


def rows(reloads: int = 200, seconds: float = 60.0, rate: int = RATE) -> list[Figure]:
    """Measure; returns the figures."""
    seen, done = measure(reloads, seconds, rate)
    median = statistics.median(done.took)
    latencies = sorted(seen.latencies)
    percentile = latencies[int(len(latencies) * 0.999)] * 1000
    pace = reloads / done.whole * 60
    reached = seen.answered / seen.seconds
    torn = seen.lost + seen.mixed + seen.older
    what = f"200 reloads in a minute under {rate:,} q/s: "
    return [
        row(f"{what}queries lost or torn", torn, "", "<= 0", torn == 0),
        row(f"{what}lost", seen.lost, ""),
        row(f"{what}of two states at once", seen.mixed, ""),
        row(f"{what}older than one before", seen.older, ""),
        row(f"{what}answered", seen.answered, ""),
        row(f"{what}answered a second", reached, "1/s", f">= {0.95 * rate:.0f}", reached >= 0.95 * rate),
        row(f"{what}reloads a minute", pace, "1/min", ">= 199", pace >= 199),
        row(f"{what}generations that answered", len(seen.generations), ""),
        row(f"{what}a reload, median", median, "s", "<= 0.3", median <= 0.3),
        row(f"{what}a reload, CPU time of the parent", done.cost, "s"),
        row(f"{what}a reload, longest", max(done.took), "s"),
        row(f"{what}latency, median", statistics.median(latencies) * 1000, "ms"),
        row(f"{what}latency, 99.9 %", percentile, "ms"),
        row(f"{what}latency, longest", latencies[-1] * 1000, "ms"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=RATE)
    chosen = parser.parse_args()
    sys.exit(report("dns-reloads", rows(chosen.reloads, chosen.seconds, chosen.rate)))


if __name__ == "__main__":
    main()
