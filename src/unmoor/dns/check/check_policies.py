"""Checks of policies: their matches and answers, without regard to the hostnames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from unmoor.dns.policy import policies, pools
from unmoor.dns.protocol import names
from unmoor.errors import Fault, Key
from unmoor.model import Answer, DnsDocument, Match, Policy, Pool

#: Octets of `alpn` in an HTTPS or SVCB record. Hints and the rest of the message take fewer than 5,000.
_MAX_ALPN = 60_000


def policy_faults(document: DnsDocument) -> Iterator[Fault]:
    """Yield the faults of each policy, other than that no query reaches it."""
    count = Counter(policy.name for policy in document.policies)
    for index, policy in enumerate(document.policies):
        path: Key = ("policies", index)
        if count[policy.name] > 1:
            yield Fault((*path, "name"), policy.name, "is the name of several policies", "rename one")
        yield from _match(document, policy.match, (*path, "match"))
        unknown = [name for name in (policy.answer.pool, *policy.answer.also) if name not in document.pools]
        for name in unknown:
            known = ", ".join(sorted(document.pools)) or "none"
            fix = f"add the pool, or name one that exists: {known}"
            field = "pool" if name == policy.answer.pool else "also"
            yield Fault((*path, "answer", field), name, "is not a pool", fix)
        if not unknown:
            yield from _answer(document, policy, (*path, "answer"))


def _match(document: DnsDocument, match: Match, path: Key) -> Iterator[Fault]:
    for field, texts in (("suffixes", match.suffixes), ("zones", match.zones)):
        for position, text in enumerate(texts or ()):
            where, fix = (*path, field, position), "write a domain name, as in shop.example.com"
            try:
                name = names.from_text(text)
            except ValueError as error:
                yield Fault(where, text, str(error), fix)
                continue
            if field == "zones" and name not in policies.wires(zone.name for zone in document.zones):
                known = ", ".join(zone.name for zone in document.zones) or "none"
                yield Fault(where, text, "is not a zone", f"name one that exists: {known}")


def _answer(document: DnsDocument, policy: Policy, path: Key) -> Iterator[Fault]:
    answer = policy.answer
    used = [document.pools[name] for name in (answer.pool, *answer.also)]
    if answer.pool in answer.also:
        fix = "set its share by weight"
        yield Fault((*path, "also"), answer.pool, "is the policy's first pool already", fix)
    for name, weight in answer.also.items():
        if weight < 1:
            fix = "write a weight of 1 or more, or remove the pool"
            yield Fault((*path, "also", name), str(weight), "is not a weight", fix)
    for qtype, family, version in (("A", "ipv4", 4), ("AAAA", "ipv6", 6)):
        if (policy.match.types or ()) == (qtype,) and not any(pools.ranges_in_use(p, version) for p in used):
            why = f"has no {family} prefix, and the policy answers {qtype} alone"
            fix = f"add {family} prefixes to the pool, or change match.types"
            yield Fault((*path, "pool"), answer.pool, why, fix)
    if answer.sticky_by != "name" and answer.strategy != "sticky":
        fix = "set strategy to sticky, or remove sticky_by"
        yield Fault(
            (*path, "sticky_by"), answer.sticky_by, f"has no effect on strategy {answer.strategy}", fix
        )
    for field, binding in (("https", answer.https), ("svcb", answer.svcb)):
        for position, protocol in enumerate(binding.alpn if binding else ()):
            if not protocol.isascii() or not 1 <= len(protocol) <= 255:
                why, fix = "is not a protocol name", "write one from IANA's list (ALPN), such as h3 or h2"
                yield Fault((*path, field, "alpn", position), protocol, why, fix)
        size = sum(1 + len(protocol.encode()) for protocol in binding.alpn) if binding else 0
        if size > _MAX_ALPN:
            why = f"takes {size:,} octets: a DNS message has room for {_MAX_ALPN:,} beside the addresses"
            yield Fault((*path, field, "alpn"), "", why, "name fewer protocols")
    yield from _pinned(answer, used, path)


def _pinned(answer: Answer, used: list[Pool], path: Key) -> Iterator[Fault]:
    where = (*path, "addresses")
    if answer.strategy != "pinned":
        if answer.addresses:
            fix = "set strategy to pinned, or remove addresses"
            yield Fault(where, str(answer.addresses[0]), f"has no effect on strategy {answer.strategy}", fix)
        return
    if not answer.addresses:
        yield Fault(where, "", "is empty, but the strategy is pinned", "name the addresses to answer")
    for field, value, default in (("records", answer.records, 1), ("weight", answer.weight, 1)):
        if value != default:
            fix = f"remove {field}: all addresses of the query's family are answered"
            yield Fault((*path, field), str(value), "has no effect on strategy pinned", fix)
    for position, address in enumerate(answer.addresses):
        if not any(
            each.first <= int(address) < each.first + each.size
            for pool in used
            for each in pools.ranges_in_use(pool, address.version)
        ):
            why = f"is not an address of the pool {answer.pool}, or is excluded from it"
            fix = "pin an address of the pool"
            yield Fault((*where, position), str(address), why, fix)
        if address in answer.addresses[:position]:
            yield Fault((*where, position), str(address), "is listed twice", "keep one of them")
