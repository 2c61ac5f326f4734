"""The process that keeps transferred zones and catalogs fresh (RFC 1034 section 4.3.5, RFC 1996).

It asks primaries, writes a new version as an offer beside the zone's copy, and sends a message to the server,
which accepts or refuses the offer. It shares only a socket and the directory of copies with the server, so
nothing that it does delays an answer.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from unmoor.dns.protocol import names
from unmoor.dns.transfer import transfer
from unmoor.dns.transfer.checks import Checks
from unmoor.dns.transfer.link import Link
from unmoor.dns.transfer.members import Members
from unmoor.dns.transfer.schedule import MIN_INTERVAL, Followed, Schedule
from unmoor.dns.zones.zone_store import CopyKey, Store
from unmoor.model import DnsDocument, validate

log = logging.getLogger(__name__)


class Secondary:
    """Follows the zones and catalogs of `document` until the server closes its end of `link`.

    `notify` carries the NOTIFYs that workers pass on.
    """

    def __init__(
        self, document: DnsDocument, store: Store, link: socket.socket, notify: socket.socket
    ) -> None:
        self._document = document
        self._link_sock = link
        self._link = Link(link)
        self._notify = notify
        self._selector = selectors.DefaultSelector()
        self._schedule = Schedule(store, self._link)
        self._members = Members(document, store, self._schedule, self._link)
        self._checks = Checks(store, self._schedule, self._members, self._link, document.transfer_limit)

    def run(self) -> None:
        """Follow; returns when the server is gone."""
        for sock in (self._link_sock, self._notify):
            sock.setblocking(False)
        self._watch(self._link_sock, self._serve_link)
        self._watch(self._notify, lambda _: self._read_notify())
        self._watch(self._checks.woken, lambda _: self._checks.collect())
        self._begin()
        while True:
            self._selector.modify(self._link_sock, self._link.events, self._serve_link)
            for key, events in self._selector.select(self._schedule.wait()):
                try:
                    key.data(events)
                except EOFError:
                    return
            self._run_timers()

    def _watch(self, sock: socket.socket, handler: Callable[[int], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, handler)

    def _begin(self) -> None:
        """Follow the document's zones and catalogs, and the members as last known."""
        keys = self._document.tsig_keys
        for zone in self._document.zones:
            if zone.primaries:
                sources = transfer.sources(zone.primaries, keys)
                self._schedule.follow(Followed(CopyKey(names.from_text(zone.name)), sources))
        for each in self._document.catalogs:
            sources = transfer.sources(each.primaries, keys)
            followed = Followed(CopyKey(names.from_text(each.name)), sources, is_catalog=True)
            self._members.read(followed)
            self._schedule.follow(followed)
        self._members.update()

    def _run_timers(self) -> None:
        now = time.monotonic()
        for followed in self._schedule.run_out(now):
            if followed.serial is not None and not followed.expired and followed.expires <= time.time():
                followed.expired = True
                log.error("zone %s: expired, no primary has confirmed it in time", followed.name)
                self._schedule.report(followed)
                self._link.send(changed=followed.name)
            if followed.due <= now and followed.idle:
                self._checks.start(followed)
            self._schedule.arm(followed)

    def _read_notify(self) -> None:
        """Check zones that a primary reports as changed (RFC 1996 section 4.7), that primary first."""
        for _ in range(64):
            try:
                message = self._notify.recv(1024)
            except OSError:
                return
            address, _newline, apex = message.partition(b"\n")
            followed = self._schedule.zones.get(apex)
            if followed is None:
                continue
            first = [each for each in followed.sources if str(each.address).encode() == address]
            followed.sources = (*first, *(each for each in followed.sources if each not in first))
            if followed.idle:
                self._schedule.set_due(followed, max(time.monotonic(), followed.started + MIN_INTERVAL))
            else:
                followed.again = True

    def _serve_link(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._link.flush()
        if not events & selectors.EVENT_READ:
            return
        for message in self._link.receive():
            for name, refusal in message["verdicts"].items():
                if followed := self._schedule.zones.get(names.from_text(name)):
                    self._checks.decide(followed, refusal)


def main() -> None:
    """Run as the server starts it: the arguments are the descriptors of the link and of NOTIFYs."""
    # Signals to the whole process group are the server's to handle; its end closes the link.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    link, notify = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    with link.makefile("rb", buffering=0) as stream:
        setup = json.loads(stream.readline())
    document = validate(DnsDocument, setup["document"], "the server's document")
    status = 1
    try:
        Secondary(document, Store(Path(setup["directory"])), link, notify).run()
        status = 0
    except OSError as error:  # the link broke
        log.error("transfers end: %s", error)  # noqa: TRY400
    except Exception:
        log.exception("transfers end")
    finally:
        os._exit(status)  # a transfer under way must not be waited for
