"""Which policy answers: an ordered list, the first whose match holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unmoor.dns.protocol import names
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.model import DnsDocument, Policy

TYPES = ("A", "AAAA")


@dataclass(frozen=True, slots=True)
class Subject:
    """What policies can tell hostnames apart by. Hostnames that policies treat alike share one subject.

    `suffixes` are those named by any policy that the hostname is at or below; `zone` is its apex, or
    nothing where no policy asks for zones.
    """

    tags: frozenset[tuple[str, str]]
    suffixes: frozenset[bytes]
    zone: bytes


class Classifier:
    """Gives hostnames their subjects: as many as there are differences, not as there are names."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        policies = tuple(policies)
        #: Every suffix that a policy names.
        self.wanted = frozenset(suffix for policy in policies for suffix in wires(policy.match.suffixes))
        self._by_zone = any(policy.match.zones for policy in policies)
        self._subjects: dict[tuple[frozenset[tuple[str, str]], frozenset[bytes], bytes], Subject] = {}

    def asks_alike(self, other: Classifier) -> bool:
        """Whether both give every hostname an equal subject."""
        return (self.wanted, self._by_zone) == (other.wanted, other._by_zone)

    def subject(self, tags: frozenset[tuple[str, str]], name: bytes, apex: bytes) -> Subject:
        """The subject of a hostname in wire form that carries `tags`, in the zone `apex`."""
        return self._subject(tags, self._of_interest(name), apex)

    def subject_below(
        self, tags: frozenset[tuple[str, str]], below: frozenset[bytes], apex: bytes
    ) -> Subject:
        """The subject of hostnames in the zone `apex` whose wanted suffixes inside the zone are `below`."""
        return self._subject(tags, below | self._of_interest(apex), apex)

    def _of_interest(self, name: bytes) -> frozenset[bytes]:
        if not self.wanted:
            return frozenset()
        return frozenset(suffix for suffix in names.suffixes(name) if suffix in self.wanted)

    def _subject(self, tags: frozenset[tuple[str, str]], below: frozenset[bytes], apex: bytes) -> Subject:
        key = (tags, below, apex if self._by_zone else b"")
        return self._subjects.setdefault(key, Subject(*key))


def tags_of(tags: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """Tags in the form that subjects hold them in."""
    return frozenset(tags.items())


def wires(texts: Iterable[str] | None) -> Iterator[bytes]:
    """Names of a match in wire form, without those that are none (a check's matter)."""
    for text in texts or ():
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
    zones: frozenset[bytes] | None
    clients: tuple[Subnet, ...] | None
    types: frozenset[str]

    @classmethod
    def of(cls, policy: Policy) -> Matcher:
        """Prepare a policy's conditions."""
        match = policy.match
        return cls(
            policy,
            None if match.pops is None else frozenset(match.pops),
            tags_of(match.tags),
            None if match.suffixes is None else frozenset(wires(match.suffixes)),
            None if match.zones is None else frozenset(wires(match.zones)),
            None if match.clients is None else tuple(Subnet.of(prefix) for prefix in match.clients),
            frozenset(match.types or TYPES),
        )

    def holds(self, subject: Subject, pop: str, qtype: str, client: Subnet | None = None) -> bool:
        """Whether every condition holds; `client` None is one that no policy names."""
        return self.may_hold(subject, pop, qtype) and self.takes(client)

    def objection(self, subject: Subject, pop: str, qtype: str, client: Subnet | None) -> str | None:
        """Say which condition does not hold; None if all do."""
        match = self.policy.match
        missing = [f"{key}={value}" for key, value in sorted(self.tags - subject.tags)]
        objections = {
            f"wants PoP {_row(match.pops)}, not {pop}": self.pops is None or pop in self.pops,
            f"wants tags {_row(missing)}": not missing,
            f"wants names below {_row(match.suffixes)}": self.suffixes is None
            or not self.suffixes.isdisjoint(subject.suffixes),
            f"wants zone {_row(match.zones)}": self.zones is None or subject.zone in self.zones,
            f"wants type {_row(sorted(self.types))}": qtype in self.types,
            f"wants clients in {_row(match.clients)}": self.takes(client),
        }
        return next((text for text, holds in objections.items() if not holds), None)

    def takes(self, client: Subnet | None) -> bool:
        """Whether the condition on clients holds, for the whole of the client's network."""
        return self.clients is None or (
            client is not None and any(client.is_within(each) for each in self.clients)
        )

    def may_hold(self, subject: Subject, pop: str, qtype: str) -> bool:
        """Whether every condition but that on clients holds: all that is known before a query."""
        return (
            (self.pops is None or pop in self.pops)
            and self.tags <= subject.tags
            and (self.suffixes is None or not self.suffixes.isdisjoint(subject.suffixes))
            and (self.zones is None or subject.zone in self.zones)
            and qtype in self.types
        )


def _row(values: Iterable[object] | None) -> str:
    return " or ".join(map(str, values or ()))


def matchers(document: DnsDocument) -> tuple[Matcher, ...]:
    """The document's policies, prepared, in order."""
    return tuple(Matcher.of(policy) for policy in document.policies)


def first_match(
    ordered: Sequence[Matcher], subject: Subject, pop: str, qtype: str, client: Subnet | None = None
) -> int | None:
    """The index of the policy that answers, if any does; `client` None is one that no policy names."""
    for index, matcher in enumerate(ordered):
        if matcher.holds(subject, pop, qtype, client):
            return index
    return None
