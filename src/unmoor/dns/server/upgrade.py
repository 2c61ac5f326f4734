"""One release hands the running server to the next: sockets, connections, counters, and then the name.

The parent that serves starts the new release as its child, which inherits the sockets, builds its snapshot
and starts workers that stand by. Only then does the old parent retire its own workers, one place after
another, each as the new one begins. Until the new release has said that it is in force, the old one can go
on as if nothing had been tried: whatever a broken release does, it does in a process that nobody needs.

What the two say to each other does not depend on the release: names and numbers as JSON, and descriptors.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from unmoor import jsontext
from unmoor.dns.counters.counters import Totals
from unmoor.dns.server.listeners import Endpoint, Pair
from unmoor.errors import UnmoorError

#: Of what one release leaves to the next. A newer one must read this, or refuse.
FORMAT = 1
#: Seconds that a new release may take until its workers stand by.
PATIENCE = 90.0
#: Seconds that either side waits for the other while places change hands.
_WORD_PATIENCE = 5.0
#: How much of what a broken release said is repeated, lines.
_LAST_WORDS = 12
_MESSAGE = 65536


@dataclass(frozen=True, slots=True)
class Estate:
    """What a server leaves to its successor, beside the counters; sockets are descriptor numbers.

    `started` is when the first of them began, CLOCK_MONOTONIC seconds; `secret` is that of DNS cookies, for
    a document without one, in hexadecimal; each of `pairs` is address, port, place, UDP and TCP socket.
    """

    generation: int
    restarts: int
    started: float
    secret: str
    control: int
    pairs: list[tuple[str, int, int, int, int]]
    format: int = FORMAT
    channel: int = -1
    errors: int = -1


def describe(pairs: Mapping[Endpoint, Pair]) -> list[tuple[str, int, int, int, int]]:
    """Write sockets as an estate holds them."""
    return [
        (str(where.address), where.port, where.place, pair.udp.fileno(), pair.tcp.fileno())
        for where, pair in pairs.items()
    ]


class Successor:
    """The new release, as the server that it is to replace sees it."""

    def __init__(self, program: str, arguments: Iterable[str], estate: Estate) -> None:
        """Start `program`, the path of a release's `unmoor`. Raises UnmoorError if it cannot be run."""
        self.program = program
        self.deadline = time.monotonic() + PATIENCE
        #: By place: where the connections of the worker there are to be sent.
        self.inheritances: dict[int, socket.socket] = {}
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(_WORD_PATIENCE)
        errors = os.dup(2)
        estate = Estate(**{**asdict(estate), "channel": theirs.fileno(), "errors": errors})
        will = _write(estate)
        sockets = [each for pair in estate.pairs for each in pair[3:]]
        try:
            self._process = subprocess.Popen(
                [program, "dns", "serve", *arguments, "--resume", str(will)],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[will, theirs.fileno(), errors, estate.control, *sockets],
            )
        except OSError as error:
            self.channel.close()
            raise UnmoorError(f"cannot run {program}: {error.strerror}") from None
        finally:
            theirs.close()
            for each in (errors, will):
                os.close(each)
        self.pid = self._process.pid

    def hear(self) -> bool:
        """Take what it says while it prepares; gives whether all its workers stand by.

        Raises UnmoorError, with its last words, when it has failed.
        """
        message, descriptors = self._receive()
        if "place" in message and descriptors:
            self.inheritances[message["place"]] = socket.socket(fileno=descriptors[0])
        return message.get("ready") is True and bool(self.inheritances)

    def begin(self, place: int) -> None:
        """Have its worker at `place` begin. Raises UnmoorError when it has failed."""
        try:
            self.channel.send(json.dumps({"begin": place}).encode())
        except OSError:
            raise UnmoorError(self.last_words()) from None

    def finish(self, totals: Totals, restarts: int) -> str:
        """Leave it the counters and wait until it is in force; gives what it says of itself.

        Raises UnmoorError when it has failed.
        """
        counters = _write({"totals": asdict(totals), "restarts": restarts})
        try:
            socket.send_fds(self.channel, [b'{"finish": true}'], [counters])
        except OSError:
            raise UnmoorError(self.last_words()) from None
        finally:
            os.close(counters)
        message, _ = self._receive()
        return str(message.get("in_force"))

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            raw, descriptors, _, _ = socket.recv_fds(self.channel, _MESSAGE, 1)
            message = jsontext.parse(raw)
        except (OSError, ValueError):
            raise UnmoorError(self.last_words()) from None
        return message if isinstance(message, dict) else {}, descriptors

    def last_words(self) -> str:
        """End it, and say how it failed."""
        timed_out = time.monotonic() > self.deadline
        with suppress(subprocess.TimeoutExpired):  # it may be about to end by itself, with a reason
            self._process.wait(0 if timed_out else 1)
        gone = self._process.poll() is not None
        self.close()
        status = self._process.returncode
        how = (
            f"ended with status {status}" if gone else "was not ready in time" if timed_out else "fell silent"
        )
        said = self._said()
        return f"{self.program} {how}" + (f"; its last words:\n{said}" if said else "; see the journal")

    def _said(self) -> str:
        stream = self._process.stderr
        if stream is None or stream.closed:
            return ""
        os.set_blocking(stream.fileno(), False)
        with stream:
            lines = (stream.read() or b"").decode(errors="replace").splitlines()
        return "\n".join(lines[-_LAST_WORDS:])

    def close(self) -> None:
        """End it, if it lives: its workers end with it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self.channel.close()
        for each in self.inheritances.values():
            each.close()


class Predecessor:
    """The server that is to be replaced, as the new release sees it. `descriptor` is that of its estate."""

    def __init__(self, descriptor: int) -> None:
        """Read the estate. Raises UnmoorError for one that this release does not understand."""
        found = _read(descriptor)
        if found.get("format") != FORMAT:
            raise UnmoorError(
                f"the running server leaves its sockets in format {found.get('format')}, and this release "
                f"reads {FORMAT}: restart it instead (systemctl restart unmoor-dns)"
            )
        self.estate = Estate(**found)
        self.channel = socket.socket(fileno=self.estate.channel)
        self.channel.settimeout(_WORD_PATIENCE)
        self.control = socket.socket(fileno=self.estate.control)

    def pairs(self) -> dict[Endpoint, Pair]:
        """Give the sockets that it serves."""
        return {
            Endpoint(ip_address(address), port, place): Pair(
                socket.socket(fileno=udp), socket.socket(fileno=tcp)
            )
            for address, port, place, udp, tcp in self.estate.pairs
        }

    def restore_errors(self) -> None:
        """Send messages where the server sends its own; before this, it reads them to know why we failed."""
        os.dup2(self.estate.errors, 2)

    def offer(self, inheritances: Mapping[int, socket.socket]) -> Iterator[int]:
        """Say that workers stand by; gives each place as it is ours to begin, until all are.

        Raises UnmoorError when the server is gone.
        """
        for place, inheritance in inheritances.items():
            self._say({"place": place}, inheritance.fileno())
        self._say({"ready": True})
        left = len(inheritances)
        # All our workers may have to wait for their turn, each after a retirement of some seconds.
        self.channel.settimeout(PATIENCE)
        while left:
            message, _ = self._receive()
            yield message["begin"]
            left -= 1

    def counters(self) -> tuple[Totals, int]:
        """Wait for what was counted, and how many workers were replaced. Raises UnmoorError."""
        _, descriptors = self._receive()
        found = _read(descriptors[0])
        return Totals.of(found["totals"]), found["restarts"]

    def in_force(self, summary: str) -> None:
        """Say that the server may go; its end closes the channel. Raises UnmoorError when it is gone."""
        self._say({"in_force": summary})
        os.close(self.estate.errors)

    def _say(self, message: Mapping[str, Any], *descriptors: int) -> None:
        try:
            socket.send_fds(self.channel, [json.dumps(message).encode()], descriptors)
        except OSError:
            raise UnmoorError(_GONE) from None

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            raw, descriptors, _, _ = socket.recv_fds(self.channel, _MESSAGE, 1)
        except OSError:
            raise UnmoorError(_GONE) from None
        if not raw:
            raise UnmoorError(_GONE)
        return json.loads(raw), descriptors


_GONE = "the server that was to be replaced is gone, or gave the upgrade up"


def check_program(program: str) -> str:
    """Say why `program` is nothing to be replaced by; nothing if it may be tried."""
    if not Path(program).is_absolute():
        return f"{program or 'the program'}: is no absolute path; name a release's bin/unmoor by --program"
    if not os.access(program, os.X_OK) or Path(program).is_dir():
        return f"{program}: is no program that this server's user may run"
    return ""


def _write(what: Any) -> int:
    """Put `what` into memory that a descriptor stands for."""
    descriptor = os.memfd_create("unmoor-dns")
    with os.fdopen(os.dup(descriptor), "w") as stream:
        json.dump(asdict(what) if isinstance(what, Estate) else what, stream)
    return descriptor


def _read(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor) as stream:
        found: dict[str, Any] = json.load(stream)
    return found
