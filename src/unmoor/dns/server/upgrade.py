"""The protocol by which one release hands the running server to the next: sockets, connections, counters.

The serving parent starts the new release as its child, which inherits the sockets, builds its snapshot and
starts workers that wait. Only then does the old parent retire its own workers, one place after another, each
as the new one begins. Until the new release has reported that it is in force, the old one can continue as if
nothing had happened: whatever a broken release does, it does in a process that serves nobody yet.

Messages do not depend on the release: names and numbers as JSON, and descriptors.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from unmoor import jsontext, paths, process
from unmoor.dns.counters.counters import Totals
from unmoor.dns.server.listeners import Endpoint, Pair
from unmoor.errors import UnmoorError

#: Format of Handover. A newer release must read this one, or refuse.
FORMAT = 1
#: Seconds that a new release may take until its workers are ready.
READY_TIMEOUT = 90.0
#: Seconds that either side waits for a message of the other while places are handed over.
_MESSAGE_TIMEOUT = 5.0
#: Lines of a broken release's standard error that are reported.
_MAX_ERROR_LINES = 12
_MESSAGE = 65536


@dataclass(frozen=True, slots=True)
class Handover:
    """What a server passes to its successor, except the counters; sockets are descriptor numbers.

    `started` is the start of the first server in the chain, CLOCK_MONOTONIC seconds; `secret` is that of DNS
    cookies, for a document without one, in hexadecimal; each of `pairs` is address, port, place, UDP socket
    and TCP socket. `channel` and `errors` are set by Successor.
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
    """Return sockets in the form of Handover.pairs."""
    return [
        (str(where.address), where.port, where.place, pair.udp.fileno(), pair.tcp.fileno())
        for where, pair in pairs.items()
    ]


