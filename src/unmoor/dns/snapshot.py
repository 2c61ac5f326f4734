"""A document, compiled: all that answering needs. Never changes; a reload builds another one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unmoor.dns import names, policies, wire
from unmoor.dns.check import inspect
from unmoor.dns.hostnames import Registered
from unmoor.dns.policies import Matcher
from unmoor.dns.pools import Drawer, ranges_of
from unmoor.dns.zones import Zone
from unmoor.errors import InvalidInputError
from unmoor.model import DnsDocument


@dataclass(frozen=True, slots=True)
class Plan:
    """How one policy answers one query type: TTL in seconds, where it is counted, what draws addresses."""

    policy: str
    counter: int
    rtype: int
    ttl: int
    drawer: Drawer

    @property
    def record_head(self) -> bytes:
        """The answer record up to its address, for a question that stands right after the header."""
        size = 4 if self.rtype == wire.A else 16
        fields = (
            self.rtype.to_bytes(2, "big"),
            b"\0\1",
            self.ttl.to_bytes(4, "big"),
            size.to_bytes(2, "big"),
        )
        return b"\xc0\x0c" + b"".join(fields)


@dataclass(frozen=True, slots=True)
class Target:
    """What hostnames lead to: a plan for each type that is answered. Shared by all that policies treat alike.

    `fast` is the same for the hot path: type and class as in a question, to (counter, record up to its
    address, addresses drawn in advance, drawer).
    """

    plans: Mapping[int, Plan]
    fast: Mapping[bytes, tuple[int, bytes, list[bytes], Drawer]]

    @classmethod
    def of(cls, plans: Mapping[int, Plan]) -> Target:
        """Prepare the hot path's form of `plans`."""
        fast = {
            rtype.to_bytes(2, "big") + b"\0\1": (
                plan.counter,
                plan.record_head,
                plan.drawer.ready,
                plan.drawer,
            )
            for rtype, plan in plans.items()
        }
        return cls(plans, fast)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Zones by apex, hostnames by name (both in wire form, lower case), and the document they came from."""

    document: DnsDocument
    zones: Mapping[bytes, Zone]
    hostnames: Mapping[bytes, Target]

    def zone_of(self, name: bytes, above: bool = False) -> Zone | None:
        """The closest zone that `name` is in; with `above`, not one whose apex it is."""
        for suffix in names.suffixes(names.parent(name) if above else name):
            if suffix in self.zones:
                return self.zones[suffix]
        return None


def build(document: DnsDocument, place: str, counters: Mapping[str, int]) -> Snapshot:
    """Compile a document. `counters` says where each policy's answers are counted.

    Raises InvalidInputError with everything that is wrong; `place` is what the problems call the document.
    """
    found = inspect(document, place)
    if found.problems:
        raise InvalidInputError(found.problems)
    return Snapshot(document, found.zones, _targets(document, found.hostnames, counters))


def _targets(
    document: DnsDocument, registered: Mapping[bytes, Registered], counters: Mapping[str, int]
) -> dict[bytes, Target]:
    ordered = policies.matchers(document)
    plans = _plans(document, counters)
    shared: dict[tuple[int | None, ...], Target] = {}
    targets: dict[Registered, Target] = {}
    for each in set(registered.values()):
        chosen = tuple(
            policies.first_match(ordered, each.subject, document.pop, qtype) for qtype in policies.TYPES
        )
        if chosen not in shared:
            shared[chosen] = Target.of(_choose(ordered, chosen, plans))
        targets[each] = shared[chosen]
    return {name: targets[each] for name, each in registered.items()}


def _plans(document: DnsDocument, counters: Mapping[str, int]) -> dict[tuple[str, int], Plan]:
    """Give every policy's plans by (policy, type); a family without prefixes has none."""
    found = {}
    for policy in document.policies:
        pool = document.pools[policy.answer.pool]
        for rtype, octets, prefixes in ((wire.A, 4, pool.ipv4), (wire.AAAA, 16, pool.ipv6)):
            if prefixes:
                drawer = Drawer(ranges_of(prefixes), octets)
                counter = counters[policy.name]
                plan = Plan(policy.name, counter, rtype, policy.answer.ttl, drawer)
                found[policy.name, rtype] = plan
    return found


def _choose(
    ordered: tuple[Matcher, ...], chosen: tuple[int | None, ...], plans: Mapping[tuple[str, int], Plan]
) -> dict[int, Plan]:
    answers = {}
    for rtype, index in zip((wire.A, wire.AAAA), chosen, strict=True):
        if index is not None and (plan := plans.get((ordered[index].policy.name, rtype))):
            answers[rtype] = plan
    return answers
