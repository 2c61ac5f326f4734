"""Everything that can be wrong with a DNS document, found without touching a socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from unmoor.dns import hostnames, names, policies, pools, wire, zones
from unmoor.dns.hostnames import Registered
from unmoor.dns.policies import Subject
from unmoor.errors import Problem
from unmoor.model import DnsDocument


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a document: its problems, and, as far as they could be read, zones and hostnames."""

    problems: tuple[Problem, ...]
    zones: dict[bytes, zones.Zone]
    hostnames: dict[bytes, Registered]


def problems(document: DnsDocument, place: str) -> list[Problem]:
    """List everything that is wrong with `document`; `place` is what the problems call it."""
    return list(inspect(document, place).problems)


def inspect(document: DnsDocument, place: str) -> Inspection:
    """Read the whole document; its problems, and what else was read on the way."""
    found: list[Problem] = [*_listen(document, place), *_pools(document, place), *_policies(document, place)]
    apexes, apex_problems = _apexes(document, place)
    found += apex_problems
    read: dict[bytes, zones.Zone] = {}
    for index, apex in apexes.items():
        zone = document.zones[index]
        try:
            read[apex] = zones.read(zone.records, apex)
        except zones.ZoneFileError as error:
            where = f"{zone.source or place}:{error.line}" if error.line else zone.source or place
            found.append(Problem(where, f"zones.{index}.records", zone.name, error.why, error.fix))
        else:
            found += _zone(read[apex], index, zone.source or place)
    registered, name_problems = hostnames.read(document, apexes, read, place)
    found += name_problems
    for name, each in registered.items():
        if each.apex in read:
            read[each.apex].add_name(name)
    found += _name_servers(read, registered, apexes, document, place)
    if registered:
        found += _reach(document, registered, place)
    return Inspection(tuple(found), read, registered)


def _listen(document: DnsDocument, place: str) -> Iterator[Problem]:
    for index, address in enumerate(document.listen):
        key = f"listen.{index}"
        if address in document.listen[:index]:
            yield Problem(place, key, str(address), "is listed twice", "keep one of them")
        if address.is_unspecified or address.is_multicast:
            why = "is not the address of a machine, so that replies would have no sure source"
            yield Problem(place, key, str(address), why, "name each address that clients will ask")
        if address.version == 6 and address.is_link_local:
            yield Problem(place, key, str(address), "is a link-local address", "name a routable address")


def _pools(document: DnsDocument, place: str) -> Iterator[Problem]:
    for name, pool in document.pools.items():
        key = f"pools.{name}"
        if not pool.ipv4 and not pool.ipv6:
            yield Problem(place, key, "", "has no addresses", "add prefixes to ipv4, to ipv6, or to both")
        for family, prefixes in (("ipv4", pool.ipv4), ("ipv6", pool.ipv6)):
            for one, two in pools.overlaps(prefixes):
                why = f"overlaps with {one}: the shared addresses would be drawn twice as often"
                yield Problem(place, f"{key}.{family}", str(two), why, "remove one, or make them disjoint")


def _policies(document: DnsDocument, place: str) -> Iterator[Problem]:
    count = Counter(policy.name for policy in document.policies)
    for index, policy in enumerate(document.policies):
        key = f"policies.{index}"
        if count[policy.name] > 1:
            yield Problem(place, f"{key}.name", policy.name, "is the name of several policies", "rename one")
        for position, text in enumerate(policy.match.suffixes or ()):
            try:
                names.from_text(text)
            except ValueError as error:
                where = f"{key}.match.suffixes.{position}"
                yield Problem(place, where, text, str(error), "write a domain name, as in shop.example.com")
        pool = document.pools.get(policy.answer.pool)
        if pool is None:
            known = ", ".join(sorted(document.pools)) or "there is none"
            fix = f"add the pool, or name one that exists: {known}"
            yield Problem(place, f"{key}.answer.pool", policy.answer.pool, "is not a pool", fix)
            continue
        for qtype, prefixes in (("A", pool.ipv4), ("AAAA", pool.ipv6)):
            if (policy.match.types or ()) == (qtype,) and not prefixes:
                family = "ipv4" if qtype == "A" else "ipv6"
                why = f"has no {family} prefix, and the policy answers {qtype} alone"
                fix = f"add {family} prefixes to the pool, or change match.types"
                yield Problem(place, f"{key}.answer.pool", policy.answer.pool, why, fix)


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


