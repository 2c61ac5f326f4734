"""Finds what answers for a name: a delegation, a DNAME, the name itself, a wildcard, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from unmoor.dns.answer.snapshot import Snapshot
from unmoor.dns.protocol import message, names
from unmoor.dns.zones.static_zone import Zone


class Match(IntEnum):
    """What a name matches in its zone."""

    #: A delegation at or above the name.
    REFERRAL = 0
    #: A DNAME above the name.
    DNAME = 1
    #: No name and no wildcard.
    NOTHING = 2
    #: The name itself, or a wildcard.
    OWNER = 3


def match(
    snapshot: Snapshot, zone: Zone, name: bytes, qtype: int, labels: Sequence[int]
) -> tuple[Match, bytes]:
    """Return what `name` matches in `zone`, and its owner; the apex if that is nothing.

    `labels` are the `names.offsets` of `name`.
    """
    cut = zone.cut_above(name, labels)
    if cut is not None:
        above = zone.nodes[cut]
        if message.NS in above and cut != zone.apex and (cut != name or qtype != message.DS):
            return Match.REFERRAL, cut
        if message.DNAME in above and cut != name:
            return Match.DNAME, cut
    source = source_of(snapshot, zone, name, labels)
    return (Match.NOTHING, zone.apex) if source is None else (Match.OWNER, source)


def source_of(snapshot: Snapshot, zone: Zone, name: bytes, labels: Sequence[int] = ()) -> bytes | None:
    """Return the owner of the records that answer for `name`: itself, a wildcard, or None.

    The wildcard is the asterisk label below the closest encloser (RFC 4592 section 3.3.1). The encloser is
    found by bisection, since the ancestors of a name that exists exist as well (RFC 8020): a query for a name
    with many labels must not cost more than others.
    """
    nodes, exists = zone.nodes, snapshot.exists
    if name in nodes or exists(name):
        return name
    labels = labels or names.offsets(name)
    missing, existing = 0, labels.index(len(name) - len(zone.apex))
    while existing - missing > 1:
        middle = (missing + existing) // 2
        suffix = name[labels[middle] :]
        if suffix in nodes or exists(suffix):
            existing = middle
        else:
            missing = middle
    asterisk = b"\1*" + name[labels[existing] :]
    return asterisk if asterisk in nodes or exists(asterisk) else None
