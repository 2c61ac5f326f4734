"""(e) The time to register a listener's sockets, by the command that a listener's unit runs."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.program import UNMOOR
from support.sockets import activation, listener
from unmoor.bpf.pins import Pins

# What the command imported before it had a path without them.
_BY_CLICK = (sys.executable, "-c", "import unmoor.model; from unmoor.commands.root import cli; cli()")


@dataclass(frozen=True)
class Cost:
    """Medians of seconds and of CPU seconds, of the command itself."""

    seconds: float
    cpu: float


def measure(pins: Pins, service: str, turns: int) -> tuple[Cost, Cost]:
    """Return the cost of the command, and of the same by click and with pydantic, measured turn by turn."""
    costs: dict[Sequence[str], list[Cost]] = {UNMOOR: [], _BY_CLICK: []}
    with tempfile.TemporaryDirectory() as name, listener() as sock:
        path = Path(name) / "activation.sock"
        arguments = ["sockets", "register", service, "--pid", str(os.getpid()), "--socket", str(path)]
        arguments += ["--listen", f"127.0.0.1:{sock.getsockname()[1]}"]
        with activation(pins, path, subprocess.DEVNULL):
            for _ in range(turns):
                for command, found in costs.items():
                    found.append(_cost([*command, *arguments]))
    ours, by_click = (
        Cost(statistics.median(each.seconds for each in found), statistics.median(each.cpu for each in found))
        for found in costs.values()
    )
    return ours, by_click


def _cost(command: Sequence[str]) -> Cost:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
