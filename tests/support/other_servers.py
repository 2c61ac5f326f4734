"""DNS servers of other makers, where `make peers` fetched them or somebody installed them.

Each configuration names every directory that its server writes to: tools/peers hides the directories of an
installed server.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.checkout import ROOT

_TOOL = ROOT / "tools" / "peers"

#: The options of each program: the configuration follows them, and it stays in the foreground.
PROGRAMS = {"knotd": ["-c"], "nsd": ["-d", "-c"], "named": ["-g", "-c"]}

KNOT = """
server:
  rundir: {directory}
  user: root:root
  listen: 127.0.0.1@{port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: {directory}/db
"""
NSD = """
server:
  ip-address: 127.0.0.1@{port}
  database: ""
  cookie-secret-file: {directory}/cookies
  zonesdir: {directory}
  zonelistfile: {directory}/zone.list
  xfrdfile: {directory}/xfrd.state
  xfrdir: {directory}
  pidfile: {directory}/nsd.pid
  username: root
  server-count: 1
"""


def command(program: str, *arguments: str | Path) -> list[str | Path]:
    """How to run a program, as one process.

    Skips the test where it is missing and `make peers` never ran. Where it ran, as before `make unit`,
    its list lacks a package: the test fails.
    """
    if subprocess.run([_TOOL, "has", program], check=False).returncode:
        fetched = (ROOT / ".cache" / "peers" / "fetched").exists()
        (pytest.fail if fetched else pytest.skip)(f"{program} is not here: make peers")
    return [_TOOL, "run", program, *arguments]


class OtherServer:
    """A program of another maker, which runs from its start to `stop`."""

    def __init__(self, log: Path, program: str, *arguments: str | Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(command(program, *arguments), stdout=output, stderr=output)

    def wait(self, answers: Callable[[], object], seconds: float = 60) -> None:
        """Return once `answers` holds. Fails with the log when the program ends, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
