"""EDNS Client Subnet (RFC 7871): the client's network as the resolver sends it, and the scope of a reply."""

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
#: Prefix lengths that sticky answers distinguish clients by, by IP version: no longer than what resolvers
#: disclose (RFC 7871 section 11.1).
_STICKY_LENGTH = {4: 24, 6: 56}


class Subnet(NamedTuple):
    """A network: IP version, its address as a number with the host bits zero, and its prefix length."""

    version: int
    number: int
    length: int

    @classmethod
    def of(cls, prefix: Prefix) -> Subnet:
        """Convert from an `ipaddress` network."""
        return cls(prefix.version, int(prefix.network_address), prefix.prefixlen)

    @classmethod
    def of_address(cls, address: str) -> Subnet:
        """Return the network of one address, in a socket's text form (an IPv6 scope is ignored)."""
        if ":" in address:
            packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
            return cls(6, int.from_bytes(packed, "big"), 128)
        return cls(4, int.from_bytes(socket.inet_aton(address), "big"), 32)

    def __str__(self) -> str:
        width = _WIDTH[self.version] // 8
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        return f"{socket.inet_ntop(family, self.number.to_bytes(width, 'big'))}/{self.length}"

    def common(self, other: Subnet) -> int:
        """Return the length of the prefix that both networks share, in bits."""
        width = _WIDTH[self.version]
        same = width - (self.number ^ other.number).bit_length()
        return min(same, self.length, other.length)

    def is_within(self, other: Subnet) -> bool:
        """Report whether `other` contains all of this network."""
        return self.version == other.version and self.common(other) == other.length

    def shortened(self, length: int) -> Subnet:
        """Return the enclosing network of `length` bits, or this network if its prefix is not longer."""
        if self.length <= length:
            return self
        drop = _WIDTH[self.version] - length
        return Subnet(self.version, self.number >> drop << drop, length)

    def as_sticky(self) -> Subnet:
        """Return the network that sticky answers are chosen by: IPv4 /24, IPv6 /56."""
        return self.shortened(_STICKY_LENGTH[self.version])


def parse(option: bytes) -> Subnet:
    """Parse the option's data. Raises QueryError (FORMERR) if it is malformed (RFC 7871 section 7.1.2)."""
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
    """Encode the option of a reply: the query's option data with SCOPE PREFIX-LENGTH set to `scope`, bits."""
    return option[:3] + bytes((scope,)) + option[4:]


def scope(client: Subnet, networks: Iterable[Subnet]) -> int:
    """Return how many bits of a client's address decide which of `networks` contain it.

    A resolver may cache the answer for all clients that share these bits (RFC 7871 section 7.2.1). The scope
    is longer than the source prefix if that is too short to decide: a longer one may get another answer.
    """
    bits = 0
    for network in networks:
        if network.version != client.version:
            continue
        common = client.common(network)
        undecided = common in (network.length, client.length)
        bits = max(bits, network.length if undecided else common + 1)
    return bits
