"""Starting other programs. No other module imports subprocess.

`run` waits for a program and returns its output, `start` leaves it running, `become` replaces this process.
All take a list of arguments; there is no shell.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, NoReturn

from unmoor.errors import UnmoorError

#: The Debian package of each program that Unmoor runs.
PACKAGES = {
    "apt-config": "apt",
    "apt-ftparchive": "apt-utils",
    "apt-get": "apt",
    "clang": "clang",
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
#: Of a failed program, the last lines of output in its error.
_MAX_LINES = 15
#: Characters of a command in an error.
_MAX_COMMAND = 200

NO_FIXES: Mapping[str, str] = {}
#: For programs that change the network or mounts.
NEEDS_ROOT = {"not permitted": "run this as root", "ermission denied": "run this as root"}

#: A program that `start` has started. Its standard error is a pipe if it was started with `capture_errors`.
Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Output:
    """The result of a program: exit status (negative: the signal that killed it), and decoded output."""

    status: int
    stdout: str
    stderr: str


class ProcessError(UnmoorError):
    """A program failed, timed out, or could not be started.

    `command` is its argument list; `status` its exit status, None if it has none; `stderr` the last lines of
    its standard error, or of its output if it wrote no error; `fix` what to do, empty if that is unknown.
    """

    def __init__(
        self, command: Sequence[str], why: str, *, status: int | None = None, stderr: str = "", fix: str = ""
    ) -> None:
        super().__init__(why)
        self.command, self.why, self.status, self.stderr, self.fix = tuple(command), why, status, stderr, fix

    def __str__(self) -> str:
        """Return one line, then the program's last lines and the fix, where there are any."""
        lines = [f"{shown(self.command)}: {self.why}" + ":" * bool(self.stderr)]
        lines += [f"    {line}" for line in self.stderr.splitlines()]
        lines += [f"    fix: {self.fix}"] * bool(self.fix)
        return "\n".join(lines)


def run(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    session: bool = False,
    check: bool = True,
    fixes: Mapping[str, str] = NO_FIXES,
) -> Output:
    """Run a program until it ends and return its output.

    `stdin` is its input, none by default; `timeout`, in seconds, is when it is killed; `env` is added to the
    environment; with `session` the program has a session of its own, so that Ctrl-C does not interrupt it.
    Raises ProcessError if the program times out, if it fails (with `check`), or if it cannot be started. The
    error's fix is the first of `fixes` whose key is in the program's output; of a missing program, it is to
    install the package.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL if stdin is None else None,
            input=None if stdin is None else stdin.encode(),
            capture_output=True,
            timeout=timeout,
            env=_environment(env),
            start_new_session=session,
            check=False,
        )
    except OSError as error:
        raise _not_started(command, error) from None
    except subprocess.TimeoutExpired as error:
        why = f"killed: it had not ended after {timeout:g} s"
        raise _failed(command, why, None, _text(error.stderr), fixes) from None
    output = Output(done.returncode, _text(done.stdout), _text(done.stderr))
    if check and output.status:
        text = output.stderr if output.stderr.strip() else output.stdout
        raise _failed(command, _ended(output.status), output.status, text, fixes)
    return output


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
    output: IO[bytes] | None = None,
    capture_errors: bool = False,
) -> Process:
    """Start a program without input that outlives this call.

    `env` is added to the environment; `descriptors` are inherited under the same numbers. It writes where
    this process does, or all to the file `output`; with `capture_errors`, standard error is a pipe. Raises
    ProcessError if it cannot be started.
    """
    errors = subprocess.PIPE if capture_errors else output and subprocess.STDOUT
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=_environment(env),
            pass_fds=descriptors,
        )
    except OSError as error:
        raise _not_started(command, error) from None


def become(command: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replace this process by a program with exactly the environment `env`. Raises ProcessError."""
    try:
        os.execvpe(command[0], list(command), dict(env))  # noqa: S606 - no shell is wanted: list arguments
    except OSError as error:
        raise _not_started(command, error) from None


def wait(process: Process, timeout: float) -> int | None:
    """Wait up to `timeout` seconds for a started program; return its exit status, None if it still runs."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None


def shown(command: Sequence[str]) -> str:
    """Return a command as a shell takes it, shortened in the middle to one or two lines."""
    text = shlex.join(command)
    if len(text) <= _MAX_COMMAND:
        return text
    half = _MAX_COMMAND // 2
    return f"{text[:half]} ... {text[-half:]}"


def last_lines(text: str, count: int = _MAX_LINES) -> str:
    """Return the last `count` lines of a program's output that are not empty."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-count:])


def _environment(added: Mapping[str, str] | None) -> dict[str, str] | None:
    return {**os.environ, **added} if added else None


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")


def _ended(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-status}"


def _failed(
    command: Sequence[str], why: str, status: int | None, text: str, fixes: Mapping[str, str]
) -> ProcessError:
    fix = next((fix for part, fix in fixes.items() if part in text), "")
    return ProcessError(command, why, status=status, stderr=last_lines(text), fix=fix)


def _not_started(command: Sequence[str], error: OSError) -> ProcessError:
    program = command[0]
    if not isinstance(error, FileNotFoundError):
        return ProcessError(command, f"cannot be run: {error.strerror}")
    package = PACKAGES.get(os.path.basename(program))  # noqa: PTH119 - a name, not a file
    fix = f"install the Debian package {package}" if package else ""
    return ProcessError((program,), "no such program", fix=fix)
