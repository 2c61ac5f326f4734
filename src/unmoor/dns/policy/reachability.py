"""Checks which policies a query can reach, by trying one query of every kind that policies distinguish.

The result is exact: a policy matches only a hostname's traits, the PoP, the query type and the client, and
all combinations of these that policies distinguish are tried. Each finding names a query as its evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType

from unmoor.dns.policy.policies import TYPES, Matcher, Traits, first_match, matchers
from unmoor.dns.protocol import names
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.errors import Fault
from unmoor.model import DnsDocument


@dataclass(frozen=True, slots=True)
class Example:
    """A query at a PoP; `client` None is a client in no policy's networks. `name` is in wire form."""

    name: bytes
    qtype: str
    pop: str
    client: Subnet | None

    def __str__(self) -> str:
        where = f" at {self.pop}" if self.pop else ""
        client = f" from {self.client}" if self.client else ""
        return f"{names.to_text(self.name)} {self.qtype}{where}{client}"


@dataclass(slots=True)
class _Findings:
    """The results of all queries, by the policies' indices."""

    reached: set[int] = field(default_factory=set)
    #: Maps a policy to the policies that answer before it, each with the first such query.
    taken: dict[int, dict[int, Example]] = field(default_factory=dict)
    #: Maps pairs of policies that match the same query to the first such query.
    both: dict[tuple[int, int], Example] = field(default_factory=dict)


def faults(
    document: DnsDocument,
    examples: Mapping[Traits, bytes],
    expected: Mapping[Traits, bytes] = MappingProxyType({}),
) -> Iterator[Fault]:
    """Yield policies that no query reaches, exclusive policies that overlap, and hostnames without a policy.

    `examples` maps all traits of the document's hostnames to a hostname that has them. `expected` is the
    same for member zones of catalogs, whose hostnames are not known yet: with it, a policy without a query
    is a fault only if other policies answer all its queries first.
    """
    ordered = matchers(document)
    findings = _Findings()
    claims = any(matcher.policy.exclusive for matcher in ordered)
    for example, holding in _queries(document, ordered, {**expected, **examples}):
        for later in holding[1:]:
            findings.taken.setdefault(later, {}).setdefault(holding[0], example)
        findings.reached.update(holding[:1])
        for pair in combinations(holding, 2) if claims else ():
            findings.both.setdefault(pair, example)
    for index in range(len(ordered)):
        if index not in findings.reached and (index in findings.taken or not expected):
            yield _unreachable(index, ordered, findings.taken.get(index, {}), examples)
    yield from _overlapping(ordered, findings)
    for traits, name in examples.items():
        if all(first_match(ordered, traits, document.pop, qtype) is None for qtype in TYPES):
            tags = ", ".join(f"{key}={value}" for key, value in sorted(traits.tags)) or "no tags"
            some = any(each.may_hold(traits, document.pop, qtype) for each in ordered for qtype in TYPES)
            clients = ", for clients in no policy's networks" if some else ""
            why = f"has no policy at {document.pop} (hostnames with {tags}){clients}"
            fix = "add a policy that matches, or one without conditions as the last"
            yield Fault(("policies",), names.to_text(name), why, fix)


def _queries(
    document: DnsDocument, ordered: Sequence[Matcher], examples: Mapping[Traits, bytes]
) -> Iterator[tuple[Example, list[int]]]:
    """Yield one query of each kind, with the indices of all policies that match it, in order."""
    # Documents share policies between PoPs, so a policy for another PoP counts as reachable, and so does one
    # that answers only at a PoP in no policy's `pops` ('').
    pops = dict.fromkeys([document.pop, "", *(pop for each in ordered for pop in sorted(each.pops or ()))])
    for traits, name in examples.items():
        for pop in pops:
            for qtype in TYPES:
                may = [index for index, each in enumerate(ordered) if each.may_hold(traits, pop, qtype)]
                # A network represents its clients that are in no smaller network of the list.
                asked = (client for index in may for client in ordered[index].clients or ())
                for client in dict.fromkeys([None, *asked]):
                    yield (
                        Example(name, qtype, pop, client),
                        [index for index in may if ordered[index].matches_client(client)],
                    )


def _unreachable(
    index: int,
    ordered: Sequence[Matcher],
    taken: Mapping[int, Example],
    examples: Mapping[Traits, bytes],
) -> Fault:
    matcher = ordered[index]
    why, fix = "no hostname meets all its conditions", "loosen them, or remove the policy"
    if taken:
        earlier = ", ".join(ordered[each].policy.name for each in sorted(taken))
        example = next(iter(taken.values()))
        verb = "takes" if len(taken) == 1 else "take"
        why, fix = (
            f"{earlier} {verb} every query first, such as {example}",
            "move it up, narrow those, or remove it",
        )
    elif not any(matcher.tags <= traits.tags for traits in examples):
        tags = ", ".join(f"{key}={value}" for key, value in sorted(matcher.tags))
        carried = {f"{key}={value}" for each in examples for key, value in each.tags}
        known = ", ".join(sorted(carried)[:10]) or "they have none"
        why, fix = (
            f"no hostname carries {tags}",
            f"correct the tags (hostnames carry: {known}), or remove the policy",
        )
    elif matcher.suffixes is not None and not any(matcher.suffixes & each.suffixes for each in examples):
        why, fix = "no hostname is at or below its suffixes", "correct them, or remove the policy"
    elif matcher.zones is not None and not any(each.zone in matcher.zones for each in examples):
        why, fix = "its zones have no hostnames", "register some, correct the zones, or remove the policy"
    return Fault(("policies", index), matcher.policy.name, f"can never match: {why}", fix)


def _overlapping(ordered: Sequence[Matcher], findings: _Findings) -> Iterator[Fault]:
    for (one, two), example in findings.both.items():
        for claims, other in ((one, two), (two, one)):
            if ordered[claims].policy.exclusive:
                name = ordered[other].policy.name
                why = f"claims to be exclusive, but {name} matches {example} as well"
                fix = f"narrow one of the two, or remove exclusive from {ordered[claims].policy.name}"
                yield Fault(("policies", claims, "exclusive"), ordered[claims].policy.name, why, fix)
