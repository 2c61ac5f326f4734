"""Proves a new generation before it is switched in: the program must choose what the document says.

For each binding the first, a middle and the last address are asked on its first and last port, and the
addresses next to the prefix as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from unmoor.errors import UnmoorError
from unmoor.model import Binding
from unmoor.sockets.lookup import explainer
from unmoor.sockets.precedence import Precedence
from unmoor.sockets.record import Record

#: So many bindings are proved one by one; of more, so many spread evenly over all of them.
MOST_BINDINGS = 2000


def verify(generation: Path, record: Record) -> int:
    """Ask the generation pinned at `generation` and compare; returns how many look-ups agreed.

    Raises UnmoorError at the first that does not.
    """
    bindings = record.bindings
    expected = Precedence(bindings)
    names = {index: name for name, index in record.interfaces.items()}
    asked = 0
    with explainer(generation) as twin:
        for binding, address, port in _questions(bindings):
            ifindex = record.interfaces.get(binding.interface, 0)
            wanted = expected.find(binding.protocol, address, port, names.get(ifindex, ""))
            answer = twin.ask(binding.protocol, address, port, ifindex)
            service = None if wanted is None else record.services[wanted.service]
            if answer.service != service:
                raise UnmoorError(
                    f"the new table is wrong, nothing was switched: {binding.protocol} {address} port {port} "
                    f"must reach service id {service}, not {answer.service}; please report this"
                )
            asked += 1
    return asked


def _questions(
    bindings: Sequence[Binding],
) -> Iterator[tuple[Binding, IPv4Address | IPv6Address, int]]:
    step = max(1, -(-len(bindings) // MOST_BINDINGS))
    for binding in bindings[::step]:
        prefix = binding.prefix
        kind = type(prefix.network_address)
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        highest = (1 << prefix.max_prefixlen) - 1
        addresses = {first, last, (first + last) // 2, max(first - 1, 0), min(last + 1, highest)}
        for port in {max(binding.first_port, 1), binding.last_port}:
            for address in sorted(addresses):
                yield binding, kind(address), port
