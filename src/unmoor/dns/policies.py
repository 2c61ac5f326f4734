"""Which policy answers: an ordered list, the first whose match holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unmoor.dns import names
from unmoor.model import DnsDocument, Policy

TYPES = ("A", "AAAA")


@dataclass(frozen=True, slots=True)
class Subject:
    """What policies can tell hostnames apart by. Hostnames that policies treat alike share one subject.

    `suffixes` are those named by any policy that the hostname is at or below.
    """

    tags: frozenset[tuple[str, str]]
    suffixes: frozenset[bytes]


class Classifier:
    """Gives hostnames their subjects: as many as there are differences, not as there are names."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._wanted = {suffix for policy in policies for suffix in suffixes_of(policy)}
        self._subjects: dict[tuple[frozenset[tuple[str, str]], frozenset[bytes]], Subject] = {}

    def subject(self, tags: frozenset[tuple[str, str]], name: bytes) -> Subject:
        """The subject of a hostname in wire form that carries `tags`."""
        below = frozenset(
            suffix for suffix in (names.suffixes(name) if self._wanted else ()) if suffix in self._wanted
        )
        key = (tags, below)
        return self._subjects.setdefault(key, Subject(*key))


def tags_of(tags: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """Tags in the form that subjects hold them in."""
    return frozenset(tags.items())


def suffixes_of(policy: Policy) -> Iterator[bytes]:
    """The suffixes of a policy's match, in wire form, without those that are no names (a check's matter)."""
    for text in policy.match.suffixes or ():
        try:
            yield names.from_text(text)
        except ValueError:
            continue


@dataclass(frozen=True, slots=True)
class Matcher:
    """One policy's conditions, prepared."""

    policy: Policy
    pops: frozenset[str] | None
    tags: frozenset[tuple[str, str]]
    suffixes: frozenset[bytes] | None
    types: frozenset[str]

    @classmethod
    def of(cls, policy: Policy) -> Matcher:
        """Prepare a policy's conditions."""
        match = policy.match
        return cls(
            policy,
            None if match.pops is None else frozenset(match.pops),
            tags_of(match.tags),
            None if match.suffixes is None else frozenset(suffixes_of(policy)),
            frozenset(match.types or TYPES),
        )

    def holds(self, subject: Subject, pop: str, qtype: str) -> bool:
        """Whether every condition holds."""
        return (
            (self.pops is None or pop in self.pops)
            and self.tags <= subject.tags
            and (self.suffixes is None or not self.suffixes.isdisjoint(subject.suffixes))
            and qtype in self.types
        )


def matchers(document: DnsDocument) -> tuple[Matcher, ...]:
    """The document's policies, prepared, in order."""
    return tuple(Matcher.of(policy) for policy in document.policies)


def first_match(ordered: Sequence[Matcher], subject: Subject, pop: str, qtype: str) -> int | None:
    """The index of the policy that answers, if any does."""
    for index, matcher in enumerate(ordered):
        if matcher.holds(subject, pop, qtype):
            return index
    return None
