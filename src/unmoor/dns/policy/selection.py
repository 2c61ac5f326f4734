"""Strategies: which addresses of its pools a policy gives to one query."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from unmoor.dns.policy.pools import Drawer, Mix, Tally
from unmoor.dns.protocol.client_subnet import Subnet

#: How often an answer of several records is drawn again, per record, before fewer are given: a pool hardly
#: larger than the answer has most of its addresses drawn twice.
_PATIENCE = 16


class Selector(Protocol):
    """Gives the addresses of one answer, in network byte order."""

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Choose for a query for `name` (wire form, lower case) from `client`."""

    def scope(self, client: Subnet) -> int:
        """How many bits of the client's address the choice depends on."""

    def count_into(self, tally: Tally) -> None:
        """Count the addresses that are given from now on."""

    def settle(self) -> None:
        """Count what was given and is not counted yet."""


class Counting:
    """What strategies count that give addresses to the careful path alone: each as it is given."""

    def __init__(self) -> None:
        self._tally: Tally | None = None

    def count_into(self, tally: Tally) -> None:
        """Count the addresses that are given from now on."""
        self._tally = tally

    def settle(self) -> None:
        """Everything is counted."""

    def given(self, addresses: Iterable[bytes]) -> Sequence[bytes]:
        """Count addresses, and give them."""
        found = tuple(addresses)
        if self._tally:
            for each in found:
                self._tally.add(each)
        return found


class Random(Counting):
    """Addresses drawn anew for every query, each different from the others of the same answer."""

    def __init__(self, drawer: Drawer | Mix, records: int) -> None:
        super().__init__()
        self.drawer = drawer
        self.records = min(records, drawer.size)

    def count_into(self, tally: Tally) -> None:
        """Count; single addresses by the batch that they are drawn in, since the hot path takes them too."""
        if self.records == 1:
            self.drawer.count_into(tally)
        else:
            super().count_into(tally)

    def settle(self) -> None:
        """Count those of the batch that were taken."""
        self.drawer.settle()

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Draw; neither name nor client matters."""
        if self.records == 1:
            return (self.drawer(),)
        chosen: dict[bytes, None] = {}
        for _ in range(self.records * _PATIENCE):
            chosen[self.drawer()] = None
            if len(chosen) == self.records:
                break
        return self.given(chosen)

    def scope(self, client: Subnet) -> int:
        """Nothing of it."""
        return 0


class Sticky(Counting):
    """Addresses that follow from a keyed hash of the name, or of the client's network.

    The same on every edge that has the same key and pools. A change of the pools moves most to another.
    """

    def __init__(self, mix: Mix, records: int, key: bytes, by_client: bool) -> None:
        super().__init__()
        self.mix = mix
        self._records = min(records, mix.size)
        self._key = key
        self.by_client = by_client

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Hash what the answers stick to, together with a count until there are enough addresses."""
        who = repr(tuple(client.as_sticky())).encode() if self.by_client else name
        chosen: dict[bytes, None] = {}
        for count in range(self._records * _PATIENCE):
            digest = hashlib.blake2b(count.to_bytes(4, "big") + who, key=self._key, digest_size=48).digest()
            # Scaled, not reduced: with 192 bits for at most 2**128 addresses no address is favoured by
            # more than one in 2**64.
            share = int.from_bytes(digest[:24], "big") * self.mix.total >> 192
            drawer = self.mix.pick(share)
            chosen[drawer.at(int.from_bytes(digest[24:], "big") * drawer.size >> 192)] = None
            if len(chosen) == self._records:
                break
        return self.given(chosen)

    def scope(self, client: Subnet) -> int:
        """As much of it as answers stick to."""
        return client.as_sticky().length if self.by_client else 0


class Pinned(Counting):
    """The same addresses for everybody."""

    def __init__(self, addresses: Sequence[bytes]) -> None:
        super().__init__()
        self._addresses = tuple(addresses)

    def addresses(self, name: bytes, client: Subnet) -> Sequence[bytes]:
        """Give all of them."""
        return self.given(self._addresses)

    def scope(self, client: Subnet) -> int:
        """Nothing of it."""
        return 0


def sticky_key(secret: str, policy: str) -> bytes:
    """The key of one policy: two policies on the same pool give a name different addresses."""
    return hashlib.blake2b(policy.encode(), key=hashlib.sha256(secret.encode()).digest()).digest()
