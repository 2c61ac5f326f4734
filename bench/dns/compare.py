"""Compare the DNS half with other servers; print ratios first and write bench/results/dns.json.

    python bench/dns/compare.py [--names N] [--rounds N] [--seconds N]

All servers run at once, each with one worker, all on one core. dnsperf, on another core, queries them in
turn, in rounds, so that a drift of the machine affects all of them. The table has the median over all rounds
of the ratio within a round. There are two ratios for each server:

- By CPU time: queries that one core of the server answers, from the CPU time that the server spent. This is
  the reliable figure: it depends neither on the generator nor on other load of the machine.
- Queries a second, as dnsperf counts them. dnsperf reaches 130,000 to 175,000, so servers that are faster
  than that appear slower.

Ours has all its features on (peers.FEATURES). Needs dnsperf, and uses those of the other servers that
`tools/peers` finds. Figures of the other scripts in this folder come from their results, if they have run on
this machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))
import load
import peers
from figures import RESULTS, Figure, beside, read, show, write
from load import Latency, Round
from peers import FEATURES, FIRST_PORT, Server

OURS, BARE = "unmoor", "unmoor, bare"
#: Goals of the ratio to some of the others.
GOALS = {peers.KNOT: 0.45, peers.KNOT_COOKIES: 0.45, peers.BIND: 1.0, peers.PDNS: 20.0}
ONLY_COOKIES = (peers.KNOT_COOKIES,)
ANSWER_COOKIES = (OURS, peers.KNOT_COOKIES, peers.BIND)

#: Results of other scripts, and their goals with units, which the table has until they have run.
ELSEWHERE = {
    "dns-registry": [
        ("20 million names: one core, by CPU time, beside 20,000", "q/s", ">= 0.85"),
        ("20 million names: octets a name", "B", "<= 40"),
        ("20 million names: built in", "min", "<= 8"),
        ("20 million names: private memory of a worker", "MB", "<= 100"),
        ("20 million names: queries lost or answered wrong while swapped", "", "<= 0"),
    ],
    "dns-uniformity": [
        ("a million queries to a /24: chi-square p", "", "in 0.001 .. 0.999"),
        ("a million queries to a /24: addresses seen", "", ">= 256"),
        ("a million queries to a /24: serial correlation", "", "chance"),
    ],
    "dns-reloads": [("200 reloads in a minute under 20,000 q/s: queries lost or torn", "", "<= 0")],
}


@dataclass
class Subject:
    """A running server and its measurements."""

    server: Server
    pid: int
    rounds: list[Round] = field(default_factory=list)
    with_cookies: list[Round] = field(default_factory=list)
    latency: Latency | None = None

    @property
    def name(self) -> str:
        return self.server.name


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="of the server, of dnsperf")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory, (core, generator) = Path(name), chosen.cores
        queries = write_queries(directory / "queries", chosen.names)
        servers = [
            peers.ours(OURS, directory / "all", FIRST_PORT, chosen.names, **FEATURES),
            peers.ours(BARE, directory / "bare", FIRST_PORT + 1, chosen.names),
            *peers.others(directory, chosen.names),
        ]
        with running(servers, directory, core) as subjects:
            for number in range(chosen.rounds):
                for each in subjects:
                    measure(each, queries, generator, chosen.seconds)
                print(f"round {number + 1} of {chosen.rounds} done", file=sys.stderr)
            for each in subjects:
                measure_latency(each, queries, generator, chosen.seconds)
            figures = [*report(subjects), *elsewhere()]
    show(figures)
    write(RESULTS / "dns.json", figures)


def write_queries(path: Path, count: int) -> Path:
    chance = random.Random(1)
    lines = (f"host{chance.randrange(count)}.{peers.ZONE} A\n" for _ in range(200_000))
    path.write_text("".join(lines))
    return path


@contextmanager
def running(servers: list[Server], directory: Path, core: int) -> Iterator[list[Subject]]:
    """Run all servers; they are gone afterwards."""
    with load.running(servers, directory, core) as pids:
        yield [Subject(server, pid) for server, pid in zip(servers, pids, strict=True)]


def measure(each: Subject, queries: Path, core: int, seconds: int) -> None:
    """Measure one round: without cookies, and with them if the server answers them."""
    if each.name not in ONLY_COOKIES:
        each.rounds.append(load.run(each.server, each.pid, queries, core, seconds, cookie=False))
    if each.name in ANSWER_COOKIES:
        each.with_cookies.append(load.run(each.server, each.pid, queries, core, seconds, cookie=True))


def measure_latency(each: Subject, queries: Path, core: int, seconds: int) -> None:
    """Measure latency at half of the rate that the server reached."""
    if each.rounds:
        half = statistics.median(one.rate for one in each.rounds) / 2
        each.latency = load.latency(each.server, queries, core, seconds, half)


def report(subjects: list[Subject]) -> Iterator[Figure]:
    """Compare ours with each of the others."""
    by_name = {each.name: each for each in subjects}
    ours, bare = by_name[OURS], by_name[BARE]
    rest = [each for each in subjects if not each.name.startswith(OURS)]
    plain = [each for each in rest if each.rounds]
    for each in plain:
        yield ratio(f"one core, by CPU time, beside {each.name}", ours.rounds, each, "capacity")
    for each in plain:
        yield ratio(f"queries a second, beside {each.name}", ours.rounds, each, "rate")
    for each in rest:
        if each.with_cookies:
            name = f"one core, by CPU time, a cookie in each query, beside {each.name}"
            yield ratio(name, ours.with_cookies, each, "capacity")
    yield ratio("one core, by CPU time, beside nothing switched on", ours.rounds, bare, "capacity")
    waited = statistics.median(one.waited for each in subjects for one in each.rounds)
    yield Figure(
        "time in which other processes had the core (if high, rates and latency mean little)",
        100 * waited,
        "%",
    )
    yield from side_figures(ours, plain)


def ratio(name: str, ours: list[Round], other: Subject, what: str) -> Figure:
    """The medians of both servers, and the median of the ratios within a round."""
    rounds = other.with_cookies if "a cookie in each query" in name else other.rounds
    mine, theirs = ([getattr(one, what) for one in each] for each in (ours, rounds))
    middle = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    limit = GOALS.get(other.name)
    goal, met = (f">= {limit}", middle >= limit) if limit else ("", None)
    return Figure(name, statistics.median(mine), "q/s", statistics.median(theirs), middle, goal, met)


def side_figures(ours: Subject, rest: list[Subject]) -> Iterator[Figure]:
    """Compare latency and memory."""
    for each in rest:
        if each.latency and ours.latency:
            for what in ("median", "p99"):
                mine, other = getattr(ours.latency, what), getattr(each.latency, what)
                yield beside(f"latency at half load, {what}, beside {each.name}", mine, "us", other)
    used = load.memory(ours.pid) / 1024
    for each in rest:
        yield beside(f"memory, beside {each.name}", used, "MiB", load.memory(each.pid) / 1024)


def elsewhere() -> Iterator[Figure]:
    """Figures of the other scripts; without a value where they have not run."""
    for name, goals in ELSEWHERE.items():
        found = read(RESULTS / f"{name}.json")
        script = f"bench/dns/{name.removeprefix('dns-')}.py"
        yield from found or (
            Figure(f"{what} (run {script})", None, unit, goal=goal) for what, unit, goal in goals
        )


if __name__ == "__main__":
    main()
