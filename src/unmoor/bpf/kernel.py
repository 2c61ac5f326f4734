"""The oldest kernel that runs the dispatch program; `make kernels` tests it."""

from __future__ import annotations

import os
import re

from unmoor.errors import UnmoorError

#: Debian 12's. The program reads `ingress_ifindex` of its context, which Linux 5.17 added.
MIN_KERNEL = (6, 1)


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
