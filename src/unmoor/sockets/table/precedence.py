"""The order of precedence in its simplest form, against which the compiled table is verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from unmoor.model import Binding, Protocol
from unmoor.sockets.table.rules import LENGTH_BITS, LENGTH_MASK, Key, Rule, prefix_text

#: First and last address of a range, and the service that takes packets to all of it, or None.
Stretch = tuple[int, int, str | None]

_BITS = {4: 32, 6: 128}


def order(binding: Binding) -> tuple[int, int, bool]:
    """Return the sort key of precedence: longest prefix, narrowest range of ports, then an interface."""
    return -binding.prefix.prefixlen, binding.last_port - binding.first_port, not binding.interface


class Line(NamedTuple):
    """A binding for display, with its prefix as text."""

    protocol: Protocol
    prefix: str
    first_port: int
    last_port: int
    service: str
    interface: str


def lines(rules: Iterable[Rule]) -> Iterator[Line]:
    """Yield the bindings of rules by protocol and family, then in order of precedence."""
    found = sorted(
        (
            rule.protocol,
            rule.family,
            -(key & LENGTH_MASK),
            rule.width,
            not rule.interface,
            key,
            rule.first,
            rule.last,
            rule.service,
            rule.interface,
        )
        for rule in rules
        for key in rule.keys
    )
    for protocol, family, _, _, _, key, first, last, service, interface in found:
        yield Line(protocol, prefix_text(key, family), first, last, service, interface)


def stretches(rules: Iterable[Rule], family: int, port: int, interface: str = "") -> list[Stretch]:
    """Divide all addresses of a family where any prefix of `rules` begins or ends.

    Returns the stretches with the service of each. `rules` are of one protocol and this family; those that do
    not apply at this port and interface divide only. If none applies, the stretches are the prefixes, without
    a service.
    """
    bits = _BITS[family]
    services = _services_at(rules, port, interface)
    if not any(services.values()):
        return [(start, end - 1, None) for start, end in (_ends(key, bits) for key in services)]
    return _cut(services, bits)


def _ends(key: Key, bits: int) -> tuple[int, int]:
    """Return the first address of a prefix, and the one after its last."""
    start = key >> LENGTH_BITS + 128 - bits
    return start, start + (1 << bits - (key & LENGTH_MASK))


def _services_at(rules: Iterable[Rule], port: int, interface: str) -> dict[Key, str | None]:
    """Return the service bound at each prefix; None where a shorter prefix decides."""

    def holds(rule: Rule) -> bool:
        return rule.first <= port <= rule.last and rule.interface in ("", interface)

    services: dict[Key, str | None] = {}
    # Later updates win: the narrower range, and at equal ranges the one for an interface.
    for rule in sorted(rules, key=lambda rule: (holds(rule), -rule.width, bool(rule.interface))):
        services.update(dict.fromkeys(rule.keys, rule.service if holds(rule) else None))
    return services


def _cut(services: dict[Key, str | None], bits: int) -> list[Stretch]:
    """Scan the addresses once, in order; the innermost of the prefixes around an address decides."""
    found: list[Stretch] = []
    inside: list[tuple[int, str | None]] = [(1 << bits, None)]  # the ends of the prefixes around `at`
    at = 0
    shift = LENGTH_BITS + 128 - bits
    for key in sorted(services):  # an outer prefix comes before those inside it
        start = key >> shift
        end = start + (1 << bits - (key & LENGTH_MASK))
        while inside[-1][0] <= start:
            inner_end, service = inside.pop()
            if at < inner_end:
                found.append((at, inner_end - 1, service))
                at = inner_end
        outer = inside[-1][1]
        if at < start:
            found.append((at, start - 1, outer))
            at = start
        own = services[key]
        inside.append((end, outer if own is None else own))
    while inside:
        end, service = inside.pop()
        if at < end:
            found.append((at, end - 1, service))
            at = end
    return found
