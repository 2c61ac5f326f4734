"""What a lab needs of the computer: root, programs, and the kernel's limits."""

from __future__ import annotations

import os
import shutil

from unmoor.errors import UnmoorError
from unmoor.process import PACKAGES

#: Programs that the lab runs.
_PROGRAMS = (
    "apt-ftparchive",
    "apt-get",
    "ip",
    "mmdebstrap",
    "mount",
    "nsenter",
    "setpriv",
    "setsid",
    "socat",
    "ssh",
    "ssh-keygen",
    "sysctl",
    "systemd-nspawn",
    "unshare",
)


def require_root() -> None:
    """Raise UnmoorError unless this is root."""
    if os.geteuid() != 0:
        raise UnmoorError("a lab needs root (namespaces, mounts, control groups)\n    fix: run this as root")


def require_programs() -> None:
    """Raise UnmoorError with the packages to install if a program is missing."""
    missing = {PACKAGES[program] for program in _PROGRAMS if not shutil.which(program)}
    if missing:
        raise UnmoorError(
            f"the lab needs more Debian packages\n    fix: apt-get install {' '.join(sorted(missing))}"
        )
