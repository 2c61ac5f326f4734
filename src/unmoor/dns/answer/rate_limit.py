"""Response rate limiting over UDP: nobody can have us flood an address that is not the asker's own.

Replies are counted by client network (IPv4 /24, IPv6 /56), by what they are about, and by second:

- an answer by the owner of its records and their type: the name asked for, or the wildcard or DNAME above it
- NXDOMAIN, NODATA and referrals by the zone or delegation
- errors by their code

So a flood for one name, sent in the name of a resolver, costs that resolver this name and no other; and names
made up below a wildcard or a zone are one flow, not many. BIND, Knot and NSD count alike.

The counters are a table of fixed size that all workers share: a flood from everywhere takes no more memory
than silence, and a flow that the kernel spreads over the workers is counted as a whole. Over the limit, every
other reply is truncated, which a real client repeats over TCP; the rest are dropped. Whoever shows a cookie
of ours receives at its address, and is not limited.
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

#: Flows that are told apart; of more, some share what they may ask for. A counter takes 4 octets.
_SLOTS = 1 << 18
_SLOT_MASK = _SLOTS - 1
#: Client addresses whose network is kept.
_MAX_KNOWN = 4096
#: A counter holds the second, as far as it fits, in front of so many bits for the count. One that was last
#: used in another second begins again, so nobody clears the table; after 4096 seconds exactly it goes on.
_COUNT_BITS = 20
_SECOND_MASK = (1 << 32 - _COUNT_BITS) - 1
_MAX_COUNT = (1 << _COUNT_BITS) - 1
#: A cookie option with a server cookie of ours: its code and length.
_FULL_COOKIE = bytes((0, COOKIE, 0, 24))

#: Stands for the name and the type where a reply is about neither.
NO_NAME = b""
NOTIFY = b"notify"


#: By how much a flow is over its limit in this second, with this reply to an address; a name in lower case
#: and a kind say what the reply is about.
Excess = Callable[[str, bytes, bytes], int]


def shared_table() -> memoryview:
    """Make counters that a process shares with those that it forks.

    Two that count the same flow at the same moment may lose one of the two, in favour of the client.
    """
    return memoryview(mmap.mmap(-1, _SLOTS * 4)).cast("I")


def counted(per_second: int, table: memoryview) -> Excess:
    """Make the function that counts replies in `table`."""
    allowed = min(per_second, _MAX_COUNT - 1)
    # Networks by address; when the current second ends, and the range of counts that are of it.
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
        # The hash of octets has a key that differs at every start: nobody can aim at another's counter.
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


def subject(reply: Reply) -> tuple[bytes, bytes]:
    """Say what a reply is about: the name and the kind that it is counted by."""
    if reply.answer:
        first = reply.answer[0]
        return reply.source or first.owner.lower(), first.rtype.to_bytes(2, "big") + b"\0\1"
    rcode = bytes((reply.rcode,))
    return (reply.authority[0].owner.lower() if reply.authority else NO_NAME), rcode


class Limiter:
    """Decides which replies are sent whole, and counts the others."""

    def __init__(self, excess: Excess, options: Options, counts: Counts) -> None:
        self.excess = excess
        self._options, self._counts = options, counts

    def over(self, packet: bytes, address: str, name: bytes, kind: bytes) -> int:
        """By how much the reply to a packet is over the limit; a client with a cookie of ours has none."""
        excess = self.excess(address, name, kind)
        return 0 if excess and self.spares(packet, address) else excess

    def spares(self, packet: bytes, address: str) -> bool:
        """Whether a packet shows a cookie of ours: its sender receives at that address."""
        return _FULL_COOKIE in packet and _shows_cookie(packet, address, self._options)

    def cut(self, packet: bytes, excess: int) -> bytes | None:
        """Give what is sent instead of a reply that is over the limit: a truncated one, or nothing."""
        self._counts.add(Event.RATE_LIMITED)
        return _truncated(packet) if excess % 2 else None


def _shows_cookie(packet: bytes, address: str, options: Options) -> bool:
    try:
        query = message.parse(packet)
        return query.edns is not None and options.knows(query.edns, address)
    except (message.NoReplyError, message.QueryError):
        return False


def _truncated(packet: bytes) -> bytes | None:
    try:
        query = message.parse(packet)
    except (message.NoReplyError, message.QueryError):
        return None
    return message.write(query, Reply(authoritative=False), limit=0)
