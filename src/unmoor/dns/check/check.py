"""Validation of DNS documents: finds all problems at once, and returns the parsed zones and hostnames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as member
from pathlib import Path
from types import MappingProxyType

from unmoor.dns.check import check_transfers as transfers
from unmoor.dns.hostnames import hostnames, registry_view
from unmoor.dns.hostnames.hostnames import Registered
from unmoor.dns.hostnames.registry_view import RegistryView
from unmoor.dns.policy import policies, pools, reachability, reverse
from unmoor.dns.policy.policies import Classifier, Traits
from unmoor.dns.protocol import message, names
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.zone_file import ZoneFile
from unmoor.dns.zones.zone_store import NOT_READY
from unmoor.errors import Problem
from unmoor.model import Answer, DnsDocument, Match, Policy, Pool
from unmoor.model.secrets import sealed_in


@dataclass(frozen=True, slots=True)
class Inspection:
    """A parsed document: its problems, and the zones and hostnames that have none.

    Zones are by apex, hostnames by name, both in wire form and lower case.
    """

    problems: tuple[Problem, ...]
    zones: dict[bytes, static_zone.Zone]
    hostnames: dict[bytes, Registered]
    view: RegistryView | None = None
    #: Hostnames that clash with a transferred zone's records, by apex. Not in `problems`, since the document
    #: alone does not cause them.
    clashes: dict[bytes, dict[bytes, Problem]] = member(default_factory=dict)
    document: DnsDocument | None = None

    def can_reuse(self, document: DnsDocument) -> bool:
        """Report whether `document` has equal zones and hostnames, with equal traits under its policies.

        False for documents with transferred zones, whose copies change independently.
        """
        return (
            self.document is not None
            and not self.problems
            and self.document.zones == document.zones
            and not any(zone.primaries for zone in document.zones)
            and Classifier(self.document.policies).is_equivalent(Classifier(document.policies))
        )

    def registered(self, name: bytes) -> Registered | None:
        """Return a hostname's registration, in the document or its registry; None if it is in neither."""
        return self.hostnames.get(name) or (self.view.registered(name) if self.view else None)

    @property
    def count(self) -> int:
        """The number of hostnames; one that is in both the document and the registry counts twice."""
        return len(self.hostnames) + (len(self.view.registry) if self.view else 0)

    def examples(self) -> dict[Traits, bytes]:
        """Return all traits of the hostnames, each with a hostname that has them."""
        found: dict[Traits, bytes] = {}
        for name, each in self.hostnames.items():
            found.setdefault(each.traits, name)
        for traits, name in self.view.examples() if self.view else ():
            found.setdefault(traits, name)
        return found


#: Octets of `alpn` in an HTTPS or SVCB record. Hints and the rest of the message take fewer than 5,000.
_MAX_ALPN = 60_000

#: No copies of transferred zones.
NO_COPIES: Mapping[bytes, static_zone.Zone] = MappingProxyType({})


def problems(document: DnsDocument, place: str, registry: Path | None = None) -> list[Problem]:
    """Return all problems of `document`, which `place` names in them. `registry` is as for `inspect`."""
    return list(inspect(document, place, registry).problems)


def zone_problems(document: DnsDocument, place: str, complete: bool) -> list[Problem]:
    """Return the problems of a document's zones and hostnames alone.

    Without `complete`, hostnames may be missing from the document, so name servers without an address are
    not reported.
    """
    apexes, found = _apexes(document, place)
    registered, read, _, problems = _names(document, apexes, NO_COPIES, place)
    found += problems
    if complete:
        found += _name_servers(Inspection((), read, registered), apexes, document, place)
    return found


def inspect(
    document: DnsDocument,
    place: str,
    registry: Path | None = None,
    copies: Mapping[bytes, static_zone.Zone] = NO_COPIES,
    known: Inspection | None = None,
) -> Inspection:
    """Parse and validate a document, which `place` names in problems.

    `registry` is the path of the registry if it is not the document's. `copies` maps the apexes of
    transferred zones to their copies; transferred zones without one are empty and marked as not ready.
    Zones and hostnames of the earlier result `known` are reused if `document` has the same.
    """
    found: list[Problem] = [*_listen(document, place), *_pools(document, place), *_policies(document, place)]
    found += transfers.problems(document, place)
    for path in sealed_in(document):
        fix = "write the file by the playbooks, or with the module unmoor.unmoor.files, which unseals it"
        found.append(Problem(place, ".".join(path), "", "is sealed, but is not a secret", fix))
    apexes, apex_problems = _apexes(document, place)
    found += apex_problems
    found += _pointers(document, apexes.values(), place)
    if known and known.can_reuse(document):
        registered, read, transferred = known.hostnames, known.zones, dict[bytes, static_zone.Zone]()
    else:
        registered, read, transferred, problems = _names(document, apexes, copies, place)
        found += problems
    seen, registry_problems = registry_view.load(document, place, registry)
    found += registry_problems
    if seen:
        own = {apex: zone for apex, zone in read.items() if apex not in transferred}
        found += registry_view.problems(seen, apexes, own, place)
    clashes = dict(_clashes(transferred, registered, seen, place))
    inspection = Inspection((), read, registered, seen, clashes, document)
    found += _name_servers(inspection, apexes, document, place)
    if inspection.count:
        found += reachability.problems(document, inspection.examples(), place, transfers.expected(document))
    return replace(inspection, problems=tuple(found))


