"""A zone's static records, from a zone file or a transfer, indexed by name and ready to be encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import dns.name
import dns.node
import dns.rdata
import dns.rdatatype

from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.message import RRset
from unmoor.dns.protocol.names import WireName
from unmoor.dns.zones import zone_file
from unmoor.dns.zones.zone_file import ZoneFile, ZoneFileError

#: The records of one name by type; empty for a name that only has names below it.
Node = dict[int, RRset]

#: Types whose data is a name that may be compressed (RFC 3597 section 4).
_NAMES = frozenset((message.NS, message.CNAME, message.PTR))
#: Octets of a message for the question and one RRset; the rest is for OPT and TSIG records.
_ROOM = message.TCP_SIZE - 1024


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone, indexed for look-ups. `nodes` holds every name that exists, empty non-terminals included.

    `cuts` are the names that own NS (below the apex: delegations) or DNAME records; the zone has no
    authoritative data below them. `negative_soa` is the SOA of negative answers (RFC 2308 section 3).
    `missing` is the Extended DNS Error (RFC 8914) that explains why the zone is unavailable, 0 if it is
    available. Names are in wire form and lower case; owners in RRsets keep their case.
    """

    apex: bytes
    nodes: dict[bytes, Node]
    cuts: frozenset[bytes]
    soa: RRset
    negative_soa: RRset
    records: int = field(default=0)
    missing: int = 0

    @property
    def serial(self) -> int:
        """The SOA's serial number (RFC 1982)."""
        return int.from_bytes(self.soa.rdatas[0][2][:4], "big")

    def cut_above(self, name: bytes, labels: Sequence[int] = ()) -> bytes | None:
        """Return the topmost cut at or above `name`, None if there is none.

        `labels` are the `names.offsets` of `name`, if they are known.
        """
        if not self.cuts:
            return None
        labels = labels or names.offsets(name)
        if len(name) - len(self.apex) not in labels:  # a zone file may have names outside of its zone
            return None
        # From the apex down: below a name that does not exist there is no cut, so the zone's depth bounds
        # the search, not the name's.
        for number in range(labels.index(len(name) - len(self.apex)), -1, -1):
            suffix = name[labels[number] :]
            if suffix in self.cuts:
                return suffix
            if suffix not in self.nodes:
                return None
        return None

    def add_name(self, name: bytes) -> None:
        """Add the ancestors of the registered hostname `name`, which exist because it does (RFC 8020)."""
        _add_ancestors(self.nodes, name, self.apex)


def read(text: str, apex: bytes) -> Zone:
    """Parse a zone file. Raises ZoneFileError for its first error."""
    zone, file = parse(text, apex)
    if file.errors or zone is None:
        raise file.errors[0]
    return zone


def parse(text: str, apex: bytes) -> tuple[Zone | None, ZoneFile]:
    """Parse a zone file and collect all its errors, which are in the returned file.

    The zone holds the records without errors; it is None if these lack the SOA or the NS records.
    """
    file = zone_file.read(text, dns.name.from_wire(apex, 0)[0])
    nodes = _nodes(rrsets(file.nodes.items()))
    wrong = [error for kind, error in _apex_errors(apex, nodes) if not file.may_have_had(kind)]
    zone = (
        None if wrong or not nodes.get(apex, {}).keys() >= {message.SOA, message.NS} else _made(apex, nodes)
    )
    file.errors += wrong
    for node in nodes.values():
        for rrset in node.values():
            if why := too_large(rrset):
                line = file.line_of(rrset.owner, rrset.rtype)
                file.errors.append(ZoneFileError(line, why, "remove some, or spread them over several names"))
    file.errors.sort(key=lambda error: error.line)
    return zone, file


class Occluded(NamedTuple):
    """A name with records that are never answered: they are below a delegation or DNAME record, `cut`."""

    name: bytes
    cut: bytes
    line: int


def occluded(zone: Zone, file: ZoneFile) -> Iterator[Occluded]:
    """Yield the names of a zone file's records that are never answered; glue is not among them."""
    for name, node in zone.nodes.items() if zone.cuts else ():
        cut = zone.cut_above(names.parent(name)) if name != zone.apex else None
        hidden = node.keys() - ({message.A, message.AAAA} if cut and message.NS in zone.nodes[cut] else set())
        if cut and hidden:
            yield Occluded(name, cut, min(file.line_of(name, rtype) for rtype in hidden))


