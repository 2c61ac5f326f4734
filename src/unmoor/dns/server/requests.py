"""Requests at the control socket: what each command does, and the reports of `status` and `addresses`."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import unmoor
from unmoor.dns.policy import pools
from unmoor.dns.server import control, listeners
from unmoor.dns.server.pool import Pool
from unmoor.dns.server.state import State
from unmoor.dns.transfer.transfers import Transfers

log = logging.getLogger(__name__)

#: Path of the running release's program; empty when it was started in another way. Resolved at import: later
#: the link by which it was started may lead to another release.
_PROGRAM = str(Path(sys.argv[0]).resolve()) if Path(sys.argv[0]).is_absolute() else ""


class Requests:
    """Replies to the clients of the control socket.

    `reload` carries out a reload. `upgrade` starts an upgrade to a program and replies to the client later;
    it returns the reason if it cannot.
    """

    def __init__(
        self,
        state: State,
        pool: Pool,
        transfers: Transfers,
        reload: Callable[[], control.Reply],
        upgrade: Callable[[str, socket.socket], str],
    ) -> None:
        self._state = state
        self._pool = pool
        self._transfers = transfers
        self._reload = reload
        self._upgrade = upgrade

    def accept(self, listener: socket.socket) -> None:
        """Accept a client and reply to it."""
        try:
            sock, _ = listener.accept()
        except OSError:  # the client went away while it waited
            return
        with sock:
            request = control.receive(sock)
            if request is None:
                return
            if request.command == "sockets":
                control.lend(sock, [pair.udp.fileno() for pair in self._state.generation.pairs.values()])
            elif request.command == "upgrade":
                refusal = self._upgrade(request.program, sock)
                if refusal:
                    log.error("upgrade refused: %s", refusal)
                    control.reply(sock, control.Reply(done=False, lines=tuple(refusal.splitlines())))
            elif reply := self._reply(request.command):
                control.reply(sock, reply)

    def _reply(self, command: str) -> control.Reply | None:
        if command == "status":
            return control.Reply(done=True, data=self.status())
        if command == "addresses":
            return control.Reply(done=True, data=self.addresses())
        if command == "document":
            return control.Reply(done=True, data=self._state.generation.text.text)
        if command == "reload":
            return self._reload()
        return None

    def status(self) -> dict[str, Any]:
        """Return the data of `unmoor dns status`."""
        state, generation = self._state, self._state.generation
        document = generation.snapshot.document
        totals = state.table.totals(policy.name for policy in document.policies)
        return {
            "pop": document.pop,
            "edge": document.edge,
            "release": unmoor.__version__,
            "program": _PROGRAM,
            "pid": os.getpid(),
            "generation": generation.number,
            "document": generation.text.digest,
            "uptime": round(time.monotonic() - state.started, 1),
            "listen": [str(address) for address in document.listen],
            "port": document.port,
            "zones": len(generation.snapshot.zones),
            "hostnames": generation.snapshot.count,
            "workers": [
                {
                    "place": each.place,
                    "pid": each.pid,
                    "generation": each.generation,
                    "document": each.document,
                }
                for each in self._pool
            ],
            "restarts": state.restarts,
            "policies": totals.policies,
            "rcodes": totals.rcodes,
            "events": totals.events,
            "answers": totals.answers,
            "replies": totals.replies,
            "latency": totals.latency,
            "refused": state.refused,
            "transfers": dict(sorted(self._transfers.state.items())),
            "buffers": listeners.buffers_of(generation.pairs.values())._asdict(),
            "shortage": listeners.shortage(generation.pairs.values()),
            "journal": {"kept": state.journal.kept, "failure": state.journal.failure},
        }

    def addresses(self) -> dict[str, Any]:
        """Return the data of `unmoor dns top`: how often each address was given, exact to this moment."""
        self._pool.settle()
        state = self._state
        document = state.generation.snapshot.document
        return {
            "time": time.monotonic(),
            "uptime": max(0.001, time.monotonic() - state.started),
            "counted": document.count_addresses,
            "policies": state.table.totals(policy.name for policy in document.policies).policies,
            "pools": {
                name: [(version, *each) for version in (4, 6) for each in pools.ranges_in_use(pool, version)]
                for name, pool in document.pools.items()
            },
            "spans": state.address_counters.spans(state.generation.number),
        }
