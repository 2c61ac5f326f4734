"""Policy matching: policies are an ordered list, and the first one that matches answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unmoor.dns.protocol import names
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.model import DnsDocument, Policy

TYPES = ("A", "AAAA")


@dataclass(frozen=True, slots=True)
class Traits:
    """The attributes of a hostname that policies match. Hostnames with equal traits share one object.

    `suffixes` are those of the policies' suffixes that the hostname is at or below. `zone` is the apex of
    its zone, empty if no policy has a condition on zones. Names are in wire form and lower case.
    """

    tags: frozenset[tuple[str, str]]
    suffixes: frozenset[bytes]
    zone: bytes


class Classifier:
    """Determines the traits of hostnames under a list of policies."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        policies = tuple(policies)
        #: All suffixes of the policies.
        self.wanted = frozenset(suffix for policy in policies for suffix in wires(policy.match.suffixes))
        self._by_zone = any(policy.match.zones for policy in policies)
        self._shared: dict[tuple[frozenset[tuple[str, str]], frozenset[bytes], bytes], Traits] = {}

    def is_equivalent(self, other: Classifier) -> bool:
        """Report whether both determine equal traits for every hostname."""
        return (self.wanted, self._by_zone) == (other.wanted, other._by_zone)

    def traits(self, tags: frozenset[tuple[str, str]], name: bytes, apex: bytes) -> Traits:
        """Return the traits of the hostname `name` (wire form) with `tags` in the zone `apex`."""
        return self._traits(tags, self._of_interest(name), apex)

    def traits_below(self, tags: frozenset[tuple[str, str]], below: frozenset[bytes], apex: bytes) -> Traits:
        """Return the traits of hostnames with `tags` in the zone `apex`.

        `below` holds those of the wanted suffixes inside the zone that the hostnames are at or below.
        """
        return self._traits(tags, below | self._of_interest(apex), apex)

    def _of_interest(self, name: bytes) -> frozenset[bytes]:
        if not self.wanted:
            return frozenset()
        return frozenset(suffix for suffix in names.suffixes(name) if suffix in self.wanted)

    def _traits(self, tags: frozenset[tuple[str, str]], below: frozenset[bytes], apex: bytes) -> Traits:
        key = (tags, below, apex if self._by_zone else b"")
        return self._shared.setdefault(key, Traits(*key))


def tags_of(tags: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """Convert tags to the form that `Traits` holds."""
    return frozenset(tags.items())


def wires(texts: Iterable[str] | None) -> Iterator[bytes]:
    """Yield the names in wire form. Invalid names are skipped: `check` reports them."""
    for text in texts or ():
        try:
            yield names.from_text(text)
        except ValueError:
            continue


@dataclass(frozen=True, slots=True)
class Matcher:
    """A policy with its conditions in a form that is quick to match. A condition that is None matches all."""

    policy: Policy
    pops: frozenset[str] | None
    tags: frozenset[tuple[str, str]]
    suffixes: frozenset[bytes] | None
    zones: frozenset[bytes] | None
    clients: tuple[Subnet, ...] | None
    types: frozenset[str]

    @classmethod
    def of(cls, policy: Policy) -> Matcher:
        """Convert a policy."""
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

    def holds(self, traits: Traits, pop: str, qtype: str, client: Subnet | None = None) -> bool:
        """Report whether all conditions match; `client` None is a client in no policy's networks."""
        return self.may_hold(traits, pop, qtype) and self.matches_client(client)

    def objection(self, traits: Traits, pop: str, qtype: str, client: Subnet | None) -> str | None:
        """Describe the first condition that does not match; None if all match."""
        match = self.policy.match
        missing = [f"{key}={value}" for key, value in sorted(self.tags - traits.tags)]
        objections = {
            f"requires PoP {_row(match.pops)}, not {pop}": self.pops is None or pop in self.pops,
            f"requires tags {_row(missing)}": not missing,
            f"requires names below {_row(match.suffixes)}": self.suffixes is None
            or not self.suffixes.isdisjoint(traits.suffixes),
            f"requires zone {_row(match.zones)}": self.zones is None or traits.zone in self.zones,
            f"requires type {_row(sorted(self.types))}": qtype in self.types,
            f"requires clients in {_row(match.clients)}": self.matches_client(client),
        }
        return next((text for text, holds in objections.items() if not holds), None)

    def matches_client(self, client: Subnet | None) -> bool:
        """Report whether the condition on clients matches the client's whole network."""
        return self.clients is None or (
            client is not None and any(client.is_within(each) for each in self.clients)
        )

    def may_hold(self, traits: Traits, pop: str, qtype: str) -> bool:
        """Report whether all conditions match, except that on clients: what is known before a query."""
        return (
            (self.pops is None or pop in self.pops)
            and self.tags <= traits.tags
            and (self.suffixes is None or not self.suffixes.isdisjoint(traits.suffixes))
            and (self.zones is None or traits.zone in self.zones)
            and qtype in self.types
        )


def _row(values: Iterable[object] | None) -> str:
    return " or ".join(map(str, values or ()))


def matchers(document: DnsDocument) -> tuple[Matcher, ...]:
    """Return the document's policies as matchers, in order."""
    return tuple(Matcher.of(policy) for policy in document.policies)


def first_match(
    ordered: Sequence[Matcher], traits: Traits, pop: str, qtype: str, client: Subnet | None = None
) -> int | None:
    """Return the index of the first policy that matches, None if none does.

    `client` None is a client in no policy's networks.
    """
    for index, matcher in enumerate(ordered):
        if matcher.holds(traits, pop, qtype, client):
            return index
    return None
