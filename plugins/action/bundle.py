"""Build Unmoor's program with its dependencies, once per Python version and machine type."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.unmoor.unmoor.plugins.plugin_utils.tree import ROOT, cache, package

import unmoor

LOCK = ROOT / "requirements" / "edge.txt"
#: Platform tags of wheels that run on Debian 12 (glibc 2.36) and later.
GLIBC = ("manylinux_2_36", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
#: Suffixes of files in the package's directory that are no part of a release.
COMPILED = (".pyc", ".bpf.o")
#: With that, the program finds its own version.
METADATA = """\
Metadata-Version: 2.1
Name: unmoor
Version: {}
"""
LAUNCHER = """\
#!/usr/bin/python3 -I
# -I: ignore PYTHON* variables and packages of root's home.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "site"))
from unmoor.commands import main

main()
"""


class ActionModule(ActionBase):
    """Runs on the controller alone; plugins/modules/bundle.py describes it."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the archive's path and the release's id; build the archive when it is missing."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {"python": {"type": "str", "required": True}, "architecture": {"type": "str", "required": True}}
        )
        python, architecture = arguments["python"], arguments["architecture"]
        identity = f"{unmoor.__version__}-{_digest(python, architecture)}"
        archive = cache() / "bundles" / f"unmoor-{identity}.tar.gz"
        result |= {"id": identity, "path": str(archive), "changed": False}
        if not archive.exists() and not self._task.check_mode:
            _build(archive, python, architecture)
        return result


def _files() -> Iterator[Path]:
    """Yield the program's files, relative to the package's directory."""
    for path in sorted(package().rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(COMPILED):
            yield path.relative_to(package())


def _digest(python: str, architecture: str) -> str:
    digest = hashlib.sha256(f"{python} {architecture} {LAUNCHER} {METADATA}".encode() + LOCK.read_bytes())
    for path in _files():
        content = (package() / path).read_bytes()
        digest.update(f"{path} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _build(archive: Path, python: str, architecture: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as name:
        work = Path(name)
        site = work / "site"
        platforms = [f"--platform={glibc}_{architecture}" for glibc in GLIBC]
        target = [f"--target={site}", "--no-deps", "--no-compile"]
        where = [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:", *platforms]
        _pip("install", *target, *where, "--require-hashes", f"--requirement={LOCK}")
        shutil.rmtree(site / "bin", ignore_errors=True)
        for path in _files():
            (site / "unmoor" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package() / path, site / "unmoor" / path)
        metadata = site / f"unmoor-{unmoor.__version__}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(METADATA.format(unmoor.__version__))
        launcher = work / "bin" / "unmoor"
        launcher.parent.mkdir()
        launcher.write_text(LAUNCHER)
        launcher.chmod(0o755)
        new = work / "new.tar.gz"
        with tarfile.open(new, "w:gz", compresslevel=3) as tar:
            for part in ("bin", "site"):
                tar.add(work / part, part, filter=_as_root)
        new.rename(archive)


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def _pip(*arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = re.sub(r"^WARNING:.*\n", "", done.stderr, flags=re.MULTILINE).strip()
        raise AnsibleActionFail(f"Building the bundle failed: pip {arguments[0]}: {reason[-1500:]}")
