"""Releases of the program, and a DNS server that they can take over."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import unmoor
from support.dns_server import Running
from support.waiting import wait_until

LAUNCHER = """\
#!{python}
import sys
sys.path.insert(0, {site!r})
from unmoor.commands import main
main()
"""


class Release:
    """A copy of the program, as the role `release` unpacks one."""

    def __init__(self, root: Path, version: str) -> None:
        self.version = version
        self.package = root / version / "site" / "unmoor"
        shutil.copytree(
            Path(unmoor.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__")
        )
        self.replace("__init__.py", "__version__: str", f'__version__ = "{version}"')
        self.program = root / version / "bin" / "unmoor"
        self.program.parent.mkdir()
        self.program.write_text(LAUNCHER.format(python=sys.executable, site=str(self.package.parent)))
        self.program.chmod(0o755)

    def replace(self, file: str, old: str, new: str) -> Release:
        """Change a line of the program."""
        path = self.package / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        return self

    def upgrade(self, server: Running) -> subprocess.CompletedProcess[str]:
        """`unmoor dns upgrade`, as the role's handler calls it."""
        command = [str(self.program), "dns", "upgrade", "--control", str(server.control)]
        return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


class Upgradable(Running):
    """A server whose process changes with each upgrade."""

    def stop(self) -> int:
        with contextlib.suppress(Exception):
            pid = self.status()["pid"]
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not alive(pid))
        return super().stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
