"""What lies between the documents in force on an edge and those that the inventory asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unmoor.model.common import Document
from unmoor.model.dns import DnsDocument
from unmoor.model.documents import Documents
from unmoor.model.edge import EdgeDocument
from unmoor.model.secrets import secret_fields

#: What a pool change may touch: the addresses in use, and who uses them.
POOL_CHANGE = ("pools", "policies")


@dataclass(frozen=True)
class Change:
    """The difference, and why pool.yml must not make it.

    `lines` say what differs; `not_dns_alone` are the reasons why it is more than a change of the addresses in
    use.
    """

    lines: tuple[str, ...]
    not_dns_alone: tuple[str, ...]


def compare(current: Documents | None, desired: Documents) -> Change:
    """Compare what is in force on an edge (None: nothing yet) with what is asked for."""
    if current is None:
        why = "nothing is rolled out here yet: run playbooks/site.yml first"
        return Change(("everything is new",), (why,))
    edge = tuple(_edge_lines(current.edge, desired.edge))
    other = tuple(_other_dns_lines(current.dns, desired.dns))
    pools = tuple(_pool_lines(current.dns, desired.dns))
    refused = tuple(
        f"{line}: not a change of DNS pools alone; run playbooks/site.yml" for line in edge + other
    )
    return Change(edge + other + pools, refused)


def _edge_lines(old: EdgeDocument, new: EdgeDocument) -> Iterator[str]:
    for word, name in (("prefix", "prefixes"), ("address", "addresses")):
        before, after = getattr(old, name), getattr(new, name)
        yield from (f"{word} {prefix}: new" for prefix in after if prefix not in before)
        yield from (f"{word} {prefix}: gone" for prefix in before if prefix not in after)
    yield from _named("service", _by(old.services, "label"), _by(new.services, "label"))
    if (old.pop, old.edge) != (new.pop, new.edge):
        yield f"edge {old.pop}/{old.edge} -> {new.pop}/{new.edge}"


def _other_dns_lines(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    yield from _named("zone", _by(old.zones, "name"), _by(new.zones, "name"))
    for name in type(new).model_fields:
        if name not in (*POOL_CHANGE, "zones", "pop", "edge") and getattr(old, name) != getattr(new, name):
            secret = name in secret_fields(type(new))
            shown = "changed" if secret else f"{_short(getattr(old, name))} -> {_short(getattr(new, name))}"
            yield f"DNS {name}: {shown}"


def _pool_lines(old: DnsDocument, new: DnsDocument) -> Iterator[str]:
    yield from _named("pool", old.pools, new.pools)
    before, after = _by(old.policies, "name"), _by(new.policies, "name")
    yield from _named("policy", before, after)
    if list(before) != list(after) and set(before) == set(after):
        yield f"policies: order {', '.join(before)} -> {', '.join(after)}"


def _by(items: tuple[Any, ...], key: str) -> dict[str, Document]:
    return {getattr(item, key): item for item in items}


def _named(word: str, old: Mapping[str, Document], new: Mapping[str, Document]) -> Iterator[str]:
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            yield f"{word} {name}: gone"
        elif name not in old:
            yield f"{word} {name}: new"
        elif old[name] != new[name]:
            yield from _fields(f"{word} {name}", old[name], new[name])


def _fields(what: str, old: Document, new: Document) -> Iterator[str]:
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(after, Document):
            yield from _fields(f"{what} {name}", before, after)
        else:
            yield f"{what} {name}: {_short(before)} -> {_short(after)}"


def _short(value: object) -> str:
    text = (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
    return text if len(text) <= 100 and "\n" not in text else "(long; see --diff)"
