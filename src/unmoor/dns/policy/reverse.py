"""Names of addresses (RFC 1035 section 3.5, RFC 3596 section 2.5): PTR for pools, made from a template."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from unmoor.dns.policy.pools import Range, ranges_of
from unmoor.dns.protocol import names
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.model import DnsDocument

#: Where the address stands in a template.
ADDRESS = "{address}"

_IPV4 = b"\7in-addr\4arpa\0"
_IPV6 = b"\3ip6\4arpa\0"


class Named(NamedTuple):
    """Addresses that have names: IP version, the addresses, and the template."""

    version: int
    addresses: Range
    template: str


def named(document: DnsDocument) -> tuple[Named, ...]:
    """Give every range of the document's pools that has a template."""
    return tuple(
        Named(prefix.version, addresses, pool.ptr)
        for pool in document.pools.values()
        if pool.ptr
        for prefix in (*pool.ipv4, *pool.ipv6)
        for addresses in ranges_of([prefix])
    )


def parse(name: bytes) -> Subnet | None:
    """Read a reverse name, whole or cut short at the left, as the network that it stands for."""
    for ending, version, base, digits in ((_IPV4, 4, 10, 8), (_IPV6, 6, 16, 4)):
        if not name.endswith(ending):
            continue
        number, length, width = 0, 0, 32 if version == 4 else 128
        for label in reversed(list(names.labels(name[: -len(ending)] + names.ROOT))):
            value = _number(label, base)
            length += digits
            if value is None or value >> digits or length > width:
                return None
            number |= value << (width - length)
        return Subnet(version, number, length)
    return None


def _number(label: bytes, base: int) -> int | None:
    """Read a label as a number written the one way that reverse names write it."""
    if not label.isalnum() or len(label) > 3:
        return None
    try:
        number = int(label, base)
    except ValueError:
        return None
    written = str(number) if base == 10 else f"{number:x}"
    return number if label == written.encode() else None


def name_of(address: bytes) -> bytes:
    """Give the reverse name of an address in network byte order, in wire form."""
    return names.from_text(ip_address(address).reverse_pointer + ".")


def target(found: Subnet, ranges: Iterable[Named]) -> bytes | None:
    """Give the name of the address that `found` is, empty if it is a network with named addresses in it.

    None says that no name is known at or below it.
    """
    size = 1 << ((32 if found.version == 4 else 128) - found.length)
    for version, addresses, template in ranges:
        overlap = addresses.first < found.number + size and found.number < addresses.first + addresses.size
        if version == found.version and overlap:
            return expand(template, version, found.number) if size == 1 else b""
    return None


def expand(template: str, version: int, number: int) -> bytes:
    """Put an address into a template, with dashes. Raises ValueError if that gives no domain name."""
    address = ip_address(number.to_bytes(4 if version == 4 else 16, "big"))
    return names.from_text(template.replace(ADDRESS, address.exploded.replace(".", "-").replace(":", "-")))
