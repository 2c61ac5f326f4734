"""Describes the differences between two documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from unmoor.model import DnsDocument, Policy, Pool, Zone
from unmoor.model.dns import Primary
from unmoor.model.secrets import secret_fields

#: Settings with a single value that is not a secret.
_SETTINGS = (
    *("pop", "edge", "port", "any_address", "workers", "rate_limit", "tell_name", "tell_version"),
    *("tcp_connections", "tcp_per_client", "tcp_idle", "transfer_limit"),
    *("journal_keep", "query_log", "count_addresses"),
)


def describe_change(old: DnsDocument, new: DnsDocument) -> list[str]:
    """Return one line for each difference; secrets are named, not shown. Empty for equal documents."""
    return [
        *_settings(old, new),
        *_pools(old, new),
        *_policies(old, new),
        *_zones(old, new),
        *_catalogs(old, new),
    ]


def _settings(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    for key in _SETTINGS:
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            yield f"{key}: {before} -> {after}"
    if old.registry != new.registry:
        yield f"registry: {old.registry or 'none'} -> {new.registry or 'none'}"
    if old.listen != new.listen:
        yield f"listen: {_row(old.listen)} -> {_row(new.listen)}"
    for key in sorted(secret_fields(DnsDocument)):
        if getattr(old, key) != getattr(new, key):
            yield f"{key}: changed"


def _pools(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    for name in _union(old.pools, new.pools):
        before, after = old.pools.get(name, Pool()), new.pools.get(name, Pool())
        if name not in new.pools:
            yield f"pool {name}: removed (was {_row(before.ipv4 + before.ipv6)})"
            continue
        # One line per family, so that it shows what changed and nothing else.
        for one, two in ((before.ipv4, after.ipv4), (before.ipv6, after.ipv6)):
            if one != two:
                yield f"pool {name}: {_row(one)} -> {_row(two)}"
        if before.ptr != after.ptr:
            yield f"pool {name}: ptr {before.ptr or 'nothing'} -> {after.ptr or 'nothing'}"
        if before.exclude != after.exclude:
            yield f"pool {name}: exclude {_row(before.exclude)} -> {_row(after.exclude)}"


def _policies(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    before = {policy.name: policy for policy in old.policies}
    after = {policy.name: policy for policy in new.policies}
    for name in _union(before, after):
        if name not in after:
            yield f"policy {name}: removed"
        elif name not in before:
            yield f"policy {name}: added ({_policy(after[name])})"
        else:
            yield from (f"policy {name}: {line}" for line in _fields(before[name], after[name]))
    kept_before = [name for name in before if name in after]
    kept_after = [name for name in after if name in before]
    if kept_before != kept_after:
        yield f"policies: order {_row(kept_before)} -> {_row(kept_after)}"


def _policy(policy: Policy) -> str:
    return f"pool {policy.answer.pool}, ttl {policy.answer.ttl}"


def _fields(old: Policy, new: Policy) -> Iterator[str]:
    if old.exclusive != new.exclusive:
        yield "exclusive now" if new.exclusive else "no longer exclusive"
    for part in ("match", "answer"):
        before, after = getattr(old, part).model_dump(mode="json"), getattr(new, part).model_dump(mode="json")
        for key in _union(before, after):
            if before[key] != after[key]:
                yield f"{key} {_value(before[key])} -> {_value(after[key])}"


def _zones(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    before, after = {zone.name: zone for zone in old.zones}, {zone.name: zone for zone in new.zones}
    for name in _union(before, after):
        if name not in after:
            yield f"zone {name}: removed"
        elif name not in before:
            yield f"zone {name}: added, hostnames {len(_hostnames(after[name]))}"
        else:
            yield from (f"zone {name}: {line}" for line in _zone(before[name], after[name]))


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
    before = {catalog.name: catalog for catalog in old.catalogs}
    after = {catalog.name: catalog for catalog in new.catalogs}
    for name in _union(before, after):
        if name not in after:
            yield f"catalog {name}: removed, and its member zones"
        elif name not in before:
            yield f"catalog {name}: added, from {_primaries(after[name].primaries)}"
        elif before[name] != after[name]:
            yield f"catalog {name}: changed"


def _primaries(primaries: Iterable[Primary]) -> str:
    return _row(f"{each.address} port {each.port}" for each in primaries)


def _hostnames(zone: Zone) -> dict[str, dict[str, str]]:
    return {name: group.tags for group in zone.hostnames for name in group.names}


def _union(old: Iterable[str], new: Iterable[str]) -> Iterable[str]:
    """Return the keys of both, in the new order, removed keys last."""
    return dict.fromkeys([*new, *old])


def _row(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "nothing"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return _row(f"{key}={each}" for key, each in value.items())
    return _row(value) if isinstance(value, list) else "any" if value is None else str(value)