class Successor:
    """The new release, as seen by the running server."""

    def __init__(self, program: str, arguments: Iterable[str], handover: Handover) -> None:
        """Start `program`, the path of a release's `unmoor`. Raises UnmoorError if it cannot be run."""
        self.program = program
        self.deadline = time.monotonic() + READY_TIMEOUT
        #: By place: the socket to which the worker there sends its connections.
        self.inheritances: dict[int, socket.socket] = {}
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(_MESSAGE_TIMEOUT)
        errors = os.dup(2)
        handover = Handover(**{**asdict(handover), "channel": theirs.fileno(), "errors": errors})
        descriptor = _write(handover)
        sockets = [each for pair in handover.pairs for each in pair[3:]]
        try:
            self._process = process.start(
                [program, "dns", "serve", *arguments, "--resume", str(descriptor)],
                descriptors=[descriptor, theirs.fileno(), errors, handover.control, *sockets],
                capture_errors=True,
            )
        except UnmoorError:
            self.channel.close()
            raise
        finally:
            theirs.close()
            for each in (errors, descriptor):
                os.close(each)
        self.pid = self._process.pid

    def receive(self) -> bool:
        """Receive a message while the release prepares; returns whether all its workers are ready.

        Raises UnmoorError, with the end of its standard error, when it has failed.
        """
        message, descriptors = self._receive()
        if "place" in message and descriptors:
            self.inheritances[message["place"]] = socket.socket(fileno=descriptors[0])
        return message.get("ready") is True and bool(self.inheritances)

    def begin(self, place: int) -> None:
        """Let its worker at `place` begin. Raises UnmoorError when the release has failed."""
        try:
            self.channel.send(json.dumps({"begin": place}).encode())
        except OSError:
            raise UnmoorError(self.end()) from None

    def finish(self, totals: Totals, restarts: int) -> str:
        """Pass the counters and wait until the release is in force; returns its one-line summary.

        Raises UnmoorError when it has failed.
        """
        counters = _write({"totals": asdict(totals), "restarts": restarts})
        try:
            socket.send_fds(self.channel, [b'{"finish": true}'], [counters])
        except OSError:
            raise UnmoorError(self.end()) from None
        finally:
            os.close(counters)
        message, _ = self._receive()
        return str(message.get("in_force"))

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            raw, descriptors, _, _ = socket.recv_fds(self.channel, _MESSAGE, 1)
            message = jsontext.parse(raw)
        except (OSError, ValueError):
            raise UnmoorError(self.end()) from None
        return message if isinstance(message, dict) else {}, descriptors

    def end(self) -> str:
        """Kill the release if it still runs; returns how it failed."""
        timed_out = time.monotonic() > self.deadline
        # It may be about to exit, with a reason.
        gone = process.wait(self._process, 0 if timed_out else 1) is not None
        self.close()
        status = self._process.returncode
        how = (
            f"ended with status {status}"
            if gone
            else "was not ready in time"
            if timed_out
            else "stopped responding"
        )
        errors = self._errors()
        return f"{self.program} {how}" + (f":\n{errors}" if errors else "; see the journal")

    def _errors(self) -> str:
        stream = self._process.stderr
        if stream is None or stream.closed:
            return ""
        os.set_blocking(stream.fileno(), False)
        with stream:
            return process.last_lines((stream.read() or b"").decode(errors="replace"), _MAX_ERROR_LINES)

    def close(self) -> None:
        """Kill the release if it still runs; its workers end with it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self.channel.close()
        for each in self.inheritances.values():
            each.close()


class Predecessor:
    """The running server, as seen by the new release. `descriptor` refers to a Handover."""

    def __init__(self, descriptor: int) -> None:
        """Read the handover. Raises UnmoorError for a format that this release does not support."""
        found = _read(descriptor)
        if found.get("format") != FORMAT:
            raise UnmoorError(
                f"the running server hands over in format {found.get('format')}, and this release reads "
                f"{FORMAT}: restart it instead (systemctl restart {paths.DNS_UNIT})"
            )
        self.handover = Handover(**found)
        self.channel = socket.socket(fileno=self.handover.channel)
        self.channel.settimeout(_MESSAGE_TIMEOUT)
        self.control = socket.socket(fileno=self.handover.control)

    def pairs(self) -> dict[Endpoint, Pair]:
        """Return the sockets that it serves."""
        return {
            Endpoint(ip_address(address), port, place): Pair(
                socket.socket(fileno=udp), socket.socket(fileno=tcp)
            )
            for address, port, place, udp, tcp in self.handover.pairs
        }

    def restore_errors(self) -> None:
        """Redirect standard error to that of the server, which reads it until then to report a failure."""
        os.dup2(self.handover.errors, 2)

    def offer(self, inheritances: Mapping[int, socket.socket]) -> Iterator[int]:
        """Report that the workers are ready; yields each place when its worker is to begin.

        Raises UnmoorError when the server is gone.
        """
        for place, inheritance in inheritances.items():
            self._send({"place": place}, inheritance.fileno())
        self._send({"ready": True})
        left = len(inheritances)
        # Every worker may have to wait for its turn, each after a retirement of some seconds.
        self.channel.settimeout(READY_TIMEOUT)
        while left:
            message, _ = self._receive()
            yield message["begin"]
            left -= 1

    def counters(self) -> tuple[Totals, int]:
        """Wait for the counters and the number of restarted workers. Raises UnmoorError."""
        _, descriptors = self._receive()
        found = _read(descriptors[0])
        return Totals.of(found["totals"]), found["restarts"]

    def in_force(self, summary: str) -> None:
        """Report that this release is in force, so that the server exits and thereby closes the channel.

        Raises UnmoorError when it is gone.
        """
        self._send({"in_force": summary})
        os.close(self.handover.errors)

    def _send(self, message: Mapping[str, Any], *descriptors: int) -> None:
        try:
            socket.send_fds(self.channel, [json.dumps(message).encode()], descriptors)
        except OSError:
            raise UnmoorError(_CLOSED) from None

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            raw, descriptors, _, _ = socket.recv_fds(self.channel, _MESSAGE, 1)
        except OSError:
            raise UnmoorError(_CLOSED) from None
        if not raw:
            raise UnmoorError(_CLOSED)
        return json.loads(raw), descriptors


_CLOSED = "the running server has exited, or gave the upgrade up"


def check_program(program: str) -> str:
    """Return why `program` cannot be upgraded to; empty if it can be tried."""
    if not Path(program).is_absolute():
        return (
            f"{program or 'the program'}: is not an absolute path; name a release's bin/unmoor by --program"
        )
    if not os.access(program, os.X_OK) or Path(program).is_dir():
        return f"{program}: is not a program that this server's user may run"
    return ""


def _write(value: Any) -> int:
    """Write `value` as JSON into a memory file; returns its descriptor."""
    descriptor = os.memfd_create("unmoor-dns")
    with os.fdopen(os.dup(descriptor), "w") as stream:
        json.dump(asdict(value) if isinstance(value, Handover) else value, stream)
    return descriptor


def _read(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor) as stream:
        found: dict[str, Any] = json.load(stream)
    return found
