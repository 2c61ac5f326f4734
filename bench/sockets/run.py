"""Measure the sockets half against a baseline; print ratios first and write bench/results/sockets.json.

    python bench/sockets/run.py [--quick]

Needs root. Everything runs in its own network and mount namespaces.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))
import changes
import floods
import lookups
import registrations
import tables
from figures import RESULTS, Figure, show, write

from unmoor.bpf import libbpf
from unmoor.bpf.pins import SHARED, TABLE, Pins
from unmoor.model import EdgeDocument
from unmoor.sockets.dispatch import generation

PINS = Pins(Path("/sys/fs/bpf/unmoor"))
COUNTS = (1, 13, 1000, 40_000, 100_000)
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000


def at_most(name: str, value: float, unit: str, baseline: float | None, limit: float) -> Figure:
    """A figure that meets its goal when its ratio (its value, without a baseline) is at most `limit`."""
    ratio = value / baseline if baseline else None
    return Figure(name, value, unit, baseline, ratio, f"<= {limit}", (ratio or value) <= limit)


def paired(name: str, value: float, unit: str, baseline: float, ratio: float, limit: float | None) -> Figure:
    """A figure whose ratio was measured turn by turn, with the goal that it is at most `limit`, if any."""
    goal, met = (f"<= {limit}", ratio <= limit) if limit else ("", None)
    return Figure(name, value, unit, baseline, ratio, goal, met)


def documents(count: int) -> Iterator[tuple[int, EdgeDocument]]:
    """Documents of `count` bindings, one per family."""
    for family in (4, 6):
        yield family, tables.thirteen() if count == 13 else tables.many(count, family)


def look_up(code: bytes, baseline: bytes, counts: tuple[int, ...]) -> Iterator[Figure]:
    """(a) Measure nanoseconds per look-up, and (d) memory."""
    hits: dict[tuple[int, int], float] = {}
    for count in counts:
        for family, document in documents(count):
            with lookups.programs(document, PINS, code, baseline) as by_name:
                questions = lookups.sample(document, family)
                hit = lookups.measure(by_name, questions)
                other = lookups.measure(by_name, lookups.not_ours(questions))
                _without_socket()  # now the same look-ups are misses
                miss = lookups.measure(by_name, questions)
            name = f"{count} bindings, ipv{family}"
            hits[count, family] = hit.ours
            yield paired(
                f"look-up, hit, {name}",
                hit.ours,
                "ns",
                hit.baseline,
                hit.ratio,
                0.35 if count == 13 else None,
            )
            if count == 13:
                least = hit.least / hit.baseline
                yield Figure(
                    f"  minimum of any program (socket look-up, assign, release), ipv{family}",
                    hit.least,
                    "ns",
                    hit.baseline,
                    least,
                )
                above, above_baseline = hit.ours - hit.least, hit.baseline - hit.least
                yield Figure(
                    f"  look-up above that minimum, {name}",
                    above,
                    "ns",
                    above_baseline,
                    above / above_baseline,
                )
            yield Figure(f"look-up, miss, {name}", miss.ours, "ns")
            yield at_most(
                f"not bound, above an empty program, {name}", other.ours - other.empty, "ns", None, 10
            )
            yield Figure(f"memory of a generation, {name}", _memory(TABLE) / 1024, "KiB")
    for family in (4, 6):
        name = f"look-up, growth from 13 to {counts[-1]} bindings, ipv{family}"
        yield at_most(name, hits[counts[-1], family], "ns", hits[13, family], 1.5)
    yield Figure("memory shared by generations", _memory(SHARED) / 1024, "KiB")


def _without_socket() -> None:
    """Remove the sockets of our service. (The baseline keeps its sockets: misses are not compared.)"""
    with libbpf.opened(PINS.root / "sockets") as sockets:
        for slot in range(64):
            libbpf.delete(sockets, slot.to_bytes(4, "little"))


def _memory(names: tuple[str, ...]) -> int:
    """Bytes that the kernel charges for these maps."""
    total = 0
    for name in names:
        directory = PINS.current if (PINS.current / name).exists() else PINS.root
        with libbpf.opened(directory / name) as fd:
            lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))
    return total


def replace(code: bytes, count: int, turns: int) -> Iterator[Figure]:
    """(c) Measure the seconds to replace `count` bindings by others, and connections that fail meanwhile."""
    kinds: dict[str, Callable[[int], EdgeDocument]] = {
        "prefixes on 13 ports each": lambda seed: tables.wide(count, seed),
        "single addresses on one port": lambda seed: tables.many(count, 4, seed),
    }
    for kind, make in kinds.items():
        with tempfile.TemporaryDirectory() as directory:
            seconds = changes.replace(make, PINS, code, Path(directory), turns)
        name = f"replace {count} bindings, {kind}"
        yield at_most(f"{name}: document in memory", seconds.memory, "s", None, 0.5)
        yield Figure(f"{name}: CPU time of that", seconds.cpu, "s")
        yield at_most(f"{name}: document read from its file", seconds.file, "s", None, 0.5)
        yield at_most(f"{name}: the whole command", seconds.command, "s", None, 0.5)
    made, wrong = changes.failures(PINS, code)
    yield Figure(
        f"connections lost of {made} in {changes.REPLACEMENTS} replacements, {changes.UPGRADES} upgrades",
        wrong,
        "",
        goal="<= 0",
        met=not wrong,
    )


def register(code: bytes, turns: int) -> Iterator[Figure]:
    """(e) Measure the command that registers sockets beside the same by click, with the model imported."""
    generation.load(tables.thirteen(), code, PINS)
    ours, by_click = registrations.measure(PINS, "web", turns)
    yield at_most("register a socket", ours.seconds, "s", None, 0.15)
    ratio = ours.cpu / by_click.cpu
    yield Figure("  CPU time of that, beside the same by click", ours.cpu, "s", by_click.cpu, ratio)


_LOADS = {"connect": ("TCP connections", 0.99), "udp": ("UDP flood", 0.97), "tcp": ("SYN flood", None)}


def flood(code: bytes) -> Iterator[Figure]:
    """(b) Compare floods with our program and without, and with a listener per address and one for all."""
    rates = floods.compare(PINS, code)
    for kind, (name, limit) in _LOADS.items():
        found = rates[kind]
        goal = f">= {limit}" if limit else ""
        met = found.ratio >= limit if limit else None
        title = f"{name} across veth, our program beside none, per CPU second"
        yield Figure(title, found.one, "1/s", found.none, found.ratio, goal, met)
        plain = rates.get(f"plain {kind}")
        if plain:
            title = f"{name} across veth, {floods.PLAIN} plain listeners beside one, per CPU second"
            yield Figure(title, plain.one, "1/s", plain.none, plain.ratio)
    count, why = floods.listeners_that_fit()
    yield Figure(
        f"plain listeners that fit instead of one socket (then: {why})", count, "", 53_248, count / 53_248
    )


def ratios_first(results: list[Figure]) -> list[Figure]:
    """Order figures for the table; a figure whose name begins with a space follows the one above it."""
    groups: list[list[Figure]] = []
    for each in results:
        if each.name.startswith(" "):
            groups[-1].append(each)
        else:
            groups.append([each])
    groups.sort(key=lambda group: group[0].ratio is None)
    return [each for group in groups for each in group]


def isolate() -> None:
    """Enter new network and mount namespaces, which leaves the host's network and BPF file system alone."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET | _CLONE_NEWNS):
        sys.exit("run this as root")
    subprocess.run(["mount", "--make-rslave", "/"], check=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def main() -> None:
    """Measure everything, print the table and write the results."""
    quick = "--quick" in sys.argv
    isolate()
    with tempfile.TemporaryDirectory() as directory:
        code, baseline = lookups.compile_both(Path(directory))
    results = []
    for part in (
        look_up(code, baseline, COUNTS[:3] if quick else COUNTS),
        replace(code, 4000 if quick else 40_000, 4 if quick else 8),
        register(code, 5 if quick else 15),
        flood(code),
    ):
        for each in part:
            results.append(each)
            print(f"{each.value:10.3f} {each.unit:<4} {each.name.strip()}", file=sys.stderr)
        generation.unload(PINS)
    show(ratios_first(results))
    if not quick:
        write(RESULTS / "sockets.json", results)


if __name__ == "__main__":
    main()
