"""Who asks: the client's network as the resolver names it (RFC 7871), or the resolver's own address."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NamedTuple

from unmoor.dns.protocol.message import FORMERR, QueryError
from unmoor.model.common import Prefix

#: The option's code (RFC 7871 section 6).
OPTION = 8

_WIDTH = {4: 32, 6: 128}
_VERSION = {1: 4, 2: 6}
#: By which part of its address a client is told from others, where answers stick to clients: no finer than
#: what resolvers disclose (RFC 7871 section 11.1).
_STICKY_LENGTH = {4: 24, 6: 56}


class Subnet(NamedTuple):
    """A network: IP version, its address as a number with the host bits zero, and its prefix length."""

    version: int
    number: int
    length: int

    @classmethod
    def of(cls, prefix: Prefix) -> Subnet:
        """Convert from the standard library's form."""
        return cls(prefix.version, int(prefix.network_address), prefix.prefixlen)

    @classmethod
    def of_address(cls, address: str) -> Subnet:
        """Make the network of one address, as a socket gives it."""
        if ":" in address:
            packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
            return cls(6, int.from_bytes(packed, "big"), 128)
        return cls(4, int.from_bytes(socket.inet_aton(address), "big"), 32)

    def __str__(self) -> str:
        width = _WIDTH[self.version] // 8
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        return f"{socket.inet_ntop(family, self.number.to_bytes(width, 'big'))}/{self.length}"

    def common(self, other: Subnet) -> int:
        """How many leading bits both have in common, as far as both reach."""
        width = _WIDTH[self.version]
        same = width - (self.number ^ other.number).bit_length()
        return min(same, self.length, other.length)

    def is_within(self, other: Subnet) -> bool:
        """Whether `other` contains all of this network."""
        return self.version == other.version and self.common(other) == other.length

    def shortened(self, length: int) -> Subnet:
        """The network around this one with at most `length` bits."""
        if self.length <= length:
            return self
        drop = _WIDTH[self.version] - length
        return Subnet(self.version, self.number >> drop << drop, length)

    def as_sticky(self) -> Subnet:
        """The part of a client's address that its answers stick to."""
        return self.shortened(_STICKY_LENGTH[self.version])


def parse(option: bytes) -> Subnet:
    """Read the option's data. Raises QueryError (FORMERR) as RFC 7871 section 7.1.2 asks."""
    if len(option) < 4:
        raise QueryError(FORMERR)
    version = _VERSION.get(int.from_bytes(option[:2], "big"))
    source, scope, address = option[2], option[3], option[4:]
    if version is None or scope or source > _WIDTH[version] or len(address) != (source + 7) // 8:
        raise QueryError(FORMERR)
    number = int.from_bytes(address.ljust(_WIDTH[version] // 8, b"\0"), "big")
    subnet = Subnet(version, number, source)
    if subnet != Subnet(version, number, _WIDTH[version]).shortened(source):
        raise QueryError(FORMERR)
    return subnet


def echo(option: bytes, scope: int) -> bytes:
    """Write the option of a reply: as it was asked, with the scope that the answer holds for."""
    return option[:3] + bytes((scope,)) + option[4:]


def scope(client: Subnet, networks: Iterable[Subnet]) -> int:
    """How many bits of a client's address decide which of `networks` it is in (RFC 7871 section 7.2.1).

    The answer may be kept for every client that shares these bits. It may be more than the resolver named:
    then it was not enough to know, and a longer prefix would be told a different answer.
    """
    bits = 0
    for network in networks:
        if network.version != client.version:
            continue
        common = client.common(network)
        undecided = common in (network.length, client.length)
        bits = max(bits, network.length if undecided else common + 1)
    return bits
