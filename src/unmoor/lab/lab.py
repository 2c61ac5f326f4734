"""A whole lab: build, remove and report its state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from unmoor import paths
from unmoor.errors import UnmoorError
from unmoor.lab import cgroup, guest, image, layout, network, ssh, state, supervisor
from unmoor.lab.layout import Layout
from unmoor.lab.requirements import inotify_advice, require_inotify, require_programs, require_root
from unmoor.lab.state import Phase, State
from unmoor.lab.topology import Topology
from unmoor.process import run

Kind = Literal["golden", "bare"]
Report = Callable[[str], None]

_START_TIMEOUT = 60.0  # seconds until a supervisor has started
_BOOT_TIMEOUT = 300.0  # seconds until a host has booted, or its systemd has answered


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a complete lab: topology, kind of host, image."""

    topology: Topology
    kind: Kind
    image: Path

    def write(self, path: Path) -> None:
        """Write to `path` atomically. The file exists only if the lab is complete."""
        data = {
            "kind": self.kind,
            "image": str(self.image),
            "topology": self.topology.model_dump(mode="json"),
        }
        new = path.with_suffix(".new")
        new.write_text(json.dumps(data, indent=1), encoding="utf-8")
        new.rename(path)


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The state of one host: phase, state of its systemd, and addresses."""

    host: str
    phase: Phase
    system: str
    boots: int
    leader: int
    management: str
    addresses: Mapping[str, list[str]]


def record(place: Layout) -> Record:
    """Read the lab's record. Raises UnmoorError if the lab is not up."""
    try:
        data = json.loads(place.record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnmoorError(f"lab {place.name} is not up: run 'unmoor lab up --name {place.name}'") from None
    except PermissionError:
        raise UnmoorError("a lab needs root: run this as root") from None
    try:
        return Record(Topology.model_validate(data["topology"]), data["kind"], Path(data["image"]))
    except (KeyError, ValidationError):
        raise UnmoorError(
            f"lab {place.name} was built by another version of unmoor:"
            f" run 'unmoor lab down --name {place.name}' first"
        ) from None


def up(place: Layout, topology: Topology, kind: Kind, report: Report) -> None:
    """Build the lab if it does not exist, start hosts that are off, and wait until all have booted.

    Raises UnmoorError, also if the lab was built from another topology.
    """
    require_root()
    require_programs()
    with _locked(place):
        is_built = place.record.exists()
        if not is_built:
            # Remains of a failed `up` would break the build.
            _remove(place)
        require_inotify(sum(state.read(place, host).phase == "off" for host in topology.hosts))
        if not is_built:
            _build(place, topology, kind, report)
        built = record(place)
        if (built.topology, built.kind) != (topology, kind):
            raise UnmoorError(
                f"lab {place.name} is up with another topology or image:"
                f" run 'unmoor lab down --name {place.name}' first"
            )
        started = [host for host in topology.hosts if state.read(place, host).phase == "off"]
        for host in started:
            lower = image.lower_layers(built.image, kind)
            supervisor.launch(place, host, lower, built.image / "debs")
        _wait(place, topology)
    for host in started:
        _warn_of_failed_units(place, host, report)


def down(place: Layout) -> None:
    """Remove the lab, whatever state it is in. Idempotent."""
    require_root()
    with _locked(place):
        _remove(place)
        shutil.rmtree(place.state)
    for shared in (paths.LAB_STATE, layout.cache() / "disks"):
        with contextlib.suppress(OSError):
            shared.rmdir()


def names() -> list[str]:
    """Return the names of all labs, including incomplete ones."""
    found = {path.name for path in paths.LAB_STATE.glob("*")}
    found |= {path.name for path in (layout.cache() / "disks").glob("*")}
    for root in cgroup.hierarchies():
        found |= {path.name for path in (root / "unmoor-lab").glob("*/")}
    return sorted(found)


def status(place: Layout) -> list[HostStatus]:
    """Return the state of every host. Raises UnmoorError if the lab is not up."""
    topology = record(place).topology
    return [_host_status(place, topology, host) for host in topology.hosts]


def _host_status(place: Layout, topology: Topology, host: str) -> HostStatus:
    now, spec = state.read(place, host), topology.hosts[host]
    return HostStatus(
        host,
        now.phase,
        _systemctl(now.leader, "is-system-running") if now.phase == "ready" else "",
        now.boots,
        now.leader,
        str(spec.management),
        {name: [str(address) for address in addresses] for name, addresses in spec.addresses.items()},
    )


def _build(place: Layout, topology: Topology, kind: Kind, report: Report) -> None:
    wanted = layout.cache() / image.key(topology.image)
    if not wanted.is_dir():
        report(f"building the image of {topology.image.suite} (once; a few minutes)")
    with image.ready(topology.image) as path:
        disks = layout.cache() / "disks" / place.name
        disks.mkdir(parents=True)
        place.disks.symlink_to(disks)
        for host in topology.hosts:
            place.host(host).mkdir(parents=True)
            cgroup.create(place.cgroup(host))
        ssh.make_keys(place, topology)
        ssh.write_config(place, topology)
        for host in topology.hosts:
            guest.prepare(place, topology, host)
        network.build(place, topology)
        Record(topology, kind, path).write(place.record)


def _wait(place: Layout, topology: Topology) -> None:
    """Wait until every host has booted. Raises UnmoorError for the first that fails."""
    begun = time.monotonic()
    booting: set[str] = set()
    while True:
        hosts = {host: state.read(place, host) for host in topology.hosts}
        if all(now.phase == "ready" for now in hosts.values()):
            return
        waited = time.monotonic() - begun
        for host, now in hosts.items():
            if now.phase == "off":
                failed = host in booting or waited > _START_TIMEOUT
            else:
                booting.add(host)
                failed = now.phase == "booting" and waited > _BOOT_TIMEOUT
            if failed:
                raise UnmoorError(_failure(place, host, now))
        time.sleep(0.05)


def _failure(place: Layout, host: str, now: State) -> str:
    log = place.host(host) / "log"
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    lines = "\n    ".join(tail)
    what = f"host {host} did not boot ({now.phase}, status {now.status}); the end of {log}:"
    return f"{what}\n    {lines}{inotify_advice(lines)}"


def _warn_of_failed_units(place: Layout, host: str, report: Report) -> None:
    leader = state.read(place, host).leader
    if _systemctl(leader, "is-system-running") == "degraded":
        units = _systemctl(leader, "list-units", "--failed", "--plain", "--no-legend")
        report(f"host {host} is degraded; failed units:\n{units}{inotify_advice('')}")


def _systemctl(leader: int, *args: str) -> str:
    command = guest.command(leader, ["systemctl", *args])
    clean = ["env", "-i", *_pairs(guest.environment({})), *command]
    return run(clean, check=False, timeout=_BOOT_TIMEOUT).stdout.strip()


def _pairs(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def _remove(place: Layout) -> None:
    """Remove everything but the state directory, which is the lock."""
    ssh.end_masters(place)
    cgroup.kill(place.cgroup())
    for pid in network.processes(place):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    network.destroy(place)
    cgroup.remove(place.cgroup())
    for disks in {place.disks.resolve(), layout.cache() / "disks" / place.name}:
        if disks.exists():
            shutil.rmtree(disks)
    for path in place.state.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def _locked(place: Layout) -> Iterator[None]:
    """Lock the lab's state directory: one `up` or `down` at a time."""
    while True:
        place.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(place.state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The previous holder may have removed the directory: then lock the new one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), place.state.stat()):
                    yield
                    return
        finally:
            os.close(descriptor)
