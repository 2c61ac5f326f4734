"""Checks of pools: their prefixes, exclusions and PTR templates."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from unmoor.dns.policy import pools, reverse
from unmoor.dns.protocol import names
from unmoor.errors import Fault, Key
from unmoor.model import DnsDocument


def pool_faults(document: DnsDocument) -> Iterator[Fault]:
    """Yield empty pools, prefixes that overlap, and exclusions that are wrong."""
    for name, pool in document.pools.items():
        path: Key = ("pools", name)
        if not pool.ipv4 and not pool.ipv6:
            yield Fault(path, "", "has no addresses", "add prefixes to ipv4, to ipv6, or to both")
        for family, version, prefixes in (("ipv4", 4, pool.ipv4), ("ipv6", 6, pool.ipv6)):
            for one, two in pools.overlaps(prefixes):
                why = f"overlaps with {one}: the shared addresses would be drawn twice as often"
                yield Fault((*path, family), str(two), why, "remove one, or make them disjoint")
            if prefixes and not pools.ranges_in_use(pool, version):
                why = f"excludes all of the pool's {family} addresses"
                yield Fault((*path, "exclude"), "", why, f"exclude fewer, or leave {family} empty")
        for position, excluded in enumerate(pool.exclude):
            whole = pools.ranges_of(pool.ipv4 if excluded.version == 4 else pool.ipv6)
            cut = pools.ranges_of([excluded])
            if pools.without(cut, whole):
                why = "is not wholly in the pool's prefixes, so there is nothing to exclude"
                fix = "correct it, or remove it"
                yield Fault((*path, "exclude", position), str(excluded), why, fix)


def pointer_faults(document: DnsDocument, apexes: Collection[bytes]) -> Iterator[Fault]:
    """Yield wrong PTR templates of pools, and those whose reverse zones do not exist."""
    for name, pool in document.pools.items():
        path = ("pools", name, "ptr")
        if not pool.ptr:
            continue
        fix = f"write a name with {reverse.ADDRESS} in it, as in ip-{reverse.ADDRESS}.example.com"
        if reverse.ADDRESS not in pool.ptr:
            yield Fault(
                path, pool.ptr, f"has no {reverse.ADDRESS}: all addresses would have the same name", fix
            )
            continue
        for prefix in (*pool.ipv4, *pool.ipv6):
            ends = (prefix.network_address, prefix.broadcast_address)
            try:
                reverse.expand(pool.ptr, prefix.version, int(ends[0]))
            except ValueError as error:
                yield Fault(path, pool.ptr, str(error), fix)
                break
            missing = [
                end for end in ends if not any(names.is_below(reverse.name_of(end.packed), a) for a in apexes)
            ]
            if missing:
                why = f"is for {prefix}, but no zone contains {missing[0].reverse_pointer}"
                yield Fault(path, pool.ptr, why, "add the reverse zones to zones, or remove ptr")
