"""How a host is doing: written by its supervisor, read by everything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from unmoor.lab import cgroup
from unmoor.lab.layout import Layout

Phase = Literal["booting", "ready", "off"]


@dataclass(frozen=True, slots=True)
class State:
    """What the supervisor of a host last wrote: process ids (0: none), boots so far, last exit status."""

    phase: Phase = "off"
    supervisor: int = 0
    leader: int = 0
    boots: int = 0
    status: int = 0

    def write(self, directory: Path) -> None:
        """Put this in place of the previous state in one step."""
        new = directory / "state.json.new"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.rename(directory / "state.json")


def read(layout: Layout, host: str) -> State:
    """How the host is doing; one whose supervisor was killed is off, and the next `up` boots it again."""
    try:
        written = State(**json.loads((layout.host(host) / "state.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return State()
    supervised = written.supervisor in cgroup.processes(layout.cgroup(host))
    return written if supervised else State(boots=written.boots, status=written.status)
