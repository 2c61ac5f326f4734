"""NOTIFY (RFC 1996): a primary reports that a zone has changed. Workers receive it and pass it on."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence

from unmoor.dns.counters.counters import Counts
from unmoor.dns.protocol import message
from unmoor.dns.protocol.message import Query, Reply
from unmoor.dns.protocol.tsig import Key, Keys, Signed
from unmoor.dns.transfer.transfer import Source

#: NOTIFYs of one zone from one primary that one worker passes on in a second; more get no reply, and are
#: repeated (RFC 1996 section 3.6). A zone is checked once a second at most, whatever the number.
_RATE = 5


class NotifyHandler:
    """Answers NOTIFYs. `sources` are the primaries of each zone; `outbox` leads to the transfer process."""

    def __init__(self, sources: Mapping[bytes, Sequence[Source]], outbox: socket.socket | None) -> None:
        self._sources = {
            (apex, str(each.address)): (each, Keys([Key.of(each.key)] if each.key else ()))
            for apex, found in sources.items()
            for each in reversed(found)  # of two that differ by port only, the first counts
        }
        self._outbox = outbox
        # NOTIFYs passed on in the current second by zone and primary: none uses up the share of another.
        self._second = 0
        self._passed: dict[tuple[bytes, str], int] = {}

    def answer(self, packet: bytes, address: str, counts: Counts) -> bytes | None:
        """Answer a packet that is a NOTIFY. Raises message.QueryError."""
        query = message.parse_notify(packet)
        if (query.qtype, query.qclass) != (message.SOA, message.IN):
            raise message.QueryError(message.NOTIMP)
        address = address.partition("%")[0]
        known = self._sources.get((query.name, address))
        if known is None:
            return _reply(query, message.REFUSED, counts)
        source, keys = known
        signed = keys.check(packet, query.tsig, int(time.time())) if query.tsig else None
        if signed and signed.error:
            return _reply(query, signed.rcode, counts, signed)
        if source.key and not signed:
            return _reply(query, message.REFUSED, counts)
        # After the check: a spoofed NOTIFY must not use up the primary's share.
        if not self._pass_on(query.name, address):
            return None
        return _reply(query, message.NOERROR, counts, signed)

    def _pass_on(self, apex: bytes, address: str) -> bool:
        """Pass a NOTIFY to the transfer process; False if the rate is exceeded or the socket is full."""
        now = int(time.monotonic())
        if now != self._second:
            self._second = now
            self._passed.clear()
        passed = self._passed.get((apex, address), 0)
        if passed >= _RATE:
            return False
        self._passed[apex, address] = passed + 1
        if self._outbox:
            try:
                self._outbox.send(address.encode() + b"\n" + apex)
            except OSError:  # full
                return False
        return True


def _reply(query: Query, rcode: int, counts: Counts, signed: Signed | None = None) -> bytes:
    """Write a reply without records: AA, and the question (RFC 1996 section 3.7)."""
    counts.add_rcode(rcode)
    octets = message.write(query, Reply(rcode, authoritative=rcode == message.NOERROR), message.TCP_SIZE)
    return signed.sign(octets) if signed else octets
