"""Ansible modules of this checkout, run as programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.checkout import ROOT


def run_module(name: str, arguments: dict[str, Any], within: tuple[str | Path, ...] = ()) -> dict[str, Any]:
    """Run a module of plugins/modules and return its result; `within` is a command such as unshare."""
    done = subprocess.run(
        [*within, sys.executable, ROOT / "plugins" / "modules" / f"{name}.py"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
