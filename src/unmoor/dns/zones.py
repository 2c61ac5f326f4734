"""A zone's static records: from a zone file or a transfer, kept ready to be sent, and looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import StringIO

import dns.exception
import dns.name
import dns.node
import dns.rdata
import dns.rdataset
import dns.rdatatype
import dns.tokenizer
import dns.transaction
import dns.zone
import dns.zonefile
from dns.node import NodeKind

from unmoor.dns import names, wire
from unmoor.dns.names import WireName
from unmoor.dns.wire import RRset

#: The records of one name by type; empty for a name that only has names below it.
Node = dict[int, RRset]

#: Types whose data is a name that may be compressed (RFC 3597 section 4).
_NAMES = frozenset((wire.NS, wire.CNAME, wire.PTR))


class ZoneFileError(Exception):
    """A zone that cannot be served: `line` of its file (0 if unknown), why, and the fix."""

    def __init__(self, line: int, why: str, fix: str) -> None:
        super().__init__(why)
        self.line, self.why, self.fix = line, why, fix


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone, ready for look-ups. `nodes` holds every name that exists, empty non-terminals as well.

    `cuts` are the names below the apex that own NS (delegations) or DNAME: what is below them is not ours.
    `missing` says why a zone cannot be answered for, an extended error (RFC 8914); 0 in one that can.
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
        """The zone's version (RFC 1982)."""
        return int.from_bytes(self.soa.rdatas[0][2][:4], "big")

    def cut_above(self, name: bytes) -> bytes | None:
        """The topmost cut at `name` or above it (the apex itself only if it owns a DNAME)."""
        if not self.cuts:
            return None
        found = None
        for suffix in names.suffixes(name):
            if suffix in self.cuts:
                found = suffix
            if suffix == self.apex:
                break
        return found

    def add_name(self, name: bytes) -> None:
        """Note that `name`, a registered hostname, exists: so do its ancestors (RFC 8020)."""
        _add_ancestors(self.nodes, name, self.apex)


def read(text: str, apex: bytes) -> Zone:
    """Read a zone file. Raises ZoneFileError for the first thing that is wrong with it."""
    return of(apex, rrsets(_read_records(text, dns.name.from_wire(apex, 0)[0])))


def rrsets(nodes: Iterable[tuple[dns.name.Name, dns.node.Node]]) -> Iterator[RRset]:
    """Give the records of dnspython's nodes as we keep them."""
    for name, node in nodes:
        owner = name.to_wire() or names.ROOT
        for each in node:
            rtype = int(each.rdtype)
            yield RRset(owner, rtype, each.ttl, tuple(pieces(rtype, _wire(rdata)) for rdata in each))


def of(apex: bytes, records: Iterable[RRset]) -> Zone:
    """Make a zone of its records, one set for each owner and type. Raises ZoneFileError."""
    nodes: dict[bytes, Node] = {}
    count = 0
    for rrset in records:
        nodes.setdefault(names.fold(rrset.owner), {})[rrset.rtype] = rrset
        count += len(rrset.rdatas)
    top = nodes.get(apex, {})
    for rtype, kind in ((wire.SOA, "SOA"), (wire.NS, "NS")):
        if rtype not in top:
            raise ZoneFileError(0, f"has no {kind} record at {names.to_text(apex)}", f"add '@ IN {kind} ...'")
    if wire.CNAME in top:
        raise ZoneFileError(0, "has a CNAME at its apex, beside SOA and NS", "use an A or AAAA record")
    for name in list(nodes):
        _add_ancestors(nodes, name, apex)
    cuts = frozenset(
        name for name, node in nodes.items() if wire.DNAME in node or (wire.NS in node and name != apex)
    )
    if wire.DNAME in top:
        cuts |= {apex}
    soa = top[wire.SOA]
    return Zone(apex, nodes, cuts, soa, _negative(soa), count)


def dark(apex: bytes, why: int) -> Zone:
    """Make a zone of which nothing is known; `why` is an extended error's code (RFC 8914 section 4)."""
    nothing = RRset(apex, wire.SOA, 0, ())
    return Zone(apex, {}, frozenset(), nothing, nothing, missing=why)


class _SecondRecordError(Exception):
    """A second record of a type that may stand only once at a name, such as CNAME."""


