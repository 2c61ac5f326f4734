"""What the loader requires: the kernel's version, and the capabilities of its unit."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from support.checkout import ROOT
from support.program import UNMOOR
from support.sockets import Bed, ask, document, listener, refuses
from unmoor.bpf.kernel import MIN_KERNEL

ROLE = ROOT / "roles/sk_lookup"
WEB = {"label": "web", "ports": [80]}


def load(bed: Bed, folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """`unmoor sockets load`, run by the command `before`."""
    config, program = folder / "edge.json", folder / "dispatch.o"
    config.write_text(document(WEB).model_dump_json(), encoding="utf-8")
    program.write_bytes(bed.code)
    options = ["--config", str(config), "--object", str(program), "--pins", str(bed.pins.root)]
    return subprocess.run(
        [*before, *UNMOOR, "sockets", "load", *options],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_kernel_that_is_too_old_is_named(bed: Bed, tmp_path: Path) -> None:
    done = load(bed, tmp_path, "setarch", "--uname-2.6")
    assert done.returncode == 2
    assert re.search(r"runs Linux 2\.6\.\d+.*; the dispatch program needs Linux 6\.1 or later", done.stderr)
    assert not bed.pins.root.exists()


def test_the_role_asks_for_the_same_kernel() -> None:
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    assert variables["_sk_lookup_min_kernel"] == ".".join(map(str, MIN_KERNEL))


def test_the_units_capabilities_are_enough(bed: Bed, tmp_path: Path) -> None:
    unit = (ROLE / "templates/unmoor-sockets.service.j2").read_text(encoding="utf-8")
    line = re.search(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    assert line
    caps = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in line[1].split())])
    done = load(bed, tmp_path, "setpriv", "--no-new-privs", f"--bounding-set={caps}", f"--inh-caps={caps}")
    assert done.returncode == 0, done.stderr
    assert refuses("198.18.1.1", 80)
    with listener(says="web") as server:
        bed.register("web", server)
        assert ask("198.18.1.1", 80) == "web 198.18.1.1 80"
