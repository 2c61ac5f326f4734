"""Measure the registry at full size; writes bench/results/dns-registry.json.

    python bench/dns/registry.py [--names N] [--rounds N] [--seconds N] [--directory DIR]

Builds a registry of N hostnames (by default 20 million), looks names up, and updates it. Then a server
answers from it, in rounds that alternate with servers of 20,000 names, in a registry and in the document.
Finally the registry is replaced by its update and back while queries arrive. Needs dnsperf, and 5 GB of disk
for 20 million names.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))
import load
import peers
from figures import RESULTS, Figure, beside, show, write
from hostnames import ZONES, names
from hostnames import write as write_names
from load import Round
from peers import FIRST_PORT, Server

from support.program import UNMOOR
from unmoor.dns.hostnames.registry import open_registry, sha256_of
from unmoor.dns.protocol import names as wire_names
from unmoor.dns.server.control import ask

FEW = 20_000
#: More than the queries of a round, so that no round benefits from entries that it left in the caches.
QUERIES = 1_000_000
CHANGES = 5_000
SWAPS = 6
RECORDS = f"{peers.SOA}host1 A 198.18.0.1\n"


@dataclass
class Subject:
    """A server of some names, and its rounds."""

    name: str
    directory: Path
    port: int
    pid: int = 0
    rounds: list[Round] = field(default_factory=list)

    @property
    def control(self) -> Path:
        return self.directory / "control.sock"

    @property
    def server(self) -> Server:
        return peers.serving(self.name, self.directory, self.port)

    def document(self, **changes: Any) -> None:
        zones = [{"name": zone, "records": RECORDS} for zone in ZONES]
        peers.write(self.directory, peers.document(self.port, **{"zones": zones, **changes}))

    def registry(self, path: Path) -> None:
        self.document(registry={"path": str(path), "sha256": sha256_of(path)})

    @property
    def queries(self) -> Path:
        return self.directory / "queries"

    def write_queries(self, count: int) -> None:
        """Write queries for names from many parts of the list, in random order."""
        chance, found, step = random.Random(7), list[str](), 100_000
        while len(found) < QUERIES:
            start = chance.randrange(-(-count // step)) * step
            part = names(start, min(start + step, count))
            found += chance.sample(part, min(len(part), 25_000))
        chance.shuffle(found)
        self.queries.write_text("".join(f"{name} A\n" for name in found[:QUERIES]))


def spent(*words: str | Path) -> tuple[float, float]:
    """Run an `unmoor dns registry` command; returns its CPU time and its wall time, seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = ["nice", "-n", "10", *UNMOOR, "dns", "registry", *map(str, words), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - began


def build(directory: Path, count: int) -> tuple[Path, float]:
    """Build a registry of `count` names; returns its path and the CPU time, seconds."""
    listed, output = directory / f"{count}.csv", directory / f"{count}.registry"
    if not listed.exists():
        write_names(count, listed)
    zones = [word for zone in ZONES for word in ("--zone", zone)]
    return output, spent("build", listed, "-o", output, *zones)[0]


def update(directory: Path, registry: Path, added: int, removed: int) -> tuple[Path, float]:
    """Change some thousand names. The update reads all names if there are removals."""
    changes, output = directory / "changes.csv", directory / "updated.registry"
    lines = [f"add,added{number}.{ZONES[number % 5]},free,eu" for number in range(added)]
    # None of these is queried, so that every query has an answer before and after a swap.
    lines += [f"remove,{name},," for name in names(0, 100_000)[:removed]] if removed else []
    changes.write_text("\n".join(["action,name,account_type,region", *lines, ""]))
    return output, spent("update", registry, changes, "-o", output)[1]


def look_ups(registry: Path, queries: Path) -> Iterator[Figure]:
    """CPU time of a look-up, for names that exist and for names that do not."""
    opened = open_registry(registry)
    find = opened.finder({key: key for key in opened.kinds}.get)
    with queries.open() as lines:
        there = [wire_names.from_text(next(lines).split()[0]) for _ in range(300_000)]
    absent = [b"\1x" + name for name in there]
    if not all(map(find, there)) or any(map(find, absent)):
        raise SystemExit("the registry does not hold what it was built from")
    for what, asked in (("of a name that exists", there), ("of one that does not", absent)):
        began = time.process_time_ns()
        for name in asked:
            find(name)
        yield Figure(f"a look-up {what}", (time.process_time_ns() - began) / len(asked), "ns")


def private_memory(subject: Subject) -> float:
    """Private memory of the worker, MB."""
    pid = ask(subject.control, "status").data["workers"][0]["pid"]
    found = re.search(r"^Private_Dirty:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) / 1000 if found else float("nan")


def swap(subject: Subject, files: list[Path], core: int) -> tuple[int, float]:
    """Swap registries while queries arrive; returns the number lost or refused, and the seconds of a swap."""
    where = ["-s", "127.0.0.1", "-p", str(subject.port), "-d", str(subject.queries)]
    command = ["taskset", "-c", str(core), "dnsperf", *where, "-Q", "5000", "-l", str(5 * SWAPS)]
    generator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    took = []
    for turn in range(SWAPS):
        time.sleep(1)
        subject.registry(files[turn % len(files)])
        began = time.monotonic()
        reply = ask(subject.control, "reload")
        took.append(time.monotonic() - began)
        if not reply.done:
            raise SystemExit("\n".join(reply.lines))
    shown = generator.communicate()[0]
    sent, good = (re.search(each, shown) for each in (r"Queries sent:\s+(\d+)", r"NOERROR (\d+)"))
    if not sent or not good:
        raise SystemExit(f"dnsperf printed:\n{shown}")
    return int(sent[1]) - int(good[1]), statistics.median(took)


def measure(directory: Path, count: int, rounds: int, seconds: int, cores: list[int]) -> Iterator[Figure]:
    """Measure everything."""
    what = "20 million names" if count == 20_000_000 else f"{count:,} names"
    few, _ = build(directory, FEW)
    many, built = build(directory, count)
    octets = many.stat().st_size / count
    yield Figure(f"{what}: octets a name", octets, "B", None, None, "<= 40", octets <= 40)
    yield Figure(f"{what}: built in", built / 60, "min", None, None, "<= 8", built <= 480)
    subjects = [
        Subject("document", directory / "document", FIRST_PORT),
        Subject("small registry", directory / "few", FIRST_PORT + 1),
        Subject("registry", directory / "many", FIRST_PORT + 2),
    ]
    of_zone = {zone: [f"{each}." for each in names(0, FEW) if each.endswith(f".{zone}")] for zone in ZONES}
    subjects[0].document(
        zones=[
            {"name": zone, "records": RECORDS, "hostnames": [{"names": found}]}
            for zone, found in of_zone.items()
        ]
    )
    subjects[1].registry(few)
    subjects[2].registry(many)
    for subject, asked in zip(subjects, (FEW, FEW, count), strict=True):
        subject.write_queries(asked)
    yield from look_ups(many, subjects[2].queries)
    _, with_removals = update(directory, many, CHANGES // 2, CHANGES // 2)
    updated, additions = update(directory, many, CHANGES, 0)
    yield Figure(f"{what}: {CHANGES:,} changes, half of them removals", with_removals, "s")
    yield Figure(f"{what}: {CHANGES:,} additions", additions, "s")
    with load.running([subject.server for subject in subjects], directory, cores[0]) as pids:
        for subject, pid in zip(subjects, pids, strict=True):
            subject.pid = pid
        for number in range(rounds):
            for subject in subjects:
                one = load.run(subject.server, subject.pid, subject.queries, cores[1], seconds, cookie=False)
                subject.rounds.append(one)
                print(f"round {number + 1}, {subject.name}: {one.cost:.2f} us a query", file=sys.stderr)
        own = private_memory(subjects[2])
        yield Figure(f"{what}: private memory of a worker", own, "MB", None, None, "<= 100", own <= 100)
        yield from ratios(what, subjects)
        lost, took = swap(subjects[2], [updated, many], cores[1])
        name = f"{what}: queries lost or answered wrong while swapped"
        yield Figure(name, lost, "", None, None, "<= 0", lost == 0)
        yield Figure(f"{what}: a swap, from the reload to the last worker", took, "s")


def ratios(what: str, subjects: list[Subject]) -> Iterator[Figure]:
    """One core's queries by CPU time: the median of the ratios within each round."""
    for other, goal in ((subjects[0], 0.85), (subjects[1], None)):
        pairs = zip(subjects[2].rounds, other.rounds, strict=True)
        middle = statistics.median(mine.capacity / theirs.capacity for mine, theirs in pairs)
        mine, theirs = (statistics.median(r.capacity for r in s.rounds) for s in (subjects[2], other))
        name = f"one core, by CPU time, {what} beside {FEW:,} in a {other.name}"
        figure = beside(name, mine, "q/s", theirs)
        met = middle >= goal if goal else None
        yield Figure(name, mine, "q/s", figure.baseline, middle, f">= {goal}" if goal else "", met)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--names", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--directory", type=Path, help="where the list and the files are kept between runs")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="of the servers, of dnsperf")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = chosen.directory or Path(temporary)
        directory.mkdir(exist_ok=True)
        figures = list(measure(directory, chosen.names, chosen.rounds, chosen.seconds, chosen.cores))
    show(figures)
    write(RESULTS / "dns-registry.json", figures)


if __name__ == "__main__":
    main()
