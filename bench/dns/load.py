"""A load on one server by dnsperf on another core, and the CPU time that the server spends on it."""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.message
import dns.query
from peers import ZONE, Server

#: The client cookie (RFC 7873) of every query of a load with cookies.
COOKIE = "10:0123456789abcdef"


@dataclass(frozen=True)
class Round:
    """One load: queries a second, and the server's CPU time per query in microseconds.

    `waited` is the share of the time in which the server was ready to run but another process had its core.
    """

    rate: float
    cost: float
    waited: float

    @property
    def capacity(self) -> float:
        """Queries a second that one core answers, however many the generator could send."""
        return 1e6 / self.cost


@dataclass(frozen=True)
class Latency:
    """Time from query to reply at `rate` queries a second, microseconds."""

    rate: float
    median: float
    p99: float


def run(server: Server, pid: int, queries: Path, core: int, seconds: int, cookie: bool) -> Round:
    """Send as many queries as generator and server can handle."""
    before, started = times(pid), time.monotonic()
    shown = _dnsperf(server, queries, core, seconds, *(["-E", COOKIE] if cookie else ["-e"]))
    wall = time.monotonic() - started
    spent, waited = (after - then for after, then in zip(times(pid), before, strict=True))
    rate = _number(r"Queries per second:\s+([\d.]+)", shown)
    return Round(rate, spent / _completed(shown) / 1000, waited / wall / 1e9)


def latency(server: Server, queries: Path, core: int, seconds: int, rate: float) -> Latency:
    """Send `rate` queries a second and time each."""
    shown = _dnsperf(server, queries, core, seconds, "-e", "-v", "-Q", str(round(rate)))
    times = sorted(float(line.rsplit(" ", 1)[1]) * 1e6 for line in shown.splitlines() if line[:2] == "> ")
    reached = _number(r"Queries per second:\s+([\d.]+)", shown)
    return Latency(reached, statistics.median(times), times[len(times) * 99 // 100])


def _dnsperf(server: Server, queries: Path, core: int, seconds: int, *options: str) -> str:
    where = ["-s", "127.0.0.1", "-p", str(server.port), "-d", str(queries), "-l", str(seconds)]
    shown = subprocess.run(
        ["taskset", "-c", str(core), "dnsperf", *where, *options],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lost = _number(r"Queries lost:\s+(\d+)", shown)
    codes = re.search(r"Response codes:\s+(.*)", shown)
    if lost > _completed(shown) / 1000 or codes is None or not codes[1].endswith("(100.00%)"):
        raise SystemExit(f"{server.name}: no clean run:\n{shown[-1500:]}")
    return shown


def _completed(shown: str) -> float:
    return _number(r"Queries completed:\s+(\d+)", shown)


def _number(pattern: str, shown: str) -> float:
    found = re.search(pattern, shown)
    if found is None:
        raise SystemExit(f"dnsperf printed:\n{shown[-1500:]}")
    return float(found[1])


def times(pid: int) -> tuple[int, int]:
    """CPU time of a process and its live descendants, and their time waiting for a core; nanoseconds."""
    spent = waited = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        ran, queued, _ = map(int, path.read_text().split())
        spent, waited = spent + ran, waited + queued
    for child in _children(pid):
        more = times(child)
        spent, waited = spent + more[0], waited + more[1]
    return spent, waited


def memory(pid: int) -> int:
    """Proportional memory of a process and its descendants, KiB."""
    own = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(own[1] if own else 0) + sum(memory(child) for child in _children(pid))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return found


@contextmanager
def running(servers: Sequence[Server], directory: Path, core: int) -> Iterator[list[int]]:
    """Run all servers on one core, their logs in `directory`; yields the process IDs once all answer."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for server in servers:
            log = directory / f"log.{server.port}"
            processes.append(server.start(core, log))
            _wait_until_it_serves(server, processes[-1], log)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


def _wait_until_it_serves(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    query = dns.message.make_query(f"host1.{ZONE}", "A")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if dns.query.udp(query, "127.0.0.1", timeout=0.5, port=server.port).answer:
                return
        except (OSError, dns.exception.DNSException):
            time.sleep(0.1)
    raise SystemExit(f"{server.name} does not serve:\n{log.read_text(errors='replace')[-2000:]}")
