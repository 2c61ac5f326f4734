"""Snapshots: a document compiled for answering. Immutable; a reload builds a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from unmoor.dns.check.check import Checked, check
from unmoor.dns.counters.address_counters import Layout
from unmoor.dns.counters.counters import counter_of
from unmoor.dns.hostnames.registry import Registry
from unmoor.dns.parse.content import NO_COPIES, Content
from unmoor.dns.parse.document import parse
from unmoor.dns.policy import policies
from unmoor.dns.policy.policies import Matcher
from unmoor.dns.policy.pools import Drawer, Mix, ranges_in_use
from unmoor.dns.policy.reverse import PtrRange, ptr_ranges
from unmoor.dns.policy.selection import Pinned, Random, Selector, Sticky, sticky_key
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.client_subnet import Subnet, scope
from unmoor.dns.transfer.transfer import Source, sources
from unmoor.dns.zones.static_zone import Zone
from unmoor.errors import InvalidInputError
from unmoor.model import Answer, DnsDocument, Policy
from unmoor.model.dns import ServiceBinding


class ClashError(InvalidInputError):
    """Hostnames clash with records of transferred zones: `checked` has the clashes, by apex and hostname."""

    def __init__(self, checked: Checked, place: str) -> None:
        super().__init__(
            fault.at(f"{place}, zone {names.to_text(apex)} of its primary")
            for apex, found in checked.clashes.items()
            for fault in found.values()
        )
        self.checked = checked


@dataclass(frozen=True, slots=True)
class Plan:
    """How a policy answers a query type: TTL in seconds, index of its counters, selector of addresses."""

    policy: str
    slot: int
    rtype: int
    ttl: int
    selector: Selector
    #: Service bindings for HTTPS and SVCB queries, by type.
    services: Mapping[int, ServiceBinding]

    @property
    def record_head(self) -> bytes:
        """The encoded answer record up to its address; its owner points to the question (offset 12)."""
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
    """A policy that answers if its condition on clients matches; without a plan, it answers NODATA."""

    matcher: Matcher
    plan: Plan | None


#: Index of the counter, encoded record up to its address, addresses drawn in advance, drawer.
FastPlan = tuple[int, bytes, list[bytes], Callable[[], bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    """The candidates that answer for a hostname, by query type. Shared by all hostnames with equal traits.

    `fast` is for the fast path, and holds types whose answer is one random address and does not depend on
    the client: type and class as in a question, to (index of the counter, encoded record up to its address,
    addresses drawn in advance, drawer). `answered` holds the types that a policy answers for some client.
    """

    candidates: Mapping[int, tuple[Candidate, ...]]
    fast: Mapping[bytes, FastPlan]
    answered: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        plans = [each.plan for found in self.candidates.values() for each in found if each.plan]
        types = {each.rtype for each in plans} | {rtype for each in plans for rtype in each.services}
        object.__setattr__(self, "answered", frozenset(types))

    @classmethod
    def of(cls, candidates: Mapping[int, tuple[Candidate, ...]]) -> Target:
        """Make a target, with `fast` derived from the candidates."""
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
        """Return the plan for a client, and the scope: the bits of its address that the answer depends on."""
        asked: list[Subnet] = []
        for candidate in self.candidates.get(rtype, ()):
            asked += candidate.matcher.clients or ()
            if candidate.matcher.matches_client(client):
                bits = scope(client, asked)
                plan = candidate.plan
                return plan, max(bits, plan.selector.scope(client)) if plan else bits
        return None, scope(client, asked)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Zones by apex and hostnames by name (wire form, lower case), and the document they are from."""

    document: DnsDocument
    zones: Mapping[bytes, Zone]
    hostnames: Mapping[bytes, Target]
    ptr_ranges: tuple[PtrRange, ...] = ()
    #: The registry, and the look-up of its hostnames; `hostnames` takes precedence.
    registry: Registry | None = None
    registered: Callable[[bytes], Target | None] | None = None
    #: Primaries by zone or catalog, from which NOTIFY is accepted.
    sources: Mapping[bytes, Sequence[Source]] = field(default_factory=dict)
    #: The parsed zones and hostnames, which the next snapshot shares if they are equal.
    content: Content | None = None
    #: The index of each policy's counters, all selectors, and the layout of address counters (None if off).
    slots: Mapping[str, int] = field(default_factory=dict)
    selectors: tuple[Selector, ...] = ()
    layout: Layout | None = None
    #: How many labels the zones' names have, deepest first: no other suffix of a name can be a zone.
    depths: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        depths = {len(names.offsets(apex)) - 1 for apex in self.zones}
        object.__setattr__(self, "depths", tuple(sorted(depths, reverse=True)))

    @property
    def count(self) -> int:
        """The number of hostnames; one that is in both the document and the registry counts twice."""
        return len(self.hostnames) + (len(self.registry) if self.registry else 0)

    def target_of(self, name: bytes) -> Target | None:
        """Return a hostname's target; None if it is not a hostname."""
        return self.hostnames.get(name) or (self.registered(name) if self.registered else None)

    def served(self) -> Iterator[bytes]:
        """Yield each hostname that has a target once, those of the document first."""
        yield from self.hostnames
        if self.registry is None or self.registered is None:
            return
        for name, _ in self.registry.entries():
            if name not in self.hostnames and self.registered(name):
                yield name

    def exists(self, name: bytes) -> bool:
        """Report whether `name` is a hostname or has registry hostnames below it (`zones` has the others)."""
        return name in self.hostnames or (self.registry is not None and self.registry.exists(name))

    def zone_of(self, name: bytes, above: bool = False, labels: Sequence[int] = ()) -> Zone | None:
        """Return the closest zone that contains `name`; with `above`, not one whose apex it is.

        `labels` are the `names.offsets` of `name`, if they are known.
        """
        labels = labels or names.offsets(name)
        for depth in self.depths:
            if depth + above < len(labels):
                zone = self.zones.get(name[labels[-1 - depth] :])
                if zone:
                    return zone
        return None


