"""Strategies: how the addresses of one answer are chosen from a policy's pools."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from unmoor.dns.policy.pools import Counters, Drawer, Mix
from unmoor.dns.policy.rendezvous import Rendezvous, draw
from unmoor.dns.protocol.client_subnet import Subnet

#: Draws per record of an answer before it is left with fewer records: if the pool is hardly larger than the
#: answer, most draws repeat an address.
_MAX_DRAWS = 16


class Selector(Protocol):
    """Chooses the addresses of an answer, in network byte order."""

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Choose addresses for a query for `name` (wire form, lower case) from `client`."""

    def scope(self, client: Subnet) -> int:
        """Return how many bits of the client's address the choice depends on (RFC 7871 section 7.2.1)."""

    def count_into(self, counters: Counters) -> None:
        """Count in `counters` the addresses returned from now on."""

    def settle(self) -> None:
        """Count the addresses that were returned and are not counted yet."""


class Counting:
    """Counts addresses as they are returned, for strategies that the fast path does not use."""

    def __init__(self) -> None:
        self._counters: Counters | None = None

    def count_into(self, counters: Counters) -> None:
        """Count in `counters` the addresses returned from now on."""
        self._counters = counters

    def settle(self) -> None:
        """Do nothing: all addresses are counted."""

    def given(self, addresses: Iterable[bytes]) -> Sequence[bytes]:
        """Count and return addresses."""
        found = tuple(addresses)
        if self._counters:
            for each in found:
                self._counters.add(each)
        return found


class Random(Counting):
    """Random addresses for every query; those of one answer differ."""

    def __init__(self, drawer: Drawer | Mix, records: int) -> None:
        super().__init__()
        self.drawer = drawer
        self.records = min(records, drawer.size)

    def count_into(self, counters: Counters) -> None:
        """Count in `counters`; single addresses are counted in batches, as the fast path uses them too."""
        if self.records == 1:
            self.drawer.count_into(counters)
        else:
            super().count_into(counters)

    def settle(self) -> None:
        """Count the addresses of the current batch that were used."""
        self.drawer.settle()

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Draw addresses, whatever the name and client."""
        if self.records == 1:
            return (self.drawer(),)
        chosen: dict[bytes, None] = {}
        for _ in range(self.records * _MAX_DRAWS):
            chosen[self.drawer()] = None
            if len(chosen) == self.records:
                break
        return self.given(chosen)

    def scope(self, client: Subnet) -> int:
        """Return 0: the choice does not depend on the client."""
        return 0


class Sticky(Counting):
    """Addresses derived from a keyed hash of the name, or of the client's network.

    All edges with the same key and pools choose the same addresses. If an address is excluded, only what
    it was chosen for moves; if a pool grows, only to its new addresses; if the share of a pool's weight
    changes, only to or from that pool (`rendezvous`).
    """

    def __init__(self, mix: Mix, records: int, key: bytes, by_client: bool) -> None:
        super().__init__()
        self.mix = mix
        self._pools = [
            (drawer.pool.encode(), weight, drawer.octets, Rendezvous(drawer.ranges, drawer.octets))
            for drawer, weight in mix.weighted
        ]
        self._records = min(records, mix.size)
        self._key = key
        self.by_client = by_client

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Hash the name or the client's network with a counter until there are enough different addresses."""
        sticky_to = repr(tuple(client.as_sticky())).encode() if self.by_client else name
        chosen: dict[bytes, None] = {}
        for count in range(self._records * _MAX_DRAWS):
            data = count.to_bytes(4, "big") + sticky_to
            chosen[self._choose(hashlib.blake2b(data, key=self._key, digest_size=32).digest())] = None
            if len(chosen) == self._records:
                break
        return self.given(chosen)

    def _choose(self, key: bytes) -> bytes:
        """Choose a pool by the same method, with its weight for a size, then one of its addresses."""
        _, _, octets, addresses = (
            self._pools[0]
            if len(self._pools) == 1
            else min(self._pools, key=lambda pool: draw(key, pool[0])[0] / pool[1])
        )
        return addresses.choose(key).to_bytes(octets, "big")

    def scope(self, client: Subnet) -> int:
        """Return the prefix length that answers are sticky to; 0 if they are sticky to the name."""
        return client.as_sticky().length if self.by_client else 0


class Pinned(Counting):
    """The same addresses for every query."""

    def __init__(self, addresses: Sequence[bytes]) -> None:
        super().__init__()
        self._addresses = tuple(addresses)

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Return all addresses."""
        return self.given(self._addresses)

    def scope(self, client: Subnet) -> int:
        """Return 0: the choice does not depend on the client."""
        return 0


def sticky_key(secret: str, policy: str) -> bytes:
    """Derive a policy's key, so that two policies with the same pool give a name different addresses."""
    return hashlib.blake2b(policy.encode(), key=hashlib.sha256(secret.encode()).digest()).digest()
