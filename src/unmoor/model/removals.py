"""Removals of a rollout: counted, and refused unless the operator expects them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unmoor.errors import InvalidInputError, Problem
from unmoor.model.dns import DnsDocument
from unmoor.model.documents import Documents
from unmoor.model.edge import EdgeDocument
from unmoor.model.variables import REMOVABLE

#: The variable of site.yml and pool.yml that allows removals.
EXPECTED = "expect_removed"

#: Removed names that a line shows.
_SHOWN = 3


def removed(old: Documents, new: Documents) -> dict[str, list[str]]:
    """Return the names that are in `old` and not in `new`, by kind.

    Hostnames of a registry are counted, not compared: only a smaller registry counts as a removal.
    """
    gone = {
        "prefixes": _gone(map(str, old.edge.prefixes), map(str, new.edge.prefixes)),
        "services": _gone(_services(old.edge), _services(new.edge)),
        "zones": _gone(_zones(old.dns), _zones(new.dns)),
        "hostnames": _gone(_hostnames(old.dns), _hostnames(new.dns)),
    }
    before, after = (dns.registry.names or 0 if dns.registry else 0 for dns in (old.dns, new.dns))
    gone["hostnames"] += [f"registry: {before} -> {after}"] * max(before - after, 0)
    return gone


def parse_expected(text: str) -> dict[str, int]:
    """Parse expected removals, as in `prefixes:1,hostnames:12`. Raises InvalidInputError."""
    expected: dict[str, int] = {}
    for part in filter(None, (each.strip() for each in str(text).split(","))):
        kind, _, number = part.partition(":")
        if kind not in REMOVABLE or not number.isdecimal() or kind in expected:
            why = "is not KIND:NUMBER" if kind not in expected else "is given twice"
            fix = f"write -e {EXPECTED}=hostnames:12, or several with commas; kinds: {', '.join(REMOVABLE)}"
            raise InvalidInputError([Problem("", EXPECTED, part, why, fix)])
        expected[kind] = int(number)
    return expected


def unexpected(
    old: Documents, new: Documents, expected: Mapping[str, int], unasked: Mapping[str, int]
) -> Iterator[str]:
    """Yield each kind of which `new` removes more than `unasked` allows and not the number `expected`."""
    gone = removed(old, new)
    asked = {kind: names for kind, names in gone.items() if len(names) > unasked.get(kind, 0)}
    option = f"-e {EXPECTED}=" + ",".join(f"{kind}:{len(names)}" for kind, names in asked.items())
    for kind, names in asked.items():
        if len(names) == expected.get(kind):
            continue
        some = ", ".join(list(dict.fromkeys(names))[:_SHOWN]) + ("..." if len(names) > _SHOWN else "")
        other = f", and {EXPECTED} has {expected[kind]}" if kind in expected else ""
        count = f"{kind}: {len(names)} that are in force would be removed{other}"
        yield f"{count}: {some}; if that is right: {option}"


def _gone(before: Iterator[str], after: Iterator[str]) -> list[str]:
    stays = set(after)
    return [each for each in dict.fromkeys(before) if each not in stays]


def _services(edge: EdgeDocument) -> Iterator[str]:
    return (each.label for each in edge.services)


def _zones(dns: DnsDocument) -> Iterator[str]:
    yield from (each.name.lower().rstrip(".") for each in dns.zones)
    yield from (each.name.lower().rstrip(".") for each in dns.catalogs)


def _hostnames(dns: DnsDocument) -> Iterator[str]:
    """Yield every hostname of the zones as an absolute name."""
    for zone in dns.zones:
        apex = zone.name.lower().rstrip(".")
        for group in zone.hostnames:
            for name in map(str.lower, group.names):
                if name.endswith("."):
                    yield name.rstrip(".")
                else:
                    yield apex if name == "@" else f"{name}.{apex}"
