"""The oldest kernel that runs the dispatch program (`make kernels` tests it), and how to fix its errors."""

from __future__ import annotations

import errno
import os
import re

from unmoor.errors import UnmoorError

#: Debian 12's. The program reads `ingress_ifindex` of its context, which Linux 5.17 added.
MIN_KERNEL = (6, 1)

#: How to fix an error of the kernel, by errno.
_FIXES = {
    errno.EACCES: "run this as root; members of group unmoor may read",
    errno.EPERM: "run this as root; a unit needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno.ENOMEM: "free memory, or raise the unit's MemoryMax=",
    errno.ENOSPC: "free memory, or use a shorter document",
    errno.EROFS: "add the directory of the pins to the unit's ReadWritePaths=",
}


def require_kernel() -> None:
    """Raise UnmoorError when the running kernel is older than `MIN_KERNEL`."""
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < MIN_KERNEL:
        needed = ".".join(map(str, MIN_KERNEL))
        raise UnmoorError(
            f"this host runs Linux {release}; the dispatch program needs Linux {needed} or later\n"
            "    fix: boot the kernel of Debian 12 or later (package linux-image-amd64)"
        )


def kernel_error(error: OSError) -> UnmoorError | OSError:
    """Return an error of the kernel as one line with its fix.

    A closed pipe and the file descriptor limit are returned as they are: the command line handles both.
    """
    if error.errno in (errno.EPIPE, errno.EMFILE, errno.ENFILE):
        return error
    place = f"{error.filename}: " if error.filename else ""
    reason = os.strerror(error.errno) if error.errno else str(error)
    fix = _FIXES.get(error.errno or 0, "run this as root; docs/sockets.md has the limits")
    return UnmoorError(f"{place}{reason}\n    fix: {fix}")
