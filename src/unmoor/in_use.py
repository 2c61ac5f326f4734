"""Addresses in use by DNS, and those that a change would take away from clients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import chain
from typing import Any

import dns.rdata
import dns.rdataclass
import dns.rdatatype

from unmoor.dns.policy.pools import Range, ranges_in_use, without
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.svcb import IPV4_HINT, IPV6_HINT
from unmoor.dns.protocol.svcb import TYPES as SERVICE_BINDINGS
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.zone_file import ZoneFileError
from unmoor.model import DnsDocument, EdgeDocument, Policy, Prefix
from unmoor.model.documents import Documents

_ADDRESS: dict[int, type[IPv4Address] | type[IPv6Address]] = {4: IPv4Address, 6: IPv6Address}


@dataclass(frozen=True)
class InUse:
    """Addresses that DNS answers with.

    `ranges` are those of policies, by IP version, in order and disjoint. `records` are those of static A and
    AAAA records and of address hints in static HTTPS and SVCB records, each with the record's owner name.
    """

    ranges: dict[int, tuple[Range, ...]]
    records: dict[IPv4Address | IPv6Address, str]

    def prefixes(self) -> tuple[Prefix, ...]:
        """Return the addresses of policies as the smallest number of prefixes."""
        return tuple(chain.from_iterable(_prefixes(version, self.ranges[version]) for version in (4, 6)))


def addresses_in_use(document: DnsDocument) -> InUse:
    """Return every address that the server of `document` may answer with.

    These are, for each policy that can match in the PoP, its pinned addresses, or those of its pools without
    the excluded ones; and the addresses of static records of zones in the document. Records of transferred
    zones are not known here.
    """
    return InUse(_ranges_of_policies(document), dict(_addresses_of_records(document)))


def taken_away(old: Documents, new: Documents) -> Iterator[str]:
    """Yield the reasons why `new` must not replace `old` on an edge: addresses in use that it removes.

    Addresses of policies must stay in use; those of static records must stay bound or local.
    """
    was, stays = addresses_in_use(old.dns), addresses_in_use(new.dns)
    for version in (4, 6):
        for part in _prefixes(version, without(was.ranges[version], stays.ranges[version])):
            yield f"addresses of {part} are in use by DNS and would be removed: run playbooks/pool.yml first"
    before, after = _local(old.edge), _local(new.edge)
    for address, owner in (was.records | stays.records).items():
        if _holds(before, address) and not _holds(after, address):
            yield (
                f"{address} is the address of {owner} in a zone file and would no longer answer: change the "
                "record with playbooks/site.yml first, wait for its TTL, then remove the prefix or address"
            )


def not_bound(document: DnsDocument, edge: EdgeDocument) -> tuple[Prefix, ...]:
    """Return addresses that policies of `document` answer with and that `edge` does not bind."""
    used = _ranges_of_policies(document)
    bound: dict[int, list[Range]] = {4: [], 6: []}
    for prefix in edge.prefixes:
        bound[prefix.version].append(Range(int(prefix.network_address), prefix.num_addresses))
    parts = (_prefixes(version, without(used[version], bound[version])) for version in (4, 6))
    return tuple(chain.from_iterable(parts))


def _ranges_of_policies(document: DnsDocument) -> dict[int, tuple[Range, ...]]:
    found: dict[int, list[Range]] = {4: [], 6: []}
    for policy in document.policies:
        if policy.match.pops is None or document.pop in policy.match.pops:
            for version in found:
                found[version] += _ranges_of_policy(document, policy, version)
    return {version: tuple(_merged(ranges)) for version, ranges in found.items()}


def _ranges_of_policy(document: DnsDocument, policy: Policy, version: int) -> Iterator[Range]:
    answer = policy.answer
    if answer.strategy == "pinned":
        yield from (Range(int(each), 1) for each in answer.addresses if each.version == version)
        return
    for name in (answer.pool, *answer.also):
        if name in document.pools:
            yield from ranges_in_use(document.pools[name], version)


def _addresses_of_records(document: DnsDocument) -> Iterator[tuple[IPv4Address | IPv6Address, str]]:
    for zone in document.zones:
        if not zone.records:
            continue
        try:
            nodes = static_zone.read(zone.records, names.from_text(zone.name)).nodes
        except (ZoneFileError, ValueError):
            continue  # the check of the document reports it; no server runs it
        for owner, node in nodes.items():
            for address in chain.from_iterable(_addresses_of(rrset) for rrset in node.values()):
                yield address, names.to_text(owner)


def _addresses_of(rrset: message.RRset) -> Iterator[IPv4Address | IPv6Address]:
    if rrset.rtype not in (message.A, message.AAAA, *SERVICE_BINDINGS):
        return
    for pieces in rrset.rdatas:
        data = b"".join(pieces)
        if rrset.rtype not in SERVICE_BINDINGS:
            yield _ADDRESS[4 if rrset.rtype == message.A else 6](data)
            continue
        rtype = dns.rdatatype.RdataType(rrset.rtype)
        record: Any = dns.rdata.from_wire(dns.rdataclass.IN, rtype, data, 0, len(data))
        for key, version in ((IPV4_HINT, 4), (IPV6_HINT, 6)):
            hint = record.params.get(key)
            yield from (_ADDRESS[version](each) for each in (hint.addresses if hint else ()))


def _merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """Merge ranges that overlap or touch; yield them in order."""
    current: Range | None = None
    for each in sorted(ranges):
        if current is None or each.first > current.first + current.size:
            if current is not None:
                yield current
            current = each
        else:
            size = max(current.size, each.first + each.size - current.first)
            current = Range(current.first, size)
    if current is not None:
        yield current


def _prefixes(version: int, ranges: Iterable[Range]) -> Iterator[Prefix]:
    make: Any = _ADDRESS[version]
    for each in ranges:
        yield from summarize_address_range(make(each.first), make(each.first + each.size - 1))


def _local(edge: EdgeDocument) -> dict[int, list[Prefix]]:
    found: dict[int, list[Prefix]] = defaultdict(list)
    for prefix in (*edge.prefixes, *edge.addresses):
        found[prefix.version].append(prefix)
    return found


def _holds(prefixes: dict[int, list[Prefix]], address: IPv4Address | IPv6Address) -> bool:
    return any(address in prefix for prefix in prefixes[address.version])
