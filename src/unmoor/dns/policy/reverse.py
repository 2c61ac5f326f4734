"""PTR answers for the addresses of pools, from a template (RFC 1035 section 3.5, RFC 3596 section 2.5)."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from unmoor.dns.policy.pools import Range, ranges_of
from unmoor.dns.protocol import names
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.model import DnsDocument

#: The placeholder of the address in a template.
ADDRESS = "{address}"

_IPV4 = b"\7in-addr\4arpa\0"
_IPV6 = b"\3ip6\4arpa\0"


class PtrRange(NamedTuple):
    """Addresses with PTR records: IP version, range, and the template of their names."""

    version: int
    addresses: Range
    template: str


def ptr_ranges(document: DnsDocument) -> tuple[PtrRange, ...]:
    """Return the ranges of all pools that have a template."""
    return tuple(
        PtrRange(prefix.version, addresses, pool.ptr)
        for pool in document.pools.values()
        if pool.ptr
        for prefix in (*pool.ipv4, *pool.ipv6)
        for addresses in ranges_of([prefix])
    )


def parse(name: bytes) -> Subnet | None:
    """Return the network of a reverse name, which may lack labels on its left; None for any other name."""
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
    """Parse a label as a number in its canonical form; None if it is not one."""
    if not label.isalnum() or len(label) > 3:
        return None
    try:
        number = int(label, base)
    except ValueError:
        return None
    written = str(number) if base == 10 else f"{number:x}"
    return number if label == written.encode() else None


def name_of(address: bytes) -> bytes:
    """Return the reverse name, in wire form, of an address in network byte order."""
    return names.from_text(ip_address(address).reverse_pointer + ".")


def target(found: Subnet, ranges: Iterable[PtrRange]) -> bytes | None:
    """Return the PTR target, in wire form, of the address `found`.

    It is empty if `found` is a network that contains addresses of `ranges`, and None if none of them is in
    it.
    """
    size = 1 << ((32 if found.version == 4 else 128) - found.length)
    for version, addresses, template in ranges:
        overlap = addresses.first < found.number + size and found.number < addresses.first + addresses.size
        if version == found.version and overlap:
            return expand(template, version, found.number) if size == 1 else b""
    return None


def expand(template: str, version: int, number: int) -> bytes:
    """Replace the placeholder by the address, with dashes between its parts; return the name in wire form.

    Raises ValueError if the result is not a domain name.
    """
    address = ip_address(number.to_bytes(4 if version == 4 else 16, "big"))
    return names.from_text(template.replace(ADDRESS, address.exploded.replace(".", "-").replace(":", "-")))
