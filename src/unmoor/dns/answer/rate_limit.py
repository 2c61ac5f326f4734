"""Response rate limiting (RRL) over UDP, against reflection attacks with spoofed source addresses.

Replies are counted per second and flow. A flow is a client network (IPv4 /24, IPv6 /56) and a subject:

- an answer: owner and type of its records, the owner being the query's name or the wildcard or DNAME above it
- NXDOMAIN, NODATA or a referral: the zone or delegation
- an error: its response code

So a flood for one name with a resolver's source address limits that name for that resolver and no other, and
random names below a wildcard or in a zone are one flow. BIND, Knot and NSD define flows in the same way.

The counters are a table of fixed size that all workers share, so memory is bounded and a flow is counted as
a whole, whichever workers receive it. Over the limit, every other reply is truncated, so that a real client
retries over TCP, and the rest are dropped. Queries with a valid server cookie are exempt: the cookie proves
that the client receives at its address.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Callable
from time import monotonic

from unmoor.dns.counters.counters import Counts, Event
from unmoor.dns.protocol import message
from unmoor.dns.protocol.edns import Options
from unmoor.dns.protocol.message import COOKIE, Reply

#: Counters of 4 octets. Flows with the same hash share one.
_SLOTS = 1 << 18
_SLOT_MASK = _SLOTS - 1
#: Client addresses whose network's hash is cached.
_MAX_KNOWN = 4096
#: The low bits of a counter hold the count, the others the second modulo 4096. A counter of another second
#: restarts at zero, so the table is never cleared.
_COUNT_BITS = 20
_SECOND_MASK = (1 << 32 - _COUNT_BITS) - 1
_MAX_COUNT = (1 << _COUNT_BITS) - 1
#: Code and length of a cookie option with a server cookie of this server's size.
_FULL_COOKIE = bytes((0, COOKIE, 0, 24))

#: The name of a flow that has none.
NO_NAME = b""
NOTIFY = b"notify"


#: Counts a reply to an address; a name in lower case and a kind are its subject. Returns by how many replies
#: the flow exceeds its limit in this second, 0 if it does not.
ExcessCounter = Callable[[str, bytes, bytes], int]


def shared_table() -> memoryview:
    """Return a table of counters that is shared with forked processes.

    Updates are not atomic: of two processes that count the same flow at the same moment, one may be lost.
    """
    return memoryview(mmap.mmap(-1, _SLOTS * 4)).cast("I")


def counted(per_second: int, table: memoryview) -> ExcessCounter:
    """Make the function that counts replies in `table` and allows `per_second` replies per flow."""
    allowed = min(per_second, _MAX_COUNT - 1)
    # Hashes of networks by address; the current second's end, and the range of its counter values.
    networks: dict[str, int] = {}
    end, first, full, last = 0.0, 0, 0, 0

    def excess(address: str, name: bytes, kind: bytes) -> int:
        nonlocal end, first, full, last
        if (now := monotonic()) >= end:
            end, first = int(now) + 1.0, (int(now) & _SECOND_MASK) << _COUNT_BITS
            full, last = first + allowed, first + _MAX_COUNT
        try:
            network = networks[address]
        except KeyError:
            if len(networks) >= _MAX_KNOWN:
                networks.clear()
            networks[address] = network = hash(_network(address))
        # hash() of bytes is keyed at random (PYTHONHASHSEED), so clients cannot choose a counter.
        slot = hash((network, name, kind)) & _SLOT_MASK
        count = table[slot]
        if first <= count < full:
            table[slot] = count + 1
            return 0
        if not first <= count <= last:
            count = first
        table[slot] = min(count + 1, last - 1)
        return max(0, count + 1 - full)

    return excess


def _network(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:7]
    return socket.inet_aton(address)[:3]


def flow_of(reply: Reply) -> tuple[bytes, bytes]:
    """Return a reply's subject: the name and the kind that it is counted by."""
    if reply.answer:
        first = reply.answer[0]
        return reply.source or first.owner.lower(), first.rtype.to_bytes(2, "big") + b"\0\1"
    rcode = bytes((reply.rcode,))
    return (reply.authority[0].owner.lower() if reply.authority else NO_NAME), rcode


class Limiter:
    """Decides which replies are sent in full, and counts the others."""

    def __init__(self, excess: ExcessCounter, options: Options, counts: Counts) -> None:
        self.excess = excess
        self._options, self._counts = options, counts

    def over(self, packet: bytes, address: str, name: bytes, kind: bytes) -> int:
        """Count the reply to a packet; return by how much its flow is over the limit, 0 if it is exempt."""
        excess = self.excess(address, name, kind)
        return 0 if excess and self.is_exempt(packet, address) else excess

    def is_exempt(self, packet: bytes, address: str) -> bool:
        """Report whether a packet has a valid server cookie, which proves its source address."""
        return _FULL_COOKIE in packet and _has_valid_cookie(packet, address, self._options)

    def cut(self, packet: bytes, excess: int) -> bytes | None:
        """Return the replacement of a reply over the limit: a truncated reply, or None to drop it."""
        self._counts.add(Event.RATE_LIMITED)
        return _truncated(packet) if excess % 2 else None


def _has_valid_cookie(packet: bytes, address: str, options: Options) -> bool:
    try:
        query = message.parse(packet)
        return query.edns is not None and options.has_valid_cookie(query.edns, address)
    except (message.NoReplyError, message.QueryError):
        return False


def _truncated(packet: bytes) -> bytes | None:
    try:
        query = message.parse(packet)
    except (message.NoReplyError, message.QueryError):
        return None
    return message.write(query, Reply(authoritative=False), limit=0)
