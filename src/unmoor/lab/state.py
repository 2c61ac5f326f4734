"""The state of a host, written by its supervisor."""

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
    """The state of a host: process ids (0: none), number of boots, last exit status."""

    phase: Phase = "off"
    supervisor: int = 0
    leader: int = 0
    boots: int = 0
    status: int = 0

    def write(self, directory: Path) -> None:
        """Replace the previous state atomically."""
        new = directory / "state.json.new"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.rename(directory / "state.json")


def read(layout: Layout, host: str) -> State:
    """Read the state of a host. It is off if its supervisor was killed; the next `up` boots it."""
    try:
        written = State(**json.loads((layout.host(host) / "state.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return State()
    supervised = written.supervisor in cgroup.processes(layout.cgroup(host))
    return written if supervised else State(boots=written.boots, status=written.status)
