"""SSH access to a lab's hosts: keys, known hosts, and a client configuration."""

from __future__ import annotations

from pathlib import Path

from unmoor.lab.layout import MANAGEMENT, Layout
from unmoor.lab.topology import Topology
from unmoor.process import run

SSHD = """\
ListenAddress {address}
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
PrintMotd no
PrintLastLog no
# Ansible and testinfra open many connections at once.
MaxStartups 100:30:200
MaxSessions 100
"""

_COMMON = """\
Host *
    User root
    IdentityFile {state}/id_ed25519
    IdentitiesOnly yes
    PreferredAuthentications publickey
    StrictHostKeyChecking yes
    UserKnownHostsFile {state}/known_hosts
    GlobalKnownHostsFile /dev/null
    UpdateHostKeys no
    ProxyCommand ip netns exec {namespace} socat - TCP:%h:%p
    ControlMaster auto
    ControlPath {masters}/%n
    ControlPersist 60s
    ServerAliveInterval 5
    ServerAliveCountMax 3
    LogLevel ERROR
"""


def make_keys(layout: Layout, topology: Topology) -> None:
    """Generate key pairs of the lab and of each host in the state directory. Raises UnmoorError."""
    _keygen(layout.state / "id_ed25519", "lab")
    for host in topology.hosts:
        _keygen(layout.host(host) / "ssh_host_ed25519_key", host)


def public_key(layout: Layout) -> str:
    """Return the line for a guest's authorized_keys."""
    return _public(layout.state / "id_ed25519")


def write_config(layout: Layout, topology: Topology) -> None:
    """Write `ssh_config` and `known_hosts` for the lab's hosts."""
    layout.masters.mkdir(exist_ok=True)
    known = (
        f"{spec.management} {_public(layout.host(host) / 'ssh_host_ed25519_key')}"
        for host, spec in topology.hosts.items()
    )
    (layout.state / "known_hosts").write_text("".join(known), encoding="utf-8")
    layout.ssh_config.write_text(config(layout, topology), encoding="utf-8")


def config(layout: Layout, topology: Topology) -> str:
    """Return an ssh configuration with every host by its name."""
    hosts = "".join(
        f"Host {host}\n    HostName {spec.management}\n\n" for host, spec in topology.hosts.items()
    )
    namespace = layout.namespace(MANAGEMENT)
    return hosts + _COMMON.format(state=layout.state, namespace=namespace, masters=layout.masters)


def end_masters(layout: Layout) -> None:
    """Close the shared connections, which would outlive their hosts."""
    for path in layout.masters.glob("*"):
        # Fails if the master is dead and only its socket is left.
        run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "any"], check=False)
        path.unlink(missing_ok=True)


def _keygen(path: Path, comment: str) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def _public(path: Path) -> str:
    return path.with_name(f"{path.name}.pub").read_text(encoding="utf-8")
