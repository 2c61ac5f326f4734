"""The supervisor process of one host: it mounts the root, boots the host, and boots it again on a reboot.

It has its own mount namespace: the host's mounts are private, and end with the supervisor.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

from unmoor.lab import cgroup, network
from unmoor.lab.layout import GUEST_DEBS, Layout
from unmoor.lab.state import State, read
from unmoor.process import run, start

#: Exit status of nspawn when the guest reboots.
_REBOOT = 133


def launch(layout: Layout, host: str, lower: tuple[Path, ...], debs: Path) -> None:
    """Start the supervisor of a host in the background, detached from this process and its terminal."""
    args = ["setsid", "--fork", "unshare", "--mount", "--propagation", "slave", "--"]
    module = [sys.executable, "-P", "-m", __name__, layout.name, host, ":".join(map(str, lower)), str(debs)]
    with (layout.host(host) / "log").open("ab") as log:
        start([*args, *module], output=log).wait()


def supervise(layout: Layout, host: str, lower: str, debs: str) -> None:
    """Boot the host until it powers off; return at once if it has another supervisor."""
    os.chdir("/")
    cgroup.enter(layout.cgroup(host) / cgroup.SUPERVISOR)
    directory = layout.host(host)
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # A killed `up` had started one, and the next `up` started this one.
        return
    now = State("booting", supervisor=os.getpid(), boots=read(layout, host).boots)
    now.write(directory)
    _mount(layout, host, lower)
    while True:
        now = _boot(layout, host, debs, now)
        if now.status != _REBOOT:
            break
        network.reset(layout, host)
    replace(now, phase="off", supervisor=0).write(directory)


def _mount(layout: Layout, host: str, lower: str) -> None:
    disk = layout.disks / host
    # A volatile overlay syncs nothing, and leaves a mark in the work directory that prevents another mount
    # after a crash of the computer.
    shutil.rmtree(disk / "work")
    (disk / "work").mkdir()
    options = f"lowerdir={lower},upperdir={disk / 'upper'},workdir={disk / 'work'},volatile"
    run(["mount", "-t", "overlay", "overlay", "-o", options, str(layout.host(host) / "root")])
    # nspawn keeps state here, which would outlive it if it is killed.
    Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", "tmpfs", "/run/systemd/nspawn"])


def _boot(layout: Layout, host: str, debs: str, now: State) -> State:
    """Boot the guest once and wait for its end; return the state with nspawn's exit status."""
    directory, group = layout.host(host), layout.cgroup(host)
    address = directory / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (directory / "log").open("ab") as log:
        notify.bind(str(address))
        env = {
            "NOTIFY_SOCKET": str(address),
            # BPF and sysctl need /sys and /proc/sys writable.
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes",
            "SYSTEMD_NSPAWN_LOCK": "0",
        }
        # A guest outlives a killed nspawn or supervisor; and cgroups left by the previous boot would refuse
        # processes (cgroup v2).
        cgroup.remove(group / cgroup.GUEST)
        cgroup.create(group)
        # A child process starts in the cgroup of its parent.
        cgroup.enter(group / cgroup.GUEST)
        nspawn = start(_nspawn(layout, host, debs), env=env, output=log)
        cgroup.enter(group / cgroup.SUPERVISOR)
        now = replace(now, phase="booting", boots=now.boots + 1)
        now.write(directory)
        pidfd = os.pidfd_open(nspawn.pid)
        while True:
            readable, _, _ = select.select([notify.fileno(), pidfd], [], [])
            if pidfd in readable:
                break
            now = _notified(now, notify.recv(4096).decode(errors="replace"))
            now.write(directory)
        os.close(pidfd)
    cgroup.kill(group / cgroup.GUEST)
    return replace(now, phase="off", leader=0, status=nspawn.wait())


def _nspawn(layout: Layout, host: str, debs: str) -> list[str]:
    return [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--register=no",
        "--keep-unit",
        "--notify-ready=yes",
        "--console=pipe",
        "--resolv-conf=off",
        "--timezone=off",
        "--capability=all",
        "--system-call-filter=bpf pidfd_getfd",
        f"--directory={layout.host(host) / 'root'}",
        f"--machine={layout.namespace(host)}",
        f"--hostname={host}",
        f"--network-namespace-path=/run/netns/{layout.namespace(host)}",
        f"--bind-ro={debs}:{GUEST_DEBS}",
    ]


def _notified(now: State, message: str) -> State:
    """Return the state after a message of nspawn (sd_notify): the guest's init process, or readiness."""
    for line in message.splitlines():
        name, _, value = line.partition("=")
        if name == "X_NSPAWN_LEADER_PID":
            now = replace(now, leader=int(value))
        elif line == "READY=1":
            now = replace(now, phase="ready")
    return now


if __name__ == "__main__":
    _name, _host, _lower, _debs = sys.argv[1:]
    supervise(Layout(_name), _host, _lower, _debs)
