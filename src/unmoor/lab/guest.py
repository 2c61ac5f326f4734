"""One host of a lab: the files that differ from the image, and commands run in the host."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from unmoor.errors import UnmoorError
from unmoor.lab import cgroup, ssh
from unmoor.lab.layout import Layout
from unmoor.lab.state import read
from unmoor.lab.topology import Topology
from unmoor.process import become

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def prepare(layout: Layout, topology: Topology, host: str) -> None:
    """Write the host's own files into its writable layer: names, machine id, keys, ssh."""
    upper = layout.disks / host / "upper"
    for directory in (upper, upper.with_name("work"), layout.host(host) / "root"):
        directory.mkdir(parents=True)
    keys = layout.host(host) / "ssh_host_ed25519_key"
    spec = topology.hosts[host]
    files: dict[str, tuple[str, int]] = {
        "etc/hostname": (f"{host}\n", 0o644),
        "etc/hosts": (_hosts(topology), 0o644),
        "etc/machine-id": (f"{uuid.uuid4().hex}\n", 0o444),
        "etc/resolv.conf": ("".join(f"nameserver {address}\n" for address in spec.nameservers), 0o644),
        "etc/ssh/sshd_config.d/lab.conf": (ssh.SSHD.format(address=spec.management), 0o644),
        "etc/ssh/ssh_host_ed25519_key": (keys.read_text(encoding="utf-8"), 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (keys.with_suffix(".pub").read_text(encoding="utf-8"), 0o644),
        "root/.ssh/authorized_keys": (ssh.public_key(layout), 0o600),
    }
    for name, (text, mode) in files.items():
        _write(upper, Path(name), text, mode)
    (upper / "root").chmod(0o700)
    (upper / "root/.ssh").chmod(0o700)


def _write(root: Path, name: Path, text: str, mode: int) -> None:
    """Write a file of the guest; its directories get mode 755, independent of the umask."""
    for directory in reversed((root / name).relative_to(root).parents):
        (root / directory).mkdir(exist_ok=True)
        (root / directory).chmod(0o755)
    (root / name).write_text(text, encoding="utf-8")
    (root / name).chmod(mode)


def _hosts(topology: Topology) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [
        f"{address} {host}"
        for host, spec in topology.hosts.items()
        for addresses in spec.addresses.values()
        for address in addresses
    ]
    return "\n".join(lines) + "\n"


def command(leader: int, args: Sequence[str]) -> list[str]:
    """Return arguments that run `args` inside the guest whose init process is `leader`."""
    enter = ["nsenter", f"--target={leader}", "--all", "--root", "--wdns=/root", "--no-fork", "--"]
    # At shutdown a guest stops its processes, kills them and waits until all are reaped. A forking nsenter
    # stops itself with its child, and so would never reap it; a shell does not.
    shell = ["sh", "-c", '"$@"; exit "$?"', "sh"]
    # So that the command ends with the shell that started it.
    return [*enter, *shell, "setpriv", "--pdeathsig", "TERM", "--", *args]


def environment(outside: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command in a guest: that of root, with the terminal of `outside`."""
    kept = {name: outside[name] for name in ("TERM", "COLUMNS", "LINES") if name in outside}
    names = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}
    return {"PATH": _PATH, "LANG": "C.UTF-8", **names, **kept}


def execute(layout: Layout, host: str, args: Sequence[str]) -> None:
    """Replace this process by `args` inside the host.

    Raises UnmoorError if the host is not running.
    """
    now = read(layout, host)
    if not now.leader:
        raise UnmoorError(f"host {host} of lab {layout.name} is {now.phase}: 'unmoor lab up' starts it")
    cgroup.enter(layout.cgroup(host) / cgroup.EXEC)
    become(command(now.leader, args), environment(os.environ))
