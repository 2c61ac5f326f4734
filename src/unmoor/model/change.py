"""The differences of documents, one line each; no line shows a secret.

`describe_change` serves a reload of the DNS server, `compare` the plan of a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from unmoor.model.common import Document
from unmoor.model.dns import DnsDocument, Policy, Pool, Primary, Zone
from unmoor.model.documents import Documents
from unmoor.model.edge import EdgeDocument
from unmoor.model.secrets import secret_fields

#: Fields of a DNS document with lines of their own; each other field is one setting.
_PARTS = ("pools", "policies", "zones", "catalogs")
D = TypeVar("D", bound=Document)
#: Characters of a line of a plan; a service may have a hundred thousand prefixes.
MAX_PLAN_LINE = 200


@dataclass(frozen=True)
class Change:
    """The differences of an edge's documents.

    `lines` has all of them, `not_dns_alone` those that pool.yml refuses: it changes pools and policies only.
    """

    lines: tuple[str, ...]
    not_dns_alone: tuple[str, ...]


def compare(current: Documents | None, desired: Documents) -> Change:
    """Compare the documents in force on an edge (None: nothing is rolled out yet) with the desired ones."""
    if current is None:
        why = "nothing is rolled out here yet: run playbooks/site.yml first"
        return Change(("everything is new",), (why,))
    old, new = current.dns, desired.dns
    other = (
        *_edge(current.edge, desired.edge),
        *(f"DNS {line}" for line in _settings(old, new, ignored=("pop", "edge"))),
        *_zones(old, new),
        *_catalogs(old, new),
    )
    lines = [_cut(line) for line in (*other, *_pools(old, new), *_policies(old, new))]
    refused = [
        f"{line}: not a change of DNS pools alone; run playbooks/site.yml" for line in lines[: len(other)]
    ]
    return Change(tuple(lines), tuple(refused))


def describe_change(old: DnsDocument, new: DnsDocument) -> list[str]:
    """Describe each difference of two DNS documents in a line; the list is empty for equal documents."""
    return [
        *_settings(old, new),
        *_pools(old, new),
        *_policies(old, new),
        *_zones(old, new),
        *_catalogs(old, new),
    ]


def _edge(old: EdgeDocument, new: EdgeDocument) -> Iterator[str]:
    for word, name in (("prefix", "prefixes"), ("address", "addresses")):
        before, after = getattr(old, name), getattr(new, name)
        yield from (f"{word} {prefix}: added" for prefix in after if prefix not in before)
        yield from (f"{word} {prefix}: removed" for prefix in before if prefix not in after)
    services = _by(old.services, "label"), _by(new.services, "label")
    for label in _union(*services):
        yield from (f"service {label}{line}" for line in _service(*(each.get(label) for each in services)))
    if (old.pop, old.edge) != (new.pop, new.edge):
        yield f"edge {old.pop}/{old.edge} -> {new.pop}/{new.edge}"


def _service(old: Document | None, new: Document | None) -> Iterator[str]:
    if old is None or new is None:
        yield ": added" if old is None else ": removed"
        return
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f" {name}: {_shown(before)} -> {_shown(after)}"


def _settings(old: DnsDocument, new: DnsDocument, ignored: tuple[str, ...] = ()) -> Iterator[str]:
    secret = secret_fields(DnsDocument)
    for name in DnsDocument.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name in _PARTS or name in ignored or before == after:
            continue
        yield f"{name}: changed" if name in secret else f"{name}: {_shown(before)} -> {_shown(after)}"


def _pools(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    for name in _union(old.pools, new.pools):
        before, after = old.pools.get(name, Pool()), new.pools.get(name, Pool())
        if name not in new.pools:
            yield f"pool {name}: removed (was {_row(before.ipv4 + before.ipv6)})"
            continue
        # A line for each family, so that it shows only what changed.
        for one, two in ((before.ipv4, after.ipv4), (before.ipv6, after.ipv6)):
            if one != two:
                yield f"pool {name}: {_row(one)} -> {_row(two)}"
        if before.ptr != after.ptr:
            yield f"pool {name}: ptr {before.ptr or 'nothing'} -> {after.ptr or 'nothing'}"
        if before.exclude != after.exclude:
            yield f"pool {name}: exclude {_row(before.exclude)} -> {_row(after.exclude)}"


def _policies(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    yield from _named(
        "policy",
        old.policies,
        new.policies,
        lambda policy: f"added (pool {policy.answer.pool}, ttl {policy.answer.ttl})",
        _policy,
    )
    before, after = _by(old.policies, "name"), _by(new.policies, "name")
    kept_before = [name for name in before if name in after]
    kept_after = [name for name in after if name in before]
    if kept_before != kept_after:
        yield f"policies: order {_row(kept_before)} -> {_row(kept_after)}"


def _policy(old: Policy, new: Policy) -> Iterator[str]:
    if old.exclusive != new.exclusive:
        yield "exclusive now" if new.exclusive else "no longer exclusive"
    for part in ("match", "answer"):
        before, after = getattr(old, part).model_dump(mode="json"), getattr(new, part).model_dump(mode="json")
        for key in _union(before, after):
            if before[key] != after[key]:
                yield f"{key} {_value(before[key])} -> {_value(after[key])}"


def _zones(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    yield from _named(
        "zone", old.zones, new.zones, lambda zone: f"added, hostnames {len(_hostnames(zone))}", _zone
    )


def _zone(old: Zone, new: Zone) -> Iterator[str]:
    if old.records != new.records:
        before, after = set(old.records.splitlines()), set(new.records.splitlines())
        yield f"records +{len(after - before)} -{len(before - after)} lines"
    if old.primaries != new.primaries:
        yield f"primaries {_primaries(old.primaries)} -> {_primaries(new.primaries)}"
    one, two = _hostnames(old), _hostnames(new)
    added, removed = two.keys() - one.keys(), one.keys() - two.keys()
    if added or removed:
        yield f"hostnames +{len(added)} -{len(removed)}"
    if changed := sum(one[name] != two[name] for name in one.keys() & two.keys()):
        yield f"tags of {changed} hostname{'s' * (changed != 1)} changed"


def _catalogs(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    yield from _named(
        "catalog",
        old.catalogs,
        new.catalogs,
        lambda catalog: f"added, from {_primaries(catalog.primaries)}",
        lambda _old, _new: (),
        removed="removed, and its member zones",
    )


def _named(
    kind: str,
    old: Iterable[D],
    new: Iterable[D],
    added: Callable[[D], str],
    changed: Callable[[D, D], Iterable[str]],
    removed: str = "removed",
) -> Iterator[str]:
    """Yield the lines of parts that have names, in the new order, then the removed ones.

    `added` describes a part, `changed` the differences of two parts of one name.
    """
    before, after = _by(old, "name"), _by(new, "name")
    for name in _union(before, after):
        if name not in after:
            lines: Iterable[str] = (removed,)
        elif name not in before:
            lines = (added(after[name]),)
        elif before[name] != after[name]:
            # 'changed' for what has no words: another grouping of the same hostnames, for example.
            lines = tuple(changed(before[name], after[name])) or ("changed",)
        else:
            lines = ()
        yield from (f"{kind} {name}: {line}" for line in lines)


def _primaries(primaries: Iterable[Primary]) -> str:
    return _row(f"{each.address} port {each.port}" for each in primaries)


def _hostnames(zone: Zone) -> dict[str, dict[str, str]]:
    return {name: group.tags for group in zone.hostnames for name in group.names}


def _cut(line: str) -> str:
    return line if len(line) <= MAX_PLAN_LINE else f"{line[:MAX_PLAN_LINE]}... (long; see --diff)"


def _by(items: Iterable[D], key: str) -> dict[str, D]:
    return {getattr(item, key): item for item in items}


def _union(old: Mapping[str, object], new: Mapping[str, object]) -> Iterable[str]:
    """The keys of both, the new order first."""
    return dict.fromkeys([*new, *old])


def _row(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "nothing"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return _row(f"{key}={each}" for key, each in value.items())
    return _row(value) if isinstance(value, list) else "any" if value is None else str(value)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return _row(value) if isinstance(value, tuple) else str(value)
