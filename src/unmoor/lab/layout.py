"""Paths and names of a lab: files, namespaces and cgroups, all derived from the lab's name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from unmoor import paths
from unmoor.errors import UnmoorError

#: Name of the management namespace and of each host's management interface; no host may have it.
MANAGEMENT = "mgmt"
#: Protocol number (`ip route`) of the lab's routes, which distinguishes them from those of a guest.
ROUTE_PROTOCOL = "85"
#: Path of the image's apt repository in a guest.
GUEST_DEBS = "/srv/unmoor-debs"

# No '-': the first one in a namespace's name ends the lab's name.
_NAME = re.compile(r"[a-z][a-z0-9]{0,14}")


def cache() -> Path:
    """Return the directory of images and writable layers (environment: UNMOOR_LAB_CACHE)."""
    return Path(os.environ.get("UNMOOR_LAB_CACHE") or paths.LAB_CACHE)


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and paths of one lab. Raises UnmoorError for an invalid name."""

    name: str

    def __post_init__(self) -> None:
        """Refuse names that would be ambiguous in the name of a namespace."""
        if not _NAME.fullmatch(self.name):
            raise UnmoorError(
                f"'{self.name}' cannot be the name of a lab: use a lower case letter,"
                " then at most 14 lower case letters and digits"
            )

    @property
    def state(self) -> Path:
        """Directory of records, keys, logs and process ids."""
        return paths.LAB_STATE / self.name

    @property
    def disks(self) -> Path:
        """Link to the directory of the hosts' writable layers, which is on disk."""
        return self.state / "disks"

    @property
    def record(self) -> Path:
        """File with the topology and the image in use, written when the lab is complete."""
        return self.state / "lab.json"

    @property
    def ssh_config(self) -> Path:
        """SSH configuration with every host: `ssh -F FILE HOST`."""
        return self.state / "ssh_config"

    @property
    def masters(self) -> Path:
        """Directory of the control sockets of shared ssh connections."""
        return self.state / "cm"

    def host(self, host: str) -> Path:
        """Directory of one host's process state and logs."""
        return self.state / "hosts" / host

    def routes(self, host: str, version: int) -> Path:
        """File of the host's routes of one family, for `ip -batch`; applied at each boot."""
        return self.host(host) / f"routes.ipv{version}"

    def namespace(self, host: str) -> str:
        """Network namespace of a host, or of the management bridge."""
        return f"unmoor-{self.name}-{host}"

    def cgroup(self, host: str = "") -> Path:
        """Control group of the lab or of one host, relative to the root of each hierarchy."""
        return Path("unmoor-lab", self.name, host)
