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

Counting each reply would cost a third of a fast answer. So a worker counts samples, drawn at random, until
all workers' samples of one flow amount to half its limit in a second. From then on it counts each reply, for
as long as a flow exceeds half its limit. Samples are not held against a flow, so no flow gets less than its
limit, and a flood gets about half a limit more, once, when it begins. Limits below 64 are too low to sample.
"""

from __future__ import annotations

import mmap
import socket
from time import monotonic

from unmoor.dns.counters.counters import Counts, Event
from unmoor.dns.protocol import message
from unmoor.dns.protocol.edns import Options
from unmoor.dns.protocol.message import COOKIE, Reply
from unmoor.dns.protocol.randomness import numbers_below

#: Counters of replies, and as many of samples, of 4 octets each. Flows with the same hash share them.
_SLOTS = 1 << 18
_SLOT_MASK = _SLOTS - 1
#: Samples of a flow at half its limit, at least: their number has a standard deviation of a quarter or less.
_MIN_SAMPLES = 16
#: Replies per sample, at most: with so many, counting costs next to nothing.
_MAX_INTERVAL = 64
#: Client addresses whose network's hash is cached.
_MAX_KNOWN = 4096
#: The low bits of a counter hold the count, the others the second modulo 1024. A counter of another second
#: restarts at zero, so the table is never cleared. Below 2**30, Python's integers are faster.
_COUNT_BITS = 20
_SECOND_MASK = (1 << 30 - _COUNT_BITS) - 1
_MAX_COUNT = (1 << _COUNT_BITS) - 1
#: Code and length of a cookie option with a server cookie of this server's size.
_FULL_COOKIE = bytes((0, COOKIE, 0, 24))

#: The name of a flow that has none.
NO_NAME = b""
NOTIFY = b"notify"


def shared_table() -> memoryview:
    """Return a table of counters that is shared with forked processes.

    Updates are not atomic: of two processes that count the same flow at the same moment, one may be lost.
    """
    return memoryview(mmap.mmap(-1, 2 * _SLOTS * 4)).cast("I")


class FlowCounter:
    """Counts a worker's replies in `table` and allows `per_second` replies per flow.

    `skip` is a list of one number: so many of the next replies need not be counted, as they are no samples.
    """

    def __init__(self, per_second: int, table: memoryview) -> None:
        self.skip = [0]
        self._table = table
        self._allowed = min(per_second, _MAX_COUNT - 1)
        self._half = self._allowed // 2
        self._interval = max(1, min(self._half // _MIN_SAMPLES, _MAX_INTERVAL))
        self._gaps: list[int] = []
        # Hashes of networks by address.
        self._networks: dict[str, int] = {}
        # The current second's end, and the value of a counter without replies in it.
        self._end, self._first = 0.0, 0
        # Whether samples suffice now, and the end of the last second in which they do not.
        self._sampling, self._counting_until = False, 0.0

    def __call__(self, address: str, name: bytes, kind: bytes) -> int:
        """Count a reply to an address; a name in lower case and a kind are its subject.

        Returns by how many replies the flow exceeds its limit in this second, 0 if it does not.
        """
        if (now := monotonic()) >= self._end:
            self._begin(int(now))
        try:
            network = self._networks[address]
        except KeyError:
            network = self._remember(address)
        # hash() of bytes is keyed at random (PYTHONHASHSEED), so clients cannot choose a counter.
        slot = hash((network, name, kind)) & _SLOT_MASK
        if self._sampling and self._is_calm(slot):
            return 0
        table, first = self._table, self._first
        count = table[slot] - first
        # A counter of another second begins again; a full one must not run into the bits of the second.
        if 0 <= count < _MAX_COUNT:
            count += 1
        elif count != _MAX_COUNT:
            count = 1
        table[slot] = first + count
        if count <= self._half:
            return 0
        self._counting_until = self._end + 1
        return max(0, count - self._allowed)

    def _begin(self, second: int) -> None:
        self._end, self._first = second + 1.0, (second & _SECOND_MASK) << _COUNT_BITS
        self._sampling = self._interval > 1 and self._end > self._counting_until

    def _remember(self, address: str) -> int:
        if len(self._networks) >= _MAX_KNOWN:
            self._networks.clear()
        self._networks[address] = network = hash(_network(address))
        return network

    def _is_calm(self, slot: int) -> bool:
        """Count a sample; report whether its flow has had at most half its limit, so that samples suffice."""
        samples = self._count(_SLOTS + slot) + 1
        self._table[_SLOTS + slot] = self._first + min(samples, _MAX_COUNT)
        if samples * self._interval > self._half or self._count(slot) > self._half:
            self._sampling, self._counting_until = False, self._end + 1
            return False
        if not self._gaps:
            self._gaps = numbers_below(2 * self._interval - 1)
        self.skip[0] = self._gaps.pop()
        return True

    def _count(self, at: int) -> int:
        """Return a counter's count in this second."""
        count = self._table[at] - self._first
        return count if 0 <= count <= _MAX_COUNT else 0


#: Makes the function that counts replies of a worker.
counted = FlowCounter


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

    def __init__(self, excess: FlowCounter, options: Options, counts: Counts) -> None:
        self.excess, self.skip = excess, excess.skip
        self._options, self._counts = options, counts

    def over(self, packet: bytes, address: str, name: bytes, kind: bytes) -> int:
        """Count the reply to a packet; return by how much its flow is over the limit, 0 if it is exempt."""
        if self.skip[0]:
            self.skip[0] -= 1
            return 0
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
