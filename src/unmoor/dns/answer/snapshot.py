"""A document, compiled: all that answering needs. Never changes; a reload builds another one beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from unmoor.dns.check.check import NO_COPIES, Inspection, inspect
from unmoor.dns.counters.address_counters import Layout
from unmoor.dns.counters.counters import counter_of
from unmoor.dns.hostnames.registry import Registry
from unmoor.dns.policy import policies
from unmoor.dns.policy.policies import Matcher
from unmoor.dns.policy.pools import Drawer, Mix, ranges_in_use
from unmoor.dns.policy.reverse import Named, named
from unmoor.dns.policy.selection import Pinned, Random, Selector, Sticky, sticky_key
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.client_subnet import Subnet, scope
from unmoor.dns.transfer.transfer import Source, sources
from unmoor.dns.zones.static_zone import Zone
from unmoor.errors import InvalidInputError, Problem
from unmoor.model import Answer, DnsDocument, Policy
from unmoor.model.dns import ServiceBinding


class ClashError(InvalidInputError):
    """Hostnames that transferred zones have records for as well: by zone, and hostname."""

    def __init__(self, clashes: Mapping[bytes, Mapping[bytes, Problem]]) -> None:
        super().__init__(problem for found in clashes.values() for problem in found.values())
        self.clashes = clashes


@dataclass(frozen=True, slots=True)
class Plan:
    """How one policy answers one query type: TTL in seconds, where it is counted, what chooses addresses."""

    policy: str
    slot: int
    rtype: int
    ttl: int
    selector: Selector
    #: What HTTPS and SVCB queries get, by type.
    services: Mapping[int, ServiceBinding]

    @property
    def record_head(self) -> bytes:
        """The answer record up to its address, for a question that stands right after the header."""
        size = 4 if self.rtype == message.A else 16
        fields = (
            self.rtype.to_bytes(2, "big"),
            b"\0\1",
            self.ttl.to_bytes(4, "big"),
            size.to_bytes(2, "big"),
        )
        return b"\xc0\x0c" + b"".join(fields)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that answers if the client is one that it wants; without a plan, it answers NODATA."""

    matcher: Matcher
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Target:
    """What hostnames lead to: the candidates for each type. Shared by all that policies treat alike.

    `fast` is for the hot path: type and class as in a question, to (counter, record up to its address,
    addresses drawn in advance, drawer); only what depends on nothing but the name, and draws one address.
    """

    candidates: Mapping[int, tuple[Candidate, ...]]
    fast: Mapping[bytes, tuple[int, bytes, list[bytes], Callable[[], bytes]]]

    @classmethod
    def of(cls, candidates: Mapping[int, tuple[Candidate, ...]]) -> Target:
        """Prepare the hot path's form."""
        fast = {}
        for rtype, (first, *_) in candidates.items():
            plan, selector = first.plan, first.plan and first.plan.selector
            if (
                first.matcher.clients is None
                and plan
                and isinstance(selector, Random)
                and selector.records == 1
            ):
                question = rtype.to_bytes(2, "big") + b"\0\1"
                counter = counter_of(plan.slot, rtype)
                fast[question] = (counter, plan.record_head, selector.drawer.ready, selector.drawer)
        return cls(candidates, fast)

    def choose(self, rtype: int, client: Subnet) -> tuple[Plan | None, int]:
        """Give the plan for a client, and how many bits of its address decided."""
        asked: list[Subnet] = []
        for candidate in self.candidates.get(rtype, ()):
            asked += candidate.matcher.clients or ()
            if candidate.matcher.takes(client):
                bits = scope(client, asked)
                plan = candidate.plan
                return plan, max(bits, plan.selector.scope(client)) if plan else bits
        return None, scope(client, asked)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Zones by apex, hostnames by name (both in wire form, lower case), and the document they came from."""

    document: DnsDocument
    zones: Mapping[bytes, Zone]
    hostnames: Mapping[bytes, Target]
    named: tuple[Named, ...] = ()
    #: The registry, and the look-up of its names; what is in `hostnames` is not looked up there.
    registry: Registry | None = None
    registered: Callable[[bytes], Target | None] | None = None
    #: Who may say that a zone or a catalog has changed.
    sources: Mapping[bytes, Sequence[Source]] = field(default_factory=dict)
    #: What it was made of; a later one need not read again what is the same.
    found: Inspection | None = None
    #: Where each policy's answers are counted, and where addresses are, if at all; what gives addresses.
    slots: Mapping[str, int] = field(default_factory=dict)
    selectors: tuple[Selector, ...] = ()
    layout: Layout | None = None

    @property
    def count(self) -> int:
        """How many hostnames there are; one that is in the document and in the registry counts twice."""
        return len(self.hostnames) + (len(self.registry) if self.registry else 0)

    def target_of(self, name: bytes) -> Target | None:
        """What a hostname leads to."""
        return self.hostnames.get(name) or (self.registered(name) if self.registered else None)

    def served(self) -> Iterator[bytes]:
        """Every hostname that leads somewhere, of the document and then of the registry; each once."""
        yield from self.hostnames
        if self.registry is None or self.registered is None:
            return
        for name, _ in self.registry.entries():
            if name not in self.hostnames and self.registered(name):
                yield name

    def exists(self, name: bytes) -> bool:
        """Whether it is a hostname, or has hostnames of the registry below it (the zones know the others)."""
        return name in self.hostnames or (self.registry is not None and self.registry.exists(name))

    def zone_of(self, name: bytes, above: bool = False) -> Zone | None:
        """The closest zone that `name` is in; with `above`, not one whose apex it is."""
        for suffix in names.suffixes(names.parent(name) if above else name):
            if suffix in self.zones:
                return self.zones[suffix]
        return None


def build(
    document: DnsDocument,
    place: str,
    counters: Mapping[str, int],
    copies: Mapping[bytes, Zone] = NO_COPIES,
    give_way: bool = False,
    known: Inspection | None = None,
) -> Snapshot:
    """Compile a document. `counters` says where each policy's answers are counted, `copies` are the zones
    that are transferred, as far as they are here, and `known` is what an earlier snapshot was made of: what
    has not changed since is not read again.

    Raises InvalidInputError with everything that is wrong; `place` is what the problems call the document.
    Raises ClashError if nothing else is wrong than hostnames that clash with transferred records, unless
    these hostnames are to `give_way`.
    """
    return compiled(inspect(document, place, copies=copies, known=known), document, counters, give_way)


def compiled(
    found: Inspection, document: DnsDocument, counters: Mapping[str, int], give_way: bool = False
) -> Snapshot:
    """Compile a document that was read already. Raises InvalidInputError as `build` does."""
    if found.problems:
        raise InvalidInputError(found.problems)
    if found.clashes and not give_way:
        raise ClashError(found.clashes)
    # What is not in the snapshot is not found by the hot path.
    unserved = {name for clashes in found.clashes.values() for name in clashes}
    dark = {zone.apex for zone in found.zones.values() if zone.missing}
    plans = _plans(document, counters)
    target_of = _targets(document, plans)
    targets = {
        name: target_of(each.subject)
        for name, each in found.hostnames.items()
        if name not in unserved and each.apex not in dark
    }
    snapshot = Snapshot(
        document,
        found.zones,
        targets,
        named(document),
        sources=_sources(document),
        found=found,
        slots=counters,
        selectors=tuple(plan.selector for plan in plans.values()),
        layout=Layout(document) if document.count_addresses else None,
    )
    if found.enrolled is None:
        return snapshot
    delegated = {cut for apex in found.clashes for cut in found.zones[apex].cuts}
    find = _without(found.enrolled.finder(target_of), unserved, dark | delegated)
    return replace(snapshot, registry=found.enrolled.registry, registered=find)


def _without(
    find: Callable[[bytes], Target | None], unserved: set[bytes], hidden: set[bytes]
) -> Callable[[bytes], Target | None]:
    """Make a look-up that finds neither these names nor what is at or below the `hidden` ones."""
    if not unserved and not hidden:
        return find

    def found(name: bytes) -> Target | None:
        if name in unserved or any(suffix in hidden for suffix in names.suffixes(name)):
            return None
        return find(name)

    return found


def _sources(document: DnsDocument) -> dict[bytes, Sequence[Source]]:
    transferred = [(zone.name, zone.primaries) for zone in document.zones if zone.primaries]
    transferred += [(each.name, each.primaries) for each in document.catalogs]
    made = {primaries: sources(primaries, document.tsig_keys) for _, primaries in transferred}
    return {names.from_text(name): made[primaries] for name, primaries in transferred}


def _targets(
    document: DnsDocument, plans: Mapping[tuple[int, int], Plan]
) -> Callable[[policies.Subject], Target]:
    """Make the function that gives a subject's target; what policies treat alike shares one."""
    ordered = policies.matchers(document)
    shared: dict[tuple[tuple[int, ...], ...], Target] = {}

    @cache
    def target_of(subject: policies.Subject) -> Target:
        chosen = tuple(_candidates(ordered, subject, document.pop, qtype) for qtype in policies.TYPES)
        if chosen not in shared:
            found = {
                rtype: tuple(Candidate(ordered[index], plans.get((index, rtype))) for index in indices)
                for rtype, indices in zip((message.A, message.AAAA), chosen, strict=True)
                if indices
            }
            shared[chosen] = Target.of(found)
        return shared[chosen]

    return target_of


