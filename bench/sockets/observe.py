"""CPU time of a scrape of the exporter and of `unmoor sockets status`, with 40,000 bindings.

    python bench/sockets/observe.py [--beside CHECKOUT]

With --beside, the code of another checkout takes turns with this one, as the baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))

import run as whole
import tables
from figures import RESULTS, Figure, show, write
from prometheus_client import generate_latest

from unmoor.bpf.compiler import compile_program
from unmoor.bpf.pins import Pins
from unmoor.sockets.dispatch import generation
from unmoor.sockets.observe.metrics import collector_registry

BINDINGS, SCRAPES, COMMANDS, TURNS = 40_000, 5, 3, 3
PINS = Pins(Path("/sys/fs/bpf/unmoor"))
CHECKOUT = Path(__file__).parents[2]
_STATUS = (sys.executable, "-c", "from unmoor.commands import main; main()", "sockets", "status")
#: Goals in seconds. On a machine where this took 1.0 for `status`, tubular takes 0.77, and 0.16 for a scrape.
GOALS = {"a further scrape": 0.01, "a further scrape with a sample for each address": 0.05, "status": 0.77}


def measure() -> dict[str, float]:
    """Load the table and measure by the code that runs this; returns seconds of CPU time."""
    with tempfile.TemporaryDirectory() as directory:
        compile_program(Path(directory) / "dispatch.o")
        generation.load(tables.many(BINDINGS, 4), (Path(directory) / "dispatch.o").read_bytes(), PINS)
    found = {}
    for name, addresses in (("", False), (" with a sample for each address", True)):
        registry = collector_registry(PINS, addresses)
        times = []
        for _ in range(1 + SCRAPES):
            begin = time.process_time()
            generate_latest(registry)
            times.append(time.process_time() - begin)
        found[f"the first scrape{name}"] = times[0]
        found[f"a further scrape{name}"] = statistics.median(times[1:])
    times = []
    for _ in range(COMMANDS):
        begin = _children()
        subprocess.run([*_STATUS, "--pins", str(PINS.root)], check=True, stdout=subprocess.DEVNULL)
        times.append(_children() - begin)
    found["status"] = statistics.median(times)
    generation.unload(PINS)
    return found


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(checkout: Path) -> dict[str, float]:
    """Measure the code of a checkout, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
    )
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, the baseline")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure()))
        return
    whole.isolate()
    turns = [(measured(CHECKOUT), measured(options.beside) if options.beside else {}) for _ in range(TURNS)]
    figures = []
    for name in turns[0][0]:
        value = statistics.median(ours[name] for ours, _ in turns)
        baseline = statistics.median(theirs[name] for _, theirs in turns) if options.beside else None
        goal = GOALS.get(name)
        figures.append(
            Figure(
                f"{name}, {BINDINGS} bindings, CPU time",
                value,
                "s",
                baseline,
                value / baseline if baseline else None,
                f"<= {goal}" if goal else "",
                value <= goal if goal else None,
            )
        )
    show(figures)
    write(RESULTS / "observe.json", figures)


if __name__ == "__main__":
    main()
