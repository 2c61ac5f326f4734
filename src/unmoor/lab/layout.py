"""Where a lab's things are: names of namespaces and cgroups, and paths, all derived from the lab's name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from unmoor.errors import UnmoorError

#: What running labs need; it goes with a reboot of the computer.
STATE = Path("/run/unmoor-lab")
#: Names the lab's own management namespace and every host's management interface; no host may be called so.
MANAGEMENT = "mgmt"
#: Marks the lab's own routes (a protocol number of `ip route`), so that a guest's can be told from them.
ROUTE_PROTOCOL = "85"
#: Where guests see the image's apt repository.
GUEST_DEBS = "/srv/unmoor-debs"

# No '-': the first one in a namespace's name ends the lab's name.
_NAME = re.compile(r"[a-z][a-z0-9]{0,14}")


def cache() -> Path:
    """Where images and the hosts' writable layers are kept (environment: UNMOOR_LAB_CACHE)."""
    return Path(os.environ.get("UNMOOR_LAB_CACHE") or "/var/cache/unmoor-lab")


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and paths of one lab. Raises UnmoorError for a name that cannot be one."""

    name: str

    def __post_init__(self) -> None:
        """Refuse names that would not be unambiguous in the name of a namespace."""
        if not _NAME.fullmatch(self.name):
            raise UnmoorError(
                f"'{self.name}' cannot be the name of a lab: use a lower case letter,"
                " then at most 14 lower case letters and digits"
            )

    @property
    def state(self) -> Path:
        """Directory of everything small: records, keys, logs, process ids."""
        return STATE / self.name

    @property
    def disks(self) -> Path:
        """Link to the directory of the hosts' writable layers, which is on a real disk: they may grow."""
        return self.state / "disks"

    @property
    def record(self) -> Path:
        """What was built: the topology and the image in use. Written last of the building steps."""
        return self.state / "lab.json"

    @property
    def ssh_config(self) -> Path:
        """Reaches every host by its name: `ssh -F FILE HOST`."""
        return self.state / "ssh_config"

    @property
    def masters(self) -> Path:
        """Control sockets of shared ssh connections."""
        return self.state / "cm"

    def host(self, host: str) -> Path:
        """Directory of one host's process state and logs."""
        return self.state / "hosts" / host

    def routes(self, host: str, version: int) -> Path:
        """The host's routes of one family, as lines for `ip -batch`: set when it is made and at each boot."""
        return self.host(host) / f"routes.ipv{version}"

    def namespace(self, host: str) -> str:
        """Network namespace of a host, or of the management bridge."""
        return f"unmoor-{self.name}-{host}"

    def cgroup(self, host: str = "") -> Path:
        """Control group of the lab or of one host, relative to the root of each hierarchy."""
        return Path("unmoor-lab", self.name, host)
