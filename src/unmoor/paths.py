"""Default paths, and the units that messages name. No other module repeats them.

The roles install an edge's files and units under the same names. Directories of one edge are separate because
systemd makes each for the user of its unit (RuntimeDirectory=, StateDirectory=).
"""

from __future__ import annotations

from pathlib import Path

#: An edge's two documents.
EDGE_DOCUMENT = Path("/etc/unmoor/edge.json")
DNS_DOCUMENT = Path("/etc/unmoor/dns.json")

#: Where the BPF file system is mounted, and the directory of all pins on it.
BPF_FS = Path("/sys/fs/bpf")
PINS = BPF_FS / "unmoor"
#: Socket of the activation service.
ACTIVATION_SOCKET = Path("/run/unmoor/activation.sock")

#: Socket of the DNS server for `unmoor dns reload`, `status` and others.
DNS_CONTROL_SOCKET = Path("/run/unmoor-dns/control.sock")
#: Directory of the DNS server's journal, and of its copies of transferred zones.
DNS_STATE = Path("/var/lib/unmoor-dns")
#: Directory of registries, each named after its content.
REGISTRIES = Path("/var/lib/unmoor/registry")

#: Link to the release of an edge that is in force.
CURRENT_RELEASE = Path("/opt/unmoor/current")
#: Generations of an edge.
GENERATIONS = Path("/var/lib/unmoor/generations")

#: State of running labs; on a tmpfs, so it ends with a reboot of the computer.
LAB_STATE = Path("/run/unmoor-lab")
#: Images and writable layers of labs.
LAB_CACHE = Path("/var/cache/unmoor-lab")

#: Units of an edge.
DNS_UNIT = "unmoor-dns.service"
SOCKETS_UNIT = "unmoor-sockets.service"
ACTIVATION_UNIT = "unmoor-activation.service"
