"""Other servers in tests."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import peers
from support.checkout import ROOT


def command(program: str, *arguments: str | Path, path: str = "") -> list[str | Path]:
    """Return the command that runs a program as one process, by its `path` if it has to know that.

    Without the program, skips the test if `make peers` never ran. If it ran, as before `make unit`, its list
    lacks a package, and the test fails.
    """
    if not peers.has(program):
        fetched = (ROOT / ".cache" / "peers" / "fetched").exists()
        (pytest.fail if fetched else pytest.skip)(f"{program} is not here: make peers")
    return peers.command(path or program, *arguments)


class OtherServer:
    """A server that runs until `stop`."""

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