def _names(
    document: DnsDocument, apexes: Mapping[int, bytes], copies: Mapping[bytes, static_zone.Zone], place: str
) -> tuple[
    dict[bytes, Registered], dict[bytes, static_zone.Zone], dict[bytes, static_zone.Zone], list[Problem]
]:
    """Parse zones and hostnames; return hostnames, all zones, the transferred zones, and problems."""
    found: list[Problem] = []
    read: dict[bytes, static_zone.Zone] = {}
    transferred: dict[bytes, static_zone.Zone] = {}
    for index, apex in apexes.items():
        zone = document.zones[index]
        if zone.primaries:
            copy = copies.get(apex) or static_zone.unavailable(apex, NOT_READY)
            # A copy of the nodes: the names above hostnames are added to it.
            transferred[apex] = replace(copy, nodes=dict(copy.nodes))
            continue
        made, file = static_zone.parse(zone.records, apex)
        for error in file.errors:
            where = _at(zone.source or place, error.line)
            found.append(Problem(where, f"zones.{index}.records", zone.name, error.why, error.fix))
        if made:
            found += _zone(made, index, zone.source or place, file)
            if not file.errors:
                read[apex] = made
    known: dict[bytes, static_zone.Zone | None] = {**read, **dict.fromkeys(transferred)}
    registered, name_problems = hostnames.read(document, apexes, known, place)
    found += name_problems
    read |= transferred
    for name, each in registered.items():
        if each.apex in read:
            read[each.apex].add_name(name)
    return registered, read, transferred, found


def _clashes(
    transferred: Mapping[bytes, static_zone.Zone],
    registered: Mapping[bytes, Registered],
    seen: RegistryView | None,
    place: str,
) -> Iterator[tuple[bytes, dict[bytes, Problem]]]:
    """Yield the hostnames that clash with the records of each transferred zone, by apex."""
    for apex, zone in transferred.items():
        where = f"{place}, zone {names.to_text(apex)} of its primary"
        found = dict(registry_view.clashes(seen.registry, zone, where)) if seen else {}
        # Loop over the zone's names, which are usually fewer, unless delegations cover names that it lacks.
        for name in registered if zone.cuts else zone.nodes:
            each = registered.get(name)
            why, fix = hostnames.clash(zone, name) if each and each.apex == apex else ("", "")
            if why:
                found[name] = Problem(where, "hostname", names.to_text(name), why, fix)
        if found:
            yield apex, found


def _listen(document: DnsDocument, place: str) -> Iterator[Problem]:
    for index, address in enumerate(document.listen):
        key = f"listen.{index}"
        if address in document.listen[:index]:
            yield Problem(place, key, str(address), "is listed twice", "keep one of them")
        if address.is_unspecified or address.is_multicast:
            why = "is not a unicast address, and cannot be the source of replies"
            yield Problem(place, key, str(address), why, "name each address that clients will ask")
        if address.version == 6 and address.is_link_local:
            yield Problem(place, key, str(address), "is a link-local address", "name a routable address")


def _pools(document: DnsDocument, place: str) -> Iterator[Problem]:
    for name, pool in document.pools.items():
        key = f"pools.{name}"
        if not pool.ipv4 and not pool.ipv6:
            yield Problem(place, key, "", "has no addresses", "add prefixes to ipv4, to ipv6, or to both")
        for family, version, prefixes in (("ipv4", 4, pool.ipv4), ("ipv6", 6, pool.ipv6)):
            for one, two in pools.overlaps(prefixes):
                why = f"overlaps with {one}: the shared addresses would be drawn twice as often"
                yield Problem(place, f"{key}.{family}", str(two), why, "remove one, or make them disjoint")
            if prefixes and not pools.ranges_in_use(pool, version):
                why = f"excludes all of the pool's {family} addresses"
                yield Problem(place, f"{key}.exclude", "", why, f"exclude fewer, or leave {family} empty")
        for position, excluded in enumerate(pool.exclude):
            whole = pools.ranges_of(pool.ipv4 if excluded.version == 4 else pool.ipv6)
            cut = pools.ranges_of([excluded])
            if pools.without(cut, whole):
                why = "is not wholly in the pool's prefixes, so there is nothing to exclude"
                fix = "correct it, or remove it"
                yield Problem(place, f"{key}.exclude.{position}", str(excluded), why, fix)