def refuse_contradictions(
    transaction: dns.transaction.Transaction, name: dns.name.Name, rdataset: dns.rdataset.Rdataset
) -> None:
    """Refuse what dnspython would take for a replacement, in a transfer. Raises ZoneFileError."""
    shown = name.to_text(omit_final_dot=True)
    node, kind = transaction.get_node(name), NodeKind.classify_rdataset(rdataset)
    if node and {node.classify(), kind} == {NodeKind.CNAME, NodeKind.REGULAR}:
        why = f"has a CNAME beside other records at {shown} (RFC 1034 section 3.6.2)"
        raise ZoneFileError(0, why, "keep either the CNAME or the others")
    if rdataset.rdtype == dns.rdatatype.SOA:  # replaced at each step of an incremental transfer
        return
    try:
        _refuse_second(transaction, name, rdataset)
    except _SecondRecordError as error:
        raise ZoneFileError(0, str(error), "keep one of them") from None


def _refuse_second(
    transaction: dns.transaction.Transaction, name: dns.name.Name, rdataset: dns.rdataset.Rdataset
) -> None:
    """Refuse what dnspython would take as a replacement of the first."""
    rtype = rdataset.rdtype
    first = transaction.get(name, rtype) if dns.rdatatype.is_singleton(rtype) else None
    if first is not None and set(first) != set(rdataset):
        kind = dns.rdatatype.to_text(rtype)
        raise _SecondRecordError(f"has a second {kind} record at {name.to_text(omit_final_dot=True)}")


class _Lines(dns.tokenizer.Tokenizer):
    """Remembers where the current line begins: many an error is noticed only at its end."""

    line = 0

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:
        if want_leading and want_comment:  # as the reader asks at the beginning of a line, and only there
            self.line = self.line_number
        return super().get(want_leading, want_comment)


def _read_records(text: str, origin: dns.name.Name) -> Iterator[tuple[dns.name.Name, dns.node.Node]]:
    zone = dns.zone.Zone(origin, relativize=False)
    tokens = _Lines(StringIO(text), "zone")
    try:
        with zone.writer(replacement=True) as transaction:
            transaction.check_put_rdataset(_refuse_second)
            reader = dns.zonefile.Reader(tokens, zone.rdclass, transaction)
            # dnspython skips records outside the zone in silence; with the root as the limit it hands them
            # on, and the zone refuses them (KeyError).
            reader.zone_origin = dns.name.root
            reader.read()
    except KeyError:
        why = f"has a record outside the zone {origin.to_text(omit_final_dot=True)}"
        raise ZoneFileError(tokens.line, why, "remove it, or correct its name or $ORIGIN") from None
    except _SecondRecordError as error:
        raise ZoneFileError(tokens.line, str(error), "keep one of them") from None
    except dns.zonefile.CNAMEAndOtherData:
        why = "has a CNAME beside other records of the same name (RFC 1034 section 3.6.2)"
        raise ZoneFileError(tokens.line, why, "keep either the CNAME or the others") from None
    except ValueError:  # dnspython's word for it: 'add() has non-origin SOA'
        why = "has an SOA record below its apex"
        raise ZoneFileError(tokens.line, why, "remove it, or make it a zone of its own") from None
    except dns.exception.DNSException as error:
        why = re.sub(r"^zone:\d+: ", "", str(error))
        raise ZoneFileError(tokens.line, why, "correct the line; see RFC 1035 section 5") from None
    yield from zone.nodes.items()


def pieces(rtype: int, data: bytes) -> tuple[bytes, ...]:
    """Record data in wire form, with the names that may be compressed set apart (RFC 3597 section 4)."""
    if rtype in _NAMES:
        return (WireName(data),)
    if rtype == wire.MX:
        return data[:2], WireName(data[2:])
    if rtype == wire.SOA:
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
    """Give the SOA of negative answers; its TTL is how long 'no' may be kept (RFC 2308 section 3)."""
    minimum = int.from_bytes(soa.rdatas[0][2][-4:], "big")
    return RRset(soa.owner, soa.rtype, min(soa.ttl, minimum), soa.rdatas)


def addresses(zone: Zone, targets: Iterable[bytes]) -> list[RRset]:
    """Give the A and AAAA records that `zone` holds for names (glue, RFC 1034 section 4.2.1)."""
    found = []
    for target in dict.fromkeys(names.fold(target) for target in targets):
        node = zone.nodes.get(target, {})
        found += [node[rtype] for rtype in (wire.A, wire.AAAA) if rtype in node]
    return found