def _zone(zone: zones.Zone, index: int, place: str) -> Iterator[Problem]:
    key = f"zones.{index}.records"
    for name, node in zone.nodes.items():
        cut = zone.cut_above(names.parent(name)) if name != zone.apex else None
        if cut and node.keys() - ({wire.A, wire.AAAA} if wire.NS in zone.nodes[cut] else set()):
            why = f"is below {names.to_text(cut)}, which is delegated: it would never be answered"
            yield Problem(
                place, key, names.to_text(name), why, "remove it here; keep address records as glue only"
            )


def _name_servers(
    read: dict[bytes, zones.Zone],
    registered: dict[bytes, Registered],
    apexes: dict[int, bytes],
    document: DnsDocument,
    place: str,
) -> Iterator[Problem]:
    """Name servers inside a zone need an address there, or nobody finds them (RFC 1912 section 2.8)."""
    for index, apex in apexes.items():
        if not (zone := read.get(apex)):
            continue
        for (target,) in zone.nodes[apex][wire.NS].rdatas:
            name = names.fold(target)
            if not names.is_below(name, apex) or zones.addresses(zone, [name]) or name in registered:
                continue
            if (cut := zone.cut_above(name)) and cut != apex:
                continue
            where = document.zones[index].source or place
            why = f"is a name server of {names.to_text(apex)} without an address in the zone"
            fix = "add its A or AAAA record (a CNAME will not do)"
            yield Problem(where, f"zones.{index}.records", names.to_text(name), why, fix)


def _reach(document: DnsDocument, registered: dict[bytes, Registered], place: str) -> Iterator[Problem]:
    """Policies that no query reaches, and hostnames that no policy answers."""
    ordered = policies.matchers(document)
    subjects: dict[Subject, bytes] = {}
    for name, each in registered.items():
        subjects.setdefault(each.subject, name)
    # A policy for another PoP is no mistake in a document that several PoPs share; nor is one that answers
    # only where no policy names the PoP ('').
    pops = {document.pop, "", *(pop for each in ordered for pop in each.pops or ())}
    reached: set[int] = set()
    takers: dict[int, set[str]] = {index: set() for index in range(len(ordered))}
    for subject in subjects:
        for pop in pops:
            for qtype in policies.TYPES:
                first = policies.first_match(ordered, subject, pop, qtype)
                if first is None:
                    continue
                reached.add(first)
                for later in range(first + 1, len(ordered)):
                    if ordered[later].holds(subject, pop, qtype):
                        takers[later].add(ordered[first].policy.name)
    for index, matcher in enumerate(ordered):
        if index not in reached:
            yield _unreachable(index, matcher, takers[index], subjects, place)
    for subject, name in subjects.items():
        if all(
            policies.first_match(ordered, subject, document.pop, qtype) is None for qtype in policies.TYPES
        ):
            tags = ", ".join(f"{key}={value}" for key, value in sorted(subject.tags)) or "no tags"
            why = f"has no policy at {document.pop} (hostnames with {tags})"
            fix = "add a policy that matches, or one without conditions as the last"
            yield Problem(place, "policies", names.to_text(name), why, fix)


def _unreachable(
    index: int,
    matcher: policies.Matcher,
    takers: set[str],
    subjects: dict[Subject, bytes],
    place: str,
) -> Problem:
    if takers:
        earlier = ", ".join(sorted(takers))
        why, fix = (
            f"can never match: {earlier} takes every query first",
            "move it up, narrow those, or remove it",
        )
    elif not any(matcher.tags <= subject.tags for subject in subjects):
        tags = ", ".join(f"{key}={value}" for key, value in sorted(matcher.tags))
        why, fix = f"can never match: no hostname carries {tags}", "correct the tags, or remove the policy"
    elif matcher.suffixes is not None and not any(matcher.suffixes & s.suffixes for s in subjects):
        why, fix = (
            "can never match: no hostname is at or below its suffixes",
            "correct them, or remove the policy",
        )
    else:
        why, fix = (
            "can never match: no hostname meets all its conditions",
            "loosen them, or remove the policy",
        )
    return Problem(place, f"policies.{index}", matcher.policy.name, why, fix)
