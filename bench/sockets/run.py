"""All figures of the sockets half, beside a baseline, ratios first; writes bench/results/sockets.json.

    python bench/sockets/run.py [--quick]

Needs root. Everything runs in a network and mount namespace of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import floods
import lookups
import tables

from unmoor.model import EdgeDocument
from unmoor.sockets import generation, libbpf
from unmoor.sockets.pins import SHARED, TABLE, Pins

RESULTS = Path(__file__).parent.parent / "results" / "sockets.json"
PINS = Pins(Path("/sys/fs/bpf/unmoor"))
COUNTS = (1, 13, 1000, 40_000, 100_000)
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000


@dataclass(frozen=True)
class Result:
    """A figure beside its baseline; `goal` says what the ratio (or the value) should be."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None


def at_most(name: str, value: float, unit: str, baseline: float | None, limit: float) -> Result:
    """A figure that meets its goal when its ratio (its value, without a baseline) is at most `limit`."""
    ratio = value / baseline if baseline else None
    return Result(name, value, unit, baseline, ratio, f"<= {limit}", (ratio or value) <= limit)


def documents(count: int) -> Iterator[tuple[int, EdgeDocument]]:
    """A document of so many bindings, for each family."""
    for family in (4, 6):
        yield family, tables.thirteen() if count == 13 else tables.many(count, family)


def look_up(code: bytes, baseline: bytes, counts: tuple[int, ...]) -> Iterator[Result]:
    """(a) Nanoseconds for a look-up, and (d) memory."""
    hits: dict[tuple[int, int], float] = {}
    for count in counts:
        for family, document in documents(count):
            with lookups.programs(document, PINS, code, baseline) as by_name:
                targets = lookups.sample(document, family)
                hit = lookups.measure(by_name, targets, 80)
                other = lookups.measure(by_name, targets, 22)
                # Drop the socket: the same look-ups are misses.
                miss = lookups.measure(
                    {"ours": _without_socket(by_name["ours"]), **_rest(by_name)}, targets, 80
                )
            name = f"{count} bindings, ipv{family}"
            hits[count, family] = hit.ours
            if count == 13:
                yield at_most(f"look-up, hit, {name}", hit.ours, "ns", hit.baseline, 0.35)
                net = at_most(
                    f"the same less an empty program, {name}",
                    hit.ours - hit.empty,
                    "ns",
                    hit.baseline - hit.empty,
                    0.35,
                )
                yield net
            else:
                yield Result(f"look-up, hit, {name}", hit.ours, "ns", hit.baseline, hit.ours / hit.baseline)
            yield Result(f"look-up, miss, {name}", miss.ours, "ns")
            yield at_most(
                f"not ours, above an empty program, {name}", other.ours - other.empty, "ns", None, 10
            )
            yield Result(f"memory of a generation, {name}", _memory(TABLE) / 1024, "KiB")
    for family in (4, 6):
        name = f"look-up, growth from 13 to {counts[-1]} bindings, ipv{family}"
        yield at_most(name, hits[counts[-1], family], "ns", hits[13, family], 1.5)
    yield Result("memory shared by generations", _memory(SHARED) / 1024, "KiB")


def _rest(by_name: dict[str, int]) -> dict[str, int]:
    return {name: program for name, program in by_name.items() if name != "ours"}


def _without_socket(program: int) -> int:
    """The same program, once its service has lost all sockets."""
    with libbpf.opened(PINS.root / "sockets") as sockets:
        for slot in range(64):
            libbpf.delete(sockets, slot.to_bytes(4, "little"))
    return program


def _memory(names: tuple[str, ...]) -> int:
    """Bytes that the kernel charges for these maps."""
    total = 0
    for name in names:
        directory = PINS.current if (PINS.current / name).exists() else PINS.root
        with libbpf.opened(directory / name) as fd:
            lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))
    return total


def replace(code: bytes, count: int, turns: int) -> Iterator[Result]:
    """(c) Seconds to replace so many bindings by as many others."""
    for name, make in (
        ("prefixes on 13 ports each", tables.wide),
        ("single addresses on one port", lambda count, seed: tables.many(count, 4, seed)),
    ):
        generation.load(make(count, 1), code, PINS)
        times = []
        for turn in range(turns):
            document = make(count, 2 + turn)
            begin = time.perf_counter()
            change = generation.load(document, code, PINS)
            times.append(time.perf_counter() - begin)
            if len(change.added) < count // 3:
                raise RuntimeError("that was no replacement")
        yield at_most(f"replace {count} bindings: {name}", statistics.median(times), "s", None, 0.5)
        generation.unload(PINS)


_LOADS = {"connect": ("TCP connections", 0.99), "udp": ("UDP flood", 0.97), "tcp": ("SYN flood", None)}


def flood(code: bytes) -> Iterator[Result]:
    """(b) Floods with our program, beside none."""
    for kind, (ours, none) in floods.compare(PINS, code).items():
        name, limit = _LOADS[kind]
        goal = f">= {limit}" if limit else ""
        met = ours / none >= limit if limit else None
        yield Result(f"{name} across veth, per CPU second", ours, "1/s", none, ours / none, goal, met)
    count, why = floods.listeners_that_fit()
    yield Result(
        f"plain listeners that fit instead of one socket (then: {why})", count, "", 53_248, count / 53_248
    )


def show(results: list[Result]) -> None:
    """One table, ratios first."""
    print(f"{'ratio':>7}  {'value':>10}  {'baseline':>10}  {'unit':<4}  {'goal':<8}  {'met':<4}  name")
    for each in results:
        ratio = f"{each.ratio:.2f}" if each.ratio is not None else ""
        baseline = f"{each.baseline:.1f}" if each.baseline is not None else ""
        met = {True: "yes", False: "NO", None: ""}[each.met]
        value = f"{each.value:.3f}" if each.unit == "s" else f"{each.value:.1f}"
        print(
            f"{ratio:>7}  {value:>10}  {baseline:>10}  {each.unit:<4}  {each.goal:<8}  {met:<4}  {each.name}"
        )


def isolate() -> None:
    """Leave this computer's network and its BPF file system alone."""
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
    results = list(look_up(code, baseline, COUNTS[:3] if quick else COUNTS))
    generation.unload(PINS)
    results += replace(code, 4000 if quick else 40_000, 3 if quick else 7)
    results += flood(code)
    show(results)
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten to {os.path.relpath(RESULTS)}")


if __name__ == "__main__":
    main()
