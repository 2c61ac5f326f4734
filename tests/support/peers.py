"""Other DNS servers for comparison: how to run one, and the part of its configuration that all uses share.

`make peers` unpacks them. Each configuration names every directory that its server writes to: tools/peers
hides the directories of an installed server.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.checkout import ROOT

_TOOL = ROOT / "tools" / "peers"

#: The options of each program that keep it in the foreground; the path of the configuration follows.
OPTIONS = {"knotd": ["-c"], "nsd": ["-d", "-c"], "named": ["-g", "-c"]}

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
remote-control:
  control-enable: no
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


def has(program: str) -> bool:
    """Report whether the program is unpacked or installed."""
    return not subprocess.run([_TOOL, "has", program], check=False).returncode


def command(program: str, *arguments: str | Path) -> list[str | Path]:
    """Return the command that runs a program as one process."""
    return [_TOOL, "run", program, *arguments]
