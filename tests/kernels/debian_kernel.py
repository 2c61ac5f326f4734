"""Kernels of Debian releases: downloaded by apt, unpacked below .cache, not installed."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from unmoor.lab.image import apt_sources
from unmoor.process import run

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/kernels"
#: Increase this when the way in which a kernel is unpacked changes.
_LAYOUT = 1


@dataclass(frozen=True, slots=True)
class DebianKernel:
    """The kernel that `package` of `suite` depends on; `cpu` is the QEMU model for it without KVM."""

    version: str
    suite: str
    cpu: str
    package: str = "linux-image-amd64"

    def unpacked(self) -> Path:
        """Return the directory of the package's files, which are fetched if missing. Raises UnmoorError."""
        key = hashlib.sha256(json.dumps([_LAYOUT, asdict(self)]).encode()).hexdigest()[:12]
        place = CACHE / f"{self.version}-{key}"
        if not place.is_dir():
            making = place.with_suffix(".new")
            shutil.rmtree(making, ignore_errors=True)
            self._fetch(making)
            making.rename(place)
        return place

    def _fetch(self, making: Path) -> None:
        state = making / "apt"
        for directory in ("lists/partial", "archives/partial", "state"):
            (state / directory).mkdir(parents=True)
        (state / "sources.list").write_text("\n".join(apt_sources(self.suite)) + "\n", encoding="utf-8")
        places = {
            "Dir::Etc::SourceList": state / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": state / "state",
            "Dir::State::Lists": state / "lists",
            "Dir::State::Status": "/dev/null",
            "Dir::Cache": state,
            "APT::Sandbox::User": "root",
        }
        options = [part for name, value in places.items() for part in ("-o", f"{name}={value}")]
        run(["apt-get", *options, "update"])
        shown = run(["apt-cache", *options, "depends", self.package]).stdout
        image = next(line.split()[1] for line in shown.splitlines() if "Depends: linux-image-" in line)
        run(["env", "--chdir", str(state), "apt-get", *options, "download", image])
        (archive,) = state.glob("*.deb")
        run(["dpkg-deb", "--extract", str(archive), str(making)])
        shutil.rmtree(state)
        if not (making / "usr/lib/modules").exists():
            (making / "usr").mkdir(exist_ok=True)
            (making / "lib").rename(making / "usr/lib")
        run(["depmod", "--basedir", str(making / "usr"), next((making / "usr/lib/modules").iterdir()).name])


def image_of(unpacked: Path) -> Path:
    """The kernel's image."""
    return next((unpacked / "boot").glob("vmlinuz-*"))


def modules_of(unpacked: Path) -> Path:
    """The directory of the kernel's modules, named by its release."""
    return next((unpacked / "usr/lib/modules").iterdir())
