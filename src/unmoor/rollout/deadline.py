"""The way back: what returns the edge to the generation before when nobody confirms the new one.

A transient timer on the monotonic clock fires at the deadline. Two units return the edge after a reboot or
a power loss: the first restores files before any of the edge's services start, the second does the rest
after the boot. All start the program of the *previous* release through a link, since the new release may
not even start.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from unmoor import paths
from unmoor.rollout import host
from unmoor.rollout.host import HostError
from unmoor.rollout.manifest import Link, Manifest
from unmoor.rollout.store import Pending, Store, sync

_UNITS = Path("/etc/systemd/system")
_BOOT, _FINISH = "unmoor-return-at-boot.service", "unmoor-return.service"


def clock() -> float:
    """Return the seconds since boot, with the time that the computer slept (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def due(pending: Pending) -> bool:
    """Whether the edge has to return: the deadline is over, or it has booted since."""
    return pending.boot != host.boot_id() or clock() >= pending.deadline


def returning_program(previous: Manifest, target: Manifest) -> str:
    """Return the path of the program that returns the edge: the previous release's, if it can.

    The release before a first rollout does not exist, and an old one may not know how: then the target's,
    and without a release in either, the running one.
    """
    for generation in (previous, target):
        link = generation.entries.get(str(paths.CURRENT_RELEASE))
        if isinstance(link, Link):
            program = os.path.normpath(paths.CURRENT_RELEASE.parent / link.target / "bin" / "unmoor")
            if host.run([program, "edge", "return", "--help"], timeout=60)[0] == 0:
                return program
    return "/usr/local/bin/unmoor"


def prepare(store: Store, program: str) -> None:
    """Install the units that return the edge after a boot by `program`. Raises HostError."""
    link = store.home / "program"
    new = link.with_name(".new-program")
    new.unlink(missing_ok=True)
    new.symlink_to(program)
    new.rename(link)
    sync(store.home)
    texts = {_BOOT: _at_boot(store.home), _FINISH: _after_boot(store.home)}
    if all((_UNITS / name).is_file() and (_UNITS / name).read_text() == text for name, text in texts.items()):
        return
    for name, text in texts.items():
        store.write(_UNITS / name, text.encode(), 0o644)
    host.must(["/usr/bin/systemctl", "daemon-reload"])
    host.must(["/usr/bin/systemctl", "--quiet", "enable", *texts])


def remove(store: Store) -> None:
    """Remove the units and the link: the host is as it was before Unmoor."""
    present = [name for name in (_BOOT, _FINISH) if (_UNITS / name).is_file()]
    if present:
        host.must(["/usr/bin/systemctl", "--quiet", "disable", *present])
        for name in present:
            (_UNITS / name).unlink()
        host.must(["/usr/bin/systemctl", "daemon-reload"])
    (store.home / "program").unlink(missing_ok=True)


def arm(store: Store, pending: Pending) -> None:
    """Start the timer of this deadline. Earlier timers stay; they find that the deadline has moved."""
    seconds = max(0.0, pending.deadline - clock())
    host.must([
        "/usr/bin/systemd-run", "--quiet", f"--on-active={seconds:.3f}s",
        "--timer-property=AccuracySec=100ms",
        "--collect", f"--unit=unmoor-return-{pending.deadline:.0f}-{os.getpid()}",
        "--description=Unmoor: return to the generation before",
        str(store.home / "program"), "edge", "return", "--home", str(store.home),
    ])  # fmt: skip


def finish_after_boot(store: Store) -> None:
    """Check that the second unit runs after this boot; the first calls it."""
    if not (_UNITS / _FINISH).is_file():
        raise HostError(f"{_UNITS / _FINISH}: is missing\n    fix: {store.home}/program edge return")


def _at_boot(home: Path) -> str:
    return f"""\
# Written by `unmoor edge apply`; exists while Unmoor is installed.
[Unit]
Description=Unmoor: restore the files of the confirmed generation
DefaultDependencies=no
RequiresMountsFor={home} /opt /usr
After=local-fs.target systemd-tmpfiles-setup.service
Before=sysinit.target shutdown.target
Conflicts=shutdown.target
ConditionPathExists={home}/pending

[Service]
Type=oneshot
ExecStart={home}/program edge return --at-boot --home {home}

[Install]
WantedBy=sysinit.target
"""


def _after_boot(home: Path) -> str:
    return f"""\
# Written by `unmoor edge apply`; exists while Unmoor is installed.
[Unit]
Description=Unmoor: return to the confirmed generation
After=multi-user.target
ConditionPathExists={home}/pending

[Service]
Type=oneshot
ExecStart={home}/program edge return --home {home}
Restart=on-failure
RestartSec=5s

[Install]
WantedBy=graphical.target multi-user.target
"""