def _candidates(
    ordered: tuple[Matcher, ...], subject: policies.Subject, pop: str, qtype: str
) -> tuple[int, ...]:
    """The policies that may answer, up to the first that does not ask who the client is."""
    found = []
    for index, matcher in enumerate(ordered):
        if matcher.may_hold(subject, pop, qtype):
            found.append(index)
            if matcher.clients is None:
                break
    return tuple(found)


def _plans(document: DnsDocument, counters: Mapping[str, int]) -> dict[tuple[int, int], Plan]:
    """Give every policy's plans by (its index, type); a family without addresses has none."""
    found = {}
    for index, policy in enumerate(document.policies):
        for rtype, version in ((message.A, 4), (message.AAAA, 6)):
            selector = _selector(document, policy, version)
            if selector:
                slot, answer = counters[policy.name], policy.answer
                found[index, rtype] = Plan(policy.name, slot, rtype, answer.ttl, selector, _services(answer))
    return found


def _services(answer: Answer) -> dict[int, ServiceBinding]:
    given = {message.HTTPS: answer.https, message.SVCB: answer.svcb}
    return {rtype: binding for rtype, binding in given.items() if binding}


def _selector(document: DnsDocument, policy: Policy, version: int) -> Selector | None:
    answer, octets = policy.answer, 4 if version == 4 else 16
    if answer.strategy == "pinned":
        pinned = [each.packed for each in answer.addresses if each.version == version]
        return Pinned(pinned) if pinned else None
    weighted = []
    # A pool that has none of this family takes no part in it: its share is the others'.
    for name, weight in ((answer.pool, answer.weight), *answer.also.items()):
        ranges = ranges_in_use(document.pools[name], version)
        if ranges:
            weighted.append((Drawer(ranges, octets), weight))
    if not weighted:
        return None
    if answer.strategy == "sticky":
        key = sticky_key(document.sticky_key.get_secret_value(), policy.name)
        return Sticky(Mix(weighted), answer.records, key, by_client=answer.sticky_by == "client")
    drawer = weighted[0][0] if len(weighted) == 1 else Mix(weighted)
    return Random(drawer, answer.records)
