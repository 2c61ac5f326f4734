"""The server's side of transfers: runs the process that does them, and keeps the state that it reports."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from unmoor import process
from unmoor.dns.transfer.link import take_lines
from unmoor.model import DnsDocument
from unmoor.model.secrets import dump_with_secrets

log = logging.getLogger(__name__)

#: Seconds in which changes are collected, and at least from one new snapshot to the next.
_DELAY, _MIN_INTERVAL = 0.1, 1.0
#: Seconds until a process that ended is started again.
_RESTART = 1.0

#: Run by its path, isolated from the environment: another directory must not provide the modules.
_PROGRAM = Path(__file__).with_name("run_secondary.py")


class Transfers:
    """The transfer process, as seen by the server. `changed` holds the zones with a new version."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Made once: workers and transfer processes are replaced, and a NOTIFY waits for the next one.
        self._inbox, self.outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.outbox.setblocking(False)
        self._process: process.Process | None = None
        self.link: socket.socket | None = None
        self._received = bytearray()
        self._document: DnsDocument | None = None
        self.changed: set[str] = set()
        self.state: dict[str, dict[str, Any]] = {}
        self._due: float | None = None
        self._last = -_MIN_INTERVAL
        self._restart: float | None = None

    def sockets(self) -> list[socket.socket]:
        """Return the sockets that a worker must not keep."""
        return [self._inbox, *([self.link] if self.link else [])]

    def follow(self, document: DnsDocument) -> None:
        """Follow the zones of `document`, in a new process if they have changed."""
        wanted = _concerning(document)
        if self._document is not None and wanted == _concerning(self._document) and self._process:
            return
        self.stop()
        self._document = document
        if any(zone.primaries for zone in document.zones) or document.catalogs:
            self._start(wanted)

    def _start(self, wanted: DnsDocument) -> None:
        self.link, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._inbox.fileno())
            command = [sys.executable, "-I", str(_PROGRAM), *map(str, descriptors)]
            self._process = process.start(command, descriptors=descriptors)
        # Not as arguments, which every user can read: the document contains keys.
        setup = {"document": dump_with_secrets(wanted), "directory": str(self._directory.absolute())}
        with suppress(OSError):  # if it died, `read` finds out
            self.link.sendall(json.dumps(setup).encode() + b"\n")

    def stop(self) -> None:
        """End the process; the next one repeats unfinished transfers."""
        self._restart = None
        self.state.clear()
        self._received.clear()
        if self.link:
            self.link.close()
            self.link = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def read(self) -> None:
        """Receive messages of the process; if it has ended, schedule another."""
        if self.link is None:
            return
        try:
            chunk = self.link.recv(65536)
        except OSError:
            chunk = b""
        if not chunk:
            status = self._process.wait() if self._process else 0
            log.error("the transfer process ended with status %d; starting another", status)
            self.stop()
            self._restart = time.monotonic() + _RESTART
            return
        self._received += chunk
        for message in take_lines(self._received):
            if "state" in message:
                self.state[message["name"]] = message["state"]
            elif "gone" in message:
                self.state.pop(message["gone"], None)
            else:
                self.changed.add(message["changed"])
                if self._due is None:
                    self._due = max(time.monotonic() + _DELAY, self._last + _MIN_INTERVAL)

    def wait(self) -> float | None:
        """Return the seconds until `tick` is to be called; None if it is not."""
        times = [each for each in (self._due, self._restart) if each is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def tick(self) -> set[str]:
        """Restart the process if that is due; returns the names of zones with a new version to be served."""
        now = time.monotonic()
        if self._restart is not None and self._restart <= now and self._document:
            self.follow(self._document)
        if self._due is None or self._due > now:
            return set()
        found, self.changed, self._due, self._last = self.changed, set(), None, now
        return found

    def postpone(self, changed: set[str]) -> None:
        """Let `tick` return these names again, a second later."""
        self.changed |= changed
        self._due = time.monotonic() + _MIN_INTERVAL

    def decide(self, verdicts: dict[str, str | None]) -> None:
        """Report decisions on offers to the process: by zone, None or the reason of the refusal."""
        if verdicts and self.link:
            with suppress(OSError):
                self.link.sendall(json.dumps({"verdicts": verdicts}).encode() + b"\n")


def _concerning(document: DnsDocument) -> DnsDocument:
    """Return a document with only the parts that concern transfers."""
    zones = tuple(zone.model_copy(update={"records": "", "hostnames": ()}) for zone in document.zones)
    return document.model_copy(update={"zones": zones, "policies": (), "pools": {}})
