"""Run other programs for the lab; errors name the program and the Debian package to install."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, NoReturn

from unmoor.errors import UnmoorError

#: The Debian package of each program that the lab runs.
PACKAGES = {
    "apt-ftparchive": "apt-utils",
    "apt-get": "apt",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "socat": "socat",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sysctl": "procps",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
}


def require_root() -> None:
    """Raise UnmoorError unless this is root."""
    if os.geteuid() != 0:
        raise UnmoorError("a lab needs root (namespaces, mounts, control groups): run this as root")


def require_programs() -> None:
    """Raise UnmoorError with the packages to install if a program is missing."""
    missing = {package for program, package in PACKAGES.items() if not shutil.which(program)}
    if missing:
        raise UnmoorError(f"the lab needs more Debian packages: apt-get install {' '.join(sorted(missing))}")


def run(
    args: Sequence[str],
    *,
    stdin: str = "",
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program and return its output; `env` is added to the environment.

    Raises UnmoorError if the program is missing or, with `check`, fails; the message has the end of its
    output.
    """
    try:
        done = subprocess.run(
            args,
            input=stdin,
            env=os.environ | dict(env or {}),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise _missing(args[0]) from None
    if check and done.returncode:
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()[-15:]
        raise UnmoorError(
            f"'{' '.join(args)}' failed with status {done.returncode}:\n    " + "\n    ".join(output)
        )
    return done


def start(args: Sequence[str], *, env: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program that outlives this call; `env` is added to the environment. Raises UnmoorError."""
    try:
        return subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(env),
        )
    except FileNotFoundError:
        raise _missing(args[0]) from None


def become(args: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replace this process by a program with the environment `env`. Raises UnmoorError."""
    try:
        os.execvpe(args[0], list(args), dict(env))  # noqa: S606 - no shell is wanted: list arguments
    except FileNotFoundError:
        raise _missing(args[0]) from None


def _missing(program: str) -> UnmoorError:
    package = PACKAGES.get(program, program)
    return UnmoorError(f"the program '{program}' is missing: apt-get install {package}")
