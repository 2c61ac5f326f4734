"""Encoded replies from static records, which the fast path completes with ID, question and OPT record.

All queries that the same records answer share one entry: the names below a wildcard, those below a
delegation, and all that a zone lacks. So random names fill no memory, and cost no more than a look-up. An
entry is made from what the resolver answers to the first such query, unless a policy takes part in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from time import monotonic
from typing import Any

from unmoor.dns.answer import lookup
from unmoor.dns.answer.lookup import Match
from unmoor.dns.answer.rate_limit import flow_of
from unmoor.dns.answer.resolver import Resolver
from unmoor.dns.answer.snapshot import FastPlan, Snapshot, Target
from unmoor.dns.policy import reverse
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.dns.protocol.message import Query, Reply, RRset
from unmoor.dns.protocol.names import WireName
from unmoor.dns.zones.static_zone import Zone

#: Octets of a worker's entries for one transport: those that names share, so that no flood of existing names
#: displaces them, and those of single names. Each part takes _OVERHEAD octets besides its contents.
MAX_SHARED, MAX_EXACT = 1 << 20, 2 << 20
_OVERHEAD = 400
#: Names, ancestors included, beyond which a reply is not prepared.
_MAX_NAMES = 64
#: Seconds between two times that a full table is emptied: until then the resolver answers.
_PERIOD = 1.0

# Types that the resolver answers: OPT is malformed, DS belongs to the parent, and of 128 to 255 all but ANY
# are not data (RFC 6895 section 3.1).
_UNPREPARED = frozenset((message.OPT, message.DS, *range(128, 255)))
_ANYBODY = Subnet(4, 0, 0)
# In place of a question's type and class: a zone's negative answers, and a delegation's referral.
_NXDOMAIN, _NODATA, _REFERRAL = b"\0", b"\1", b"\2"


@dataclass(frozen=True, slots=True)
class Found:
    """What answers a question: a policy's plan for a wildcard, or a static reply.

    `subject` is the flow that the rate limit counts it by. `heads` are flags and counts by the query's RD and
    OPT (`head_index`), `cut` those of a truncated reply. `tail` follows the question; it is None if it is
    longer than any reply over UDP.
    """

    subject: tuple[bytes, bytes]
    plan: FastPlan | None = None
    rcode: int = 0
    heads: tuple[bytes, ...] = ()
    cut: tuple[bytes, ...] = ()
    tail: bytes | None = None


#: Stands for a question that the resolver must answer.
_RESOLVED = Found((b"", b""))


@dataclass(slots=True)
class _Prepared:
    """A static reply, and its encoded forms.

    Compression makes these depend on the length of the question's name, and on its longest suffix that is in
    `suffixes`: the names in the reply and their ancestors, which have at most `depth` labels.
    """

    reply: Reply
    suffixes: frozenset[bytes]
    depth: int
    has_alias: bool
    forms: dict[tuple[bytes, int] | None, Found] = field(default_factory=dict)


class _PolicyError(Exception):
    """The answer depends on a policy."""


class _Static(Resolver):
    """Answers from static records only."""

    def _choose(self, target: Target, name: bytes, qtype: int, client: Subnet, reply: Reply) -> bool:
        if qtype in target.answered:
            raise _PolicyError
        return False

    def _pointer(self, zone: Zone, name: bytes, qtype: int, reply: Reply) -> bool:
        if reverse.parse(name):
            raise _PolicyError
        return False


class _Room:
    """Bounds the octets of a table."""

    def __init__(self, limit: int, table: dict[Any, Any]) -> None:
        self._limit, self._table = limit, table
        self.taken, self._emptied = 0, 0.0

    def take(self, size: int) -> bool:
        """Account for octets; False if there is no room for them. Empties a full table now and then."""
        if self.taken + size > self._limit:
            if (now := monotonic()) < self._emptied + _PERIOD:
                return False
            self._emptied, self.taken = now, 0
            self._table.clear()
        self.taken += size
        return True


class Replies:
    """The prepared replies of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot, self._resolver = snapshot, _Static(snapshot)
        # By owner, and type and class; None if the resolver must answer.
        self._shared: dict[tuple[bytes, bytes], _Prepared | None] = {}
        # By the question in lower case, for names that exist.
        self._exact: dict[bytes, Found] = {}
        self._shared_room, self._exact_room = _Room(MAX_SHARED, self._shared), _Room(MAX_EXACT, self._exact)

    def find(self, name: bytes, kind: bytes) -> Found | None:
        """Return what answers a question; None if the resolver must.

        `name` is in lower case, `kind` is the type and class. Neither needs to be well-formed.
        """
        found = self._exact.get(name + kind)
        if found or kind[2:] != b"\0\1":
            return None if found is _RESOLVED else found
        labels = _labels(name)
        rtype = kind[0] << 8 | kind[1]
        if labels is None or rtype in _UNPREPARED:
            return None
        zone = self._snapshot.zone_of(name, labels=labels)
        if zone is None or zone.missing:
            return None
        match, owner = lookup.match(self._snapshot, zone, name, rtype, labels)
        if match is Match.OWNER:
            return self._owned(zone, owner, name, rtype, kind, labels)
        if match is Match.DNAME or (
            match is Match.NOTHING and self._snapshot.ptr_ranges and reverse.parse(name)
        ):
            return None
        key = (owner, _REFERRAL if match is Match.REFERRAL else _NXDOMAIN)
        return self._of_many(key, name, rtype, labels)

    def _owned(
        self, zone: Zone, owner: bytes, name: bytes, rtype: int, kind: bytes, labels: Sequence[int]
    ) -> Found | None:
        """Return what answers for a name that exists or that the wildcard `owner` covers."""
        node, target = zone.nodes.get(owner, {}), self._snapshot.target_of(owner)
        if message.CNAME not in node and rtype not in node:
            if target and (rtype in target.answered or rtype == message.ANY):
                plan = target.fast.get(kind)
                return Found((owner, kind), plan) if plan else None
            if rtype != message.ANY:
                return self._of_many((zone.apex, _NODATA), name, rtype, labels)
        return (
            self._of_one(name, rtype, kind)
            if owner == name
            else self._of_many((owner, kind), name, rtype, labels)
        )

    def _of_one(self, name: bytes, rtype: int, kind: bytes) -> Found | None:
        """Return the reply from the records of `name`, and keep it; None if the resolver must answer."""
        room = self._exact_room
        if not room.take(_OVERHEAD + len(name)):
            return None
        reply = self._reply(name, rtype)
        found = _encode(reply, name) if reply else _RESOLVED
        room.taken += len(found.tail or b"")
        self._exact[name + kind] = found
        return found if reply else None

    def _of_many(
        self, key: tuple[bytes, bytes], name: bytes, rtype: int, labels: Sequence[int]
    ) -> Found | None:
        """Return the reply that `name` shares with others, by its key, and keep it."""
        room = self._shared_room
        try:
            prepared = self._shared[key]
        except KeyError:
            if not room.take(_OVERHEAD):
                return None
            prepared = self._prepare(name, rtype)
            if prepared and _leads_back(prepared, key, name):
                return None
            room.taken += _OVERHEAD * len(prepared.suffixes if prepared else ())
            self._shared[key] = prepared
        if prepared is None or _leads_back(prepared, key, name):
            return None
        place = (_suffix(prepared, name, labels), len(name)) if prepared.suffixes else None
        try:
            return prepared.forms[place]
        except KeyError:
            found = _encode(prepared.reply, name)
            if room.take(_OVERHEAD + len(found.tail or b"")):
                prepared.forms[place] = found
            return found

    def _reply(self, name: bytes, rtype: int) -> Reply | None:
        """Return the reply to a query, None if it is not the same for all clients."""
        try:
            reply = self._resolver.answer(_query(name, rtype), _ANYBODY)
        except _PolicyError:
            return None
        # How many of the extra records fit depends on the limit.
        return None if reply.extra else reply

    def _prepare(self, name: bytes, rtype: int) -> _Prepared | None:
        """Return the reply to a query with the names in it; None if it is not the same for all clients."""
        reply = self._reply(name, rtype)
        suffixes = frozenset(_suffixes(reply) if reply else ())
        if reply is None or len(suffixes) > _MAX_NAMES:
            return None
        depth = max((len(names.offsets(each)) - 1 for each in suffixes), default=0)
        return _Prepared(reply, suffixes, depth, any(each.rtype == message.CNAME for each in reply.answer))


