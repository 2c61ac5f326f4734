"""Which policies a query can reach: found by trying one query of every kind that policies can tell apart.

That is exact, not a guess: hostnames that all policies treat alike share a subject, and beside it a policy
sees the PoP, the query type and the client only. Each finding comes with a query that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType

from unmoor.dns.policy.policies import TYPES, Matcher, Subject, first_match, matchers
from unmoor.dns.protocol import names
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.errors import Problem
from unmoor.model import DnsDocument


@dataclass(frozen=True, slots=True)
class Example:
    """A query: who asks where for what. `client` None is one that no policy names."""

    name: bytes
    qtype: str
    pop: str
    client: Subnet | None

    def __str__(self) -> str:
        where = f" at {self.pop}" if self.pop else ""
        who = f" from {self.client}" if self.client else ""
        return f"{names.to_text(self.name)} {self.qtype}{where}{who}"


@dataclass(slots=True)
class _Findings:
    """What trying every kind of query brought to light, by the policies' places in the order."""

    reached: set[int] = field(default_factory=set)
    #: Policy to those that answered before it, each with the first such query.
    taken: dict[int, dict[int, Example]] = field(default_factory=dict)
    #: Pairs that both match a query.
    both: dict[tuple[int, int], Example] = field(default_factory=dict)


def problems(
    document: DnsDocument,
    subjects: Mapping[Subject, bytes],
    place: str,
    expected: Mapping[Subject, bytes] = MappingProxyType({}),
) -> Iterator[Problem]:
    """Policies that no query reaches, that overlap though they claim not to, and names without a policy.

    `subjects` are all that hostnames have, each with a hostname. `expected` are those of zones to come,
    whose names are not known: any policy that is not taken by another may be meant for them.
    """
    ordered = matchers(document)
    findings = _Findings()
    claims = any(matcher.policy.exclusive for matcher in ordered)
    for example, holding in _queries(document, ordered, {**expected, **subjects}):
        for later in holding[1:]:
            findings.taken.setdefault(later, {}).setdefault(holding[0], example)
        findings.reached.update(holding[:1])
        for pair in combinations(holding, 2) if claims else ():
            findings.both.setdefault(pair, example)
    for index in range(len(ordered)):
        if index not in findings.reached and (index in findings.taken or not expected):
            yield _unreachable(index, ordered, findings.taken.get(index, {}), subjects, place)
    yield from _overlapping(ordered, findings, place)
    for subject, name in subjects.items():
        if all(first_match(ordered, subject, document.pop, qtype) is None for qtype in TYPES):
            tags = ", ".join(f"{key}={value}" for key, value in sorted(subject.tags)) or "no tags"
            some = any(each.may_hold(subject, document.pop, qtype) for each in ordered for qtype in TYPES)
            whose = ", for clients that no policy names" if some else ""
            why = f"has no policy at {document.pop} (hostnames with {tags}){whose}"
            fix = "add a policy that matches, or one without conditions as the last"
            yield Problem(place, "policies", names.to_text(name), why, fix)


def _queries(
    document: DnsDocument, ordered: Sequence[Matcher], subjects: Mapping[Subject, bytes]
) -> Iterator[tuple[Example, list[int]]]:
    """Give one query of each kind, with all policies that match it, in order."""
    # A policy for another PoP is no mistake in a document that several PoPs share; nor is one that answers
    # only where no policy names the PoP ('').
    pops = dict.fromkeys([document.pop, "", *(pop for each in ordered for pop in sorted(each.pops or ()))])
    for subject, name in subjects.items():
        for pop in pops:
            for qtype in TYPES:
                may = [index for index, each in enumerate(ordered) if each.may_hold(subject, pop, qtype)]
                # A network stands for the clients in it that no smaller one of the list contains.
                asked = (client for index in may for client in ordered[index].clients or ())
                for client in dict.fromkeys([None, *asked]):
                    yield (
                        Example(name, qtype, pop, client),
                        [index for index in may if ordered[index].takes(client)],
                    )


def _unreachable(
    index: int,
    ordered: Sequence[Matcher],
    taken: Mapping[int, Example],
    subjects: Mapping[Subject, bytes],
    place: str,
) -> Problem:
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
    elif not any(matcher.tags <= subject.tags for subject in subjects):
        tags = ", ".join(f"{key}={value}" for key, value in sorted(matcher.tags))
        carried = {f"{key}={value}" for each in subjects for key, value in each.tags}
        known = ", ".join(sorted(carried)[:10]) or "they have none"
        why, fix = (
            f"no hostname carries {tags}",
            f"correct the tags (hostnames carry: {known}), or remove the policy",
        )
    elif matcher.suffixes is not None and not any(matcher.suffixes & each.suffixes for each in subjects):
        why, fix = "no hostname is at or below its suffixes", "correct them, or remove the policy"
    elif matcher.zones is not None and not any(each.zone in matcher.zones for each in subjects):
        why, fix = "its zones have no hostnames", "register some, correct the zones, or remove the policy"
    return Problem(place, f"policies.{index}", matcher.policy.name, f"can never match: {why}", fix)


def _overlapping(ordered: Sequence[Matcher], findings: _Findings, place: str) -> Iterator[Problem]:
    for (one, two), example in findings.both.items():
        for claims, other in ((one, two), (two, one)):
            if ordered[claims].policy.exclusive:
                name = ordered[other].policy.name
                why = f"claims to be exclusive, but {name} matches {example} as well"
                fix = f"narrow one of the two, or remove exclusive from {ordered[claims].policy.name}"
                key = f"policies.{claims}.exclusive"
                yield Problem(place, key, ordered[claims].policy.name, why, fix)
