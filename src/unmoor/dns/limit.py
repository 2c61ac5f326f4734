"""Response rate limiting over UDP: nobody can have us flood an address that is not the asker's own.

Counted by client network (IPv4 /24, IPv6 /56) and second, in a table of fixed size: a flood from everywhere
takes no more memory than silence. Over the limit, every other query gets a truncated reply, which a real
client repeats over TCP; the rest get none. Whoever shows a cookie of ours receives at its address, and is
not limited.
"""

from __future__ import annotations

import socket
import time
from array import array

from unmoor.dns import wire
from unmoor.dns.answering import Answerer
from unmoor.dns.counters import Counts, Event
from unmoor.dns.options import Options
from unmoor.dns.wire import COOKIE, Reply

#: Networks that are told apart; of more, some share what they may ask for.
_NETWORKS = 1 << 16
#: Addresses whose slot is kept.
_KNOWN = 4096
#: A cookie option with a server cookie of ours: its code and length.
_FULL_COOKIE = bytes((0, COOKIE, 0, 24))


class RateLimit:
    """Counts queries by client network and second."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = 0
        self._counts = array("L")
        self._slots: dict[str, int] = {}

    def excess(self, address: str) -> int:
        """By how much the network of `address` is over its limit in this second, with this query."""
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._counts = array("L", bytes(_NETWORKS * array("L").itemsize))
        slot = self._slots.get(address)
        if slot is None:
            slot = self._slot(address)
        self._counts[slot] = count = self._counts[slot] + 1
        return count - self._per_second if count > self._per_second else 0

    def _slot(self, address: str) -> int:
        if len(self._slots) >= _KNOWN:
            self._slots.clear()
        # The hash of octets is keyed anew at every start: nobody can aim at another's slot.
        self._slots[address] = slot = hash(_network(address)) % _NETWORKS
        return slot


def _network(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:7]
    return socket.inet_aton(address)[:3]


def limited(answer: Answerer, limit: RateLimit, options: Options, counts: Counts) -> Answerer:
    """Put a limit before `answer`."""

    def guarded(packet: bytes, size: int, address: str) -> bytes | None:
        excess = limit.excess(address)
        if not excess or (_FULL_COOKIE in packet and _shows_cookie(packet, address, options)):
            return answer(packet, size, address)
        truncated = _truncated(packet) if excess % 2 else None
        counts.add(Event.RATE_LIMITED)
        return truncated

    return guarded


def _shows_cookie(packet: bytes, address: str, options: Options) -> bool:
    try:
        query = wire.parse(packet)
        return query.edns is not None and options.knows(query.edns, address)
    except (wire.NoReplyError, wire.QueryError):
        return False


def _truncated(packet: bytes) -> bytes | None:
    try:
        query = wire.parse(packet)
    except (wire.NoReplyError, wire.QueryError):
        return None
    return wire.write(query, Reply(authoritative=False), limit=0)