def _leads_back(prepared: _Prepared, key: tuple[bytes, bytes], name: bytes) -> bool:
    """Report whether a wildcard's alias leads to `name`, where its chain ends earlier than elsewhere."""
    return prepared.has_alias and key[0] != name and name in prepared.suffixes


def _labels(name: bytes) -> list[int] | None:
    """Return the offsets of a name's labels; None if it is the root, or not one well-formed name."""
    if not 1 < len(name) <= names.MAX_NAME:
        return None
    try:
        found = names.offsets(name)
    except ValueError:
        return None
    return found if found[-1] == len(name) - 1 else None


def _query(name: bytes, rtype: int) -> Query:
    return Query(b"\0\0", False, name + rtype.to_bytes(2, "big") + b"\0\1", name, rtype, message.IN, None)


def _suffix(prepared: _Prepared, name: bytes, labels: Sequence[int]) -> bytes:
    """Return the longest suffix of a name that the reply holds as well."""
    for at in labels[-1 - prepared.depth :]:
        suffix = name[at:]
        if suffix in prepared.suffixes:
            return suffix
    return names.ROOT


def _suffixes(reply: Reply) -> Iterator[bytes]:
    """Yield the names of a reply that are compressed, and their ancestors, but not the answer's owner."""
    for rrset in _rrsets(reply):
        if not (reply.answer and rrset is reply.answer[0]):
            yield from names.suffixes(names.fold(rrset.owner))
        for rdata in rrset.rdatas:
            for piece in rdata:
                if isinstance(piece, WireName):
                    yield from names.suffixes(names.fold(piece))