def too_large(rrset: RRset) -> str:
    """Return why an RRset does not fit into a DNS message; empty if it fits."""
    size = sum(12 + sum(map(len, rdata)) for rdata in rrset.rdatas)
    if size > _ROOM - 2 * names.MAX_NAME and max(len(b"".join(rdata)) for rdata in rrset.rdatas) < 1 << 16:
        # Near the limit, count exactly: names may be compressed, and a wildcard answers for longer names.
        longest = names.MAX_NAME if rrset.owner.startswith(b"\1*") else len(rrset.owner)
        size = message.size(rrset) + longest - len(rrset.owner)
    if size <= _ROOM:
        return ""
    kind = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rrset.rtype))
    return (
        f"has {size:,} octets of {kind} records at {names.to_text(rrset.owner)}: "
        f"a DNS message has room for {_ROOM:,}"
    )


def rrsets(nodes: Iterable[tuple[dns.name.Name, dns.node.Node]]) -> Iterator[RRset]:
    """Convert the records of dnspython's nodes."""
    for name, node in nodes:
        owner = name.to_wire() or names.ROOT
        for each in node:
            rtype = int(each.rdtype)
            yield RRset(owner, rtype, each.ttl, tuple(pieces(rtype, _wire(rdata)) for rdata in each))


def of(apex: bytes, records: Iterable[RRset]) -> Zone:
    """Build a zone from its records, one RRset for each owner and type.

    Raises ZoneFileError if the apex lacks SOA or NS records, or has a CNAME.
    """
    nodes = _nodes(records)
    for _, error in _apex_errors(apex, nodes):
        raise error
    return _made(apex, nodes)


def _nodes(records: Iterable[RRset]) -> dict[bytes, Node]:
    nodes: dict[bytes, Node] = {}
    for rrset in records:
        nodes.setdefault(names.fold(rrset.owner), {})[rrset.rtype] = rrset
    return nodes


def _apex_errors(apex: bytes, nodes: Mapping[bytes, Node]) -> Iterator[tuple[str, ZoneFileError]]:
    """Yield the errors at the apex, each with the record type that it concerns."""
    top = nodes.get(apex, {})
    for rtype, kind in ((message.SOA, "SOA"), (message.NS, "NS")):
        if rtype not in top:
            why = f"has no {kind} record at {names.to_text(apex)}"
            yield kind, ZoneFileError(0, why, f"add '@ IN {kind} ...'")
    if message.CNAME in top:
        why = "has a CNAME at its apex, beside SOA and NS"
        yield "CNAME", ZoneFileError(0, why, "use an A or AAAA record")


def _made(apex: bytes, nodes: dict[bytes, Node]) -> Zone:
    count = sum(len(rrset.rdatas) for node in nodes.values() for rrset in node.values())
    top = nodes[apex]
    for name in list(nodes):
        _add_ancestors(nodes, name, apex)
    cuts = frozenset(
        name for name, node in nodes.items() if message.DNAME in node or (message.NS in node and name != apex)
    )
    if message.DNAME in top:
        cuts |= {apex}
    soa = top[message.SOA]
    return Zone(apex, nodes, cuts, soa, _negative(soa), count)


def unavailable(apex: bytes, why: int) -> Zone:
    """Build an empty zone, which is answered by SERVFAIL with the Extended DNS Error `why` (RFC 8914)."""
    nothing = RRset(apex, message.SOA, 0, ())
    return Zone(apex, {}, frozenset(), nothing, nothing, missing=why)


def pieces(rtype: int, data: bytes) -> tuple[bytes, ...]:
    """Split record data in wire form into names that may be compressed and the rest (RFC 3597 section 4)."""
    if rtype in _NAMES:
        return (WireName(data),)
    if rtype == message.MX:
        return data[:2], WireName(data[2:])
    if rtype == message.SOA:
        primary = names.end(data)
        return WireName(data[:primary]), WireName(data[primary:-20]), data[-20:]
    return (data,)


def _wire(rdata: dns.rdata.Rdata) -> bytes:
    data = rdata.to_wire()
    assert data is not None  # noqa: S101 - dnspython returns None only when it was given a file to write to
    return data


def _add_ancestors(nodes: dict[bytes, Node], name: bytes, apex: bytes) -> None:
    for suffix in names.suffixes(names.parent(name)):
        if suffix in nodes or len(suffix) <= len(apex):
            return
        nodes[suffix] = {}


def _negative(soa: RRset) -> RRset:
    """Return the SOA of negative answers, whose TTL is that of the answer (RFC 2308 section 3)."""
    minimum = int.from_bytes(soa.rdatas[0][2][-4:], "big")
    return RRset(soa.owner, soa.rtype, min(soa.ttl, minimum), soa.rdatas)


def addresses(zone: Zone, targets: Iterable[bytes]) -> list[RRset]:
    """Return the zone's A and AAAA records of `targets`, as glue (RFC 1034 section 4.2.1)."""
    found = []
    for target in dict.fromkeys(names.fold(target) for target in targets):
        node = zone.nodes.get(target, {})
        found += [node[rtype] for rtype in (message.A, message.AAAA) if rtype in node]
    return found
