"""Which binding takes a packet, said in the plainest way; the compiled table must agree with this."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from unmoor.model import Binding, Protocol
from unmoor.sockets.table import aligned, key

_FULL = (1 << 128) - 1


def order(binding: Binding) -> tuple[int, int, bool]:
    """Sorts bindings by precedence: longest prefix, then the narrower range of ports, then an interface."""
    return -binding.prefix.prefixlen, binding.last_port - binding.first_port, not binding.interface


class Precedence:
    """Bindings, ready to be asked one address at a time."""

    def __init__(self, bindings: Iterable[Binding]) -> None:
        self._by_prefix: dict[tuple[str, int, int], dict[int, list[Binding]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for binding in bindings:
            value, length = key(binding.prefix)
            self._by_prefix[binding.protocol, binding.prefix.version, length][value].append(binding)
        for found in self._by_prefix.values():
            for same in found.values():
                if len(same) > 1:
                    same.sort(key=order)
        self._lengths = {
            (protocol, family): sorted(
                (length for p, f, length in self._by_prefix if (p, f) == (protocol, family)), reverse=True
            )
            for protocol, family, _ in self._by_prefix
        }

    def find(
        self, protocol: Protocol, address: IPv4Address | IPv6Address, port: int, interface: str = ""
    ) -> Binding | None:
        """The binding that takes a packet to this address and port, or None."""
        value, family = aligned(address), address.version
        for length in self._lengths.get((protocol, family), ()):
            masked = value & (_FULL ^ (_FULL >> length))
            for binding in self._by_prefix[protocol, family, length].get(masked, ()):
                if binding.first_port <= port <= binding.last_port and binding.interface in ("", interface):
                    return binding
        return None