def _pointers(document: DnsDocument, apexes: Collection[bytes], place: str) -> Iterator[Problem]:
    """Validate the pools' PTR templates, and that the reverse zones exist."""
    for name, pool in document.pools.items():
        key = f"pools.{name}.ptr"
        if not pool.ptr:
            continue
        fix = f"write a name with {reverse.ADDRESS} in it, as in ip-{reverse.ADDRESS}.example.com"
        if reverse.ADDRESS not in pool.ptr:
            yield Problem(
                place, key, pool.ptr, f"has no {reverse.ADDRESS}: all addresses would have the same name", fix
            )
            continue
        for prefix in (*pool.ipv4, *pool.ipv6):
            ends = (prefix.network_address, prefix.broadcast_address)
            try:
                reverse.expand(pool.ptr, prefix.version, int(ends[0]))
            except ValueError as error:
                yield Problem(place, key, pool.ptr, str(error), fix)
                break
            missing = [
                end for end in ends if not any(names.is_below(reverse.name_of(end.packed), a) for a in apexes)
            ]
            if missing:
                why = f"is for {prefix}, but no zone contains {missing[0].reverse_pointer}"
                yield Problem(place, key, pool.ptr, why, "add the reverse zones to zones, or remove ptr")


def _policies(document: DnsDocument, place: str) -> Iterator[Problem]:
    count = Counter(policy.name for policy in document.policies)
    for index, policy in enumerate(document.policies):
        key = f"policies.{index}"
        if count[policy.name] > 1:
            yield Problem(place, f"{key}.name", policy.name, "is the name of several policies", "rename one")
        yield from _match(document, policy.match, f"{key}.match", place)
        unknown = [name for name in (policy.answer.pool, *policy.answer.also) if name not in document.pools]
        for name in unknown:
            known = ", ".join(sorted(document.pools)) or "none"
            fix = f"add the pool, or name one that exists: {known}"
            where = f"{key}.answer.pool" if name == policy.answer.pool else f"{key}.answer.also"
            yield Problem(place, where, name, "is not a pool", fix)
        if not unknown:
            yield from _answer(document, policy, f"{key}.answer", place)


def _match(document: DnsDocument, match: Match, key: str, place: str) -> Iterator[Problem]:
    for field, texts in (("suffixes", match.suffixes), ("zones", match.zones)):
        for position, text in enumerate(texts or ()):
            where, fix = f"{key}.{field}.{position}", "write a domain name, as in shop.example.com"
            try:
                name = names.from_text(text)
            except ValueError as error:
                yield Problem(place, where, text, str(error), fix)
                continue
            if field == "zones" and name not in policies.wires(zone.name for zone in document.zones):
                known = ", ".join(zone.name for zone in document.zones) or "none"
                yield Problem(place, where, text, "is not a zone", f"name one that exists: {known}")


def _answer(document: DnsDocument, policy: Policy, key: str, place: str) -> Iterator[Problem]:
    answer = policy.answer
    used = [document.pools[name] for name in (answer.pool, *answer.also)]
    if answer.pool in answer.also:
        fix = "set its share by weight"
        yield Problem(place, f"{key}.also", answer.pool, "is the policy's first pool already", fix)
    for name, weight in answer.also.items():
        if weight < 1:
            fix = "write a weight of 1 or more, or remove the pool"
            yield Problem(place, f"{key}.also.{name}", str(weight), "is not a weight", fix)
    for qtype, family, version in (("A", "ipv4", 4), ("AAAA", "ipv6", 6)):
        if (policy.match.types or ()) == (qtype,) and not any(pools.ranges_in_use(p, version) for p in used):
            why = f"has no {family} prefix, and the policy answers {qtype} alone"
            fix = f"add {family} prefixes to the pool, or change match.types"
            yield Problem(place, f"{key}.pool", answer.pool, why, fix)
    if answer.sticky_by != "name" and answer.strategy != "sticky":
        fix = "set strategy to sticky, or remove sticky_by"
        yield Problem(
            place, f"{key}.sticky_by", answer.sticky_by, f"has no effect on strategy {answer.strategy}", fix
        )
    for field, binding in (("https", answer.https), ("svcb", answer.svcb)):
        for position, protocol in enumerate(binding.alpn if binding else ()):
            if not protocol.isascii() or not 1 <= len(protocol) <= 255:
                why, fix = "is not a protocol name", "write one from IANA's list (ALPN), such as h3 or h2"
                yield Problem(place, f"{key}.{field}.alpn.{position}", protocol, why, fix)
        size = sum(1 + len(protocol.encode()) for protocol in binding.alpn) if binding else 0
        if size > _MAX_ALPN:
            why = f"takes {size:,} octets: a DNS message has room for {_MAX_ALPN:,} beside the addresses"
            yield Problem(place, f"{key}.{field}.alpn", "", why, "name fewer protocols")
    yield from _pinned(answer, used, key, place)