def build(
    document: DnsDocument,
    place: str,
    counters: Mapping[str, int],
    copies: Mapping[bytes, Zone] = NO_COPIES,
    known: Content | None = None,
) -> Snapshot:
    """Parse, check and compile a document.

    `place` names the document in problems, `counters` maps policies to their counters, `copies` are the
    transferred zones, and `known` is the content of an earlier snapshot, which is shared if it is equal.

    Raises InvalidInputError with all problems, and ClashError if the only problems are clashes with
    transferred records.
    """
    parsed = parse(document, copies=copies, known=(known,) if known else ())
    return compiled(check(parsed), place, counters)


def compiled(checked: Checked, place: str, counters: Mapping[str, int], give_way: bool = False) -> Snapshot:
    """Compile a checked document.

    With `give_way`, hostnames that clash with transferred records are left out. Raises InvalidInputError and
    ClashError as `build` does.
    """
    if checked.faults:
        raise InvalidInputError(checked.problems(place))
    if checked.clashes and not give_way:
        raise ClashError(checked, place)
    document, content, view = checked.parsed.document, checked.parsed.content, checked.parsed.view
    # Hostnames that clash or whose zone is unavailable are not in the snapshot.
    unserved = {name for clashes in checked.clashes.values() for name in clashes}
    unavailable = {zone.apex for zone in content.zones.values() if zone.missing}
    plans = _plans(document, counters)
    target_of = _targets(document, plans)
    targets = {
        name: target_of(each.traits)
        for name, each in content.hostnames.items()
        if name not in unserved and each.apex not in unavailable
    }
    snapshot = Snapshot(
        document,
        content.zones,
        targets,
        ptr_ranges(document),
        sources=_sources(document),
        content=content,
        slots=counters,
        selectors=tuple(plan.selector for plan in plans.values()),
        layout=Layout(document) if document.count_addresses else None,
    )
    if view is None:
        return snapshot
    delegated = {cut for apex in checked.clashes for cut in content.zones[apex].cuts}
    find = _without(view.finder(target_of), unserved, unavailable | delegated)
    return replace(snapshot, registry=view.registry, registered=find)


def _without(
    find: Callable[[bytes], Target | None], unserved: set[bytes], hidden: set[bytes]
) -> Callable[[bytes], Target | None]:
    """Make a look-up that finds neither `unserved` names nor names at or below `hidden` ones."""
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
) -> Callable[[policies.Traits], Target]:
    """Make the function that returns the target of traits; equal candidates share one target."""
    ordered = policies.matchers(document)
    shared: dict[tuple[tuple[int, ...], ...], Target] = {}

    @cache
    def target_of(traits: policies.Traits) -> Target:
        chosen = tuple(_candidates(ordered, traits, document.pop, qtype) for qtype in policies.TYPES)
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
    ordered: tuple[Matcher, ...], traits: policies.Traits, pop: str, qtype: str
) -> tuple[int, ...]:
    """Return the policies that may answer, up to the first without a condition on clients."""
    found = []
    for index, matcher in enumerate(ordered):
        if matcher.may_hold(traits, pop, qtype):
            found.append(index)
            if matcher.clients is None:
                break
    return tuple(found)


def _plans(document: DnsDocument, counters: Mapping[str, int]) -> dict[tuple[int, int], Plan]:
    """Return plans by (index of the policy, type); a family without addresses has none."""
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
    # A pool without addresses of this family is left out; the others share its queries.
    for name, weight in ((answer.pool, answer.weight), *answer.also.items()):
        ranges = ranges_in_use(document.pools[name], version)
        if ranges:
            weighted.append((Drawer(ranges, octets, name), weight))
    if not weighted:
        return None
    if answer.strategy == "sticky":
        key = sticky_key(document.sticky_key.get_secret_value(), policy.name)
        return Sticky(Mix(weighted), answer.records, key, by_client=answer.sticky_by == "client")
    drawer = weighted[0][0] if len(weighted) == 1 else Mix(weighted)
    return Random(drawer, answer.records)