def _rrsets(reply: Reply) -> Iterator[RRset]:
    yield from reply.answer
    yield from reply.authority
    yield from reply.additional


def head_index(recursion_desired: bool, has_opt: bool) -> int:
    """Return the place of a query's kind in `Found.heads`."""
    return 2 * recursion_desired + has_opt


@lru_cache(maxsize=256)
def _heads(flags: int, *counts: int) -> tuple[bytes, ...]:
    """Return flags and counts of a reply, by `head_index`."""
    return tuple(
        struct.pack("!5H", flags | desired, 1, *counts[:2], counts[2] + opt)
        for desired in (0, message.RD)
        for opt in (0, 1)
    )


def _encode(reply: Reply, name: bytes) -> Found:
    """Encode a reply to a question for `name`, which owns the answer, if there is one."""
    if reply.answer and reply.answer[0].owner != name:
        reply = replace(reply, answer=[replace(reply.answer[0], owner=name), *reply.answer[1:]])
    query = _query(name, 0)
    start = message.HEADER_SIZE + len(query.question)
    octets = message.write(query, reply, start + message.EDNS_SIZE)
    tail = None if octets[2] & message.TC >> 8 else octets[start:]
    flags = message.QR | message.AA * reply.authoritative | reply.rcode
    sections = (reply.answer, reply.authority, reply.additional)
    heads = _heads(flags, *(sum(len(rrset.rdatas) for rrset in section) for section in sections))
    return Found(flow_of(reply), None, reply.rcode, heads, _heads(flags | message.TC, 0, 0, 0), tail)