def _pinned(answer: Answer, used: list[Pool], key: str, place: str) -> Iterator[Problem]:
    where = f"{key}.addresses"
    if answer.strategy != "pinned":
        if answer.addresses:
            fix = "set strategy to pinned, or remove addresses"
            yield Problem(
                place, where, str(answer.addresses[0]), f"has no effect on strategy {answer.strategy}", fix
            )
        return
    if not answer.addresses:
        yield Problem(
            place, where, "", "is empty, but the strategy is pinned", "name the addresses to answer"
        )
    for field, value, default in (("records", answer.records, 1), ("weight", answer.weight, 1)):
        if value != default:
            fix = f"remove {field}: all addresses of the query's family are answered"
            yield Problem(place, f"{key}.{field}", str(value), "has no effect on strategy pinned", fix)
    for position, address in enumerate(answer.addresses):
        if not any(
            each.first <= int(address) < each.first + each.size
            for pool in used
            for each in pools.ranges_in_use(pool, address.version)
        ):
            why = f"is not an address of the pool {answer.pool}, or is excluded from it"
            fix = "pin an address of the pool"
            yield Problem(place, f"{where}.{position}", str(address), why, fix)
        if address in answer.addresses[:position]:
            yield Problem(place, f"{where}.{position}", str(address), "is listed twice", "keep one of them")


def _apexes(document: DnsDocument, place: str) -> tuple[dict[int, bytes], list[Problem]]:
    found: dict[int, bytes] = {}
    problems: list[Problem] = []
    for index, zone in enumerate(document.zones):
        try:
            apex = names.from_text(zone.name)
        except ValueError as error:
            fix = "write a domain name, as in example.com"
            problems.append(Problem(place, f"zones.{index}.name", zone.name, str(error), fix))
            continue
        if apex in found.values():
            why = "is the name of two zones"
            problems.append(Problem(place, f"zones.{index}.name", zone.name, why, "merge them"))
            continue
        found[index] = apex
    return found, problems


def _at(place: str, line: int) -> str:
    return f"{place}:{line}" if line else place


def _zone(zone: static_zone.Zone, index: int, place: str, file: ZoneFile) -> Iterator[Problem]:
    key = f"zones.{index}.records"
    for name, node in zone.nodes.items():
        cut = zone.cut_above(names.parent(name)) if name != zone.apex else None
        hidden = node.keys() - ({message.A, message.AAAA} if cut and message.NS in zone.nodes[cut] else set())
        if cut and hidden:
            where = _at(place, min(file.line_of(name, rtype) for rtype in hidden))
            why = f"is below {names.to_text(cut)}, which is delegated: it is never answered"
            yield Problem(
                where, key, names.to_text(name), why, "remove it here; keep address records as glue only"
            )


def _name_servers(
    found: Inspection, apexes: dict[int, bytes], document: DnsDocument, place: str
) -> Iterator[Problem]:
    """Yield name servers that lie in their zone and have no address there (RFC 1912 section 2.8)."""
    for index, apex in apexes.items():
        if document.zones[index].primaries or not (zone := found.zones.get(apex)):
            continue
        for (target,) in zone.nodes[apex][message.NS].rdatas:
            name = names.fold(target)
            if (
                not names.is_below(name, apex)
                or static_zone.addresses(zone, [name])
                or found.registered(name)
            ):
                continue
            if (cut := zone.cut_above(name)) and cut != apex:
                continue
            where = document.zones[index].source or place
            why = f"is a name server of {names.to_text(apex)} without an address in the zone"
            fix = "add its A or AAAA record (a CNAME is not allowed)"
            yield Problem(where, f"zones.{index}.records", names.to_text(name), why, fix)
