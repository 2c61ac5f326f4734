"""Copies of transferred zones on disk, so that a restart serves them while the primary is away.

A copy's time of modification is when a primary last confirmed it: it is valid from then on for as long as
its SOA's EXPIRE says (RFC 1035 section 3.3.13). A version that was just transferred is an offer beside the
copy, until whoever serves the zone has accepted it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unmoor import jsontext
from unmoor.dns.protocol import names
from unmoor.dns.protocol.message import RRset
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_file import ZoneFileError
from unmoor.errors import UnmoorError

log = logging.getLogger(__name__)

#: Where copies are kept: StateDirectory= of the unit.
DIRECTORY = Path("/var/lib/unmoor-dns")

_MAGIC = b"unmoor zone 1\n"
_DIGEST_SIZE = 32
_HEAD_SIZE = len(_MAGIC) + _DIGEST_SIZE

# Why a zone is not answered for (RFC 8914): section 4.15, and section 4.25, 'its most recent zone being too
# old, or having expired'.
NOT_READY, INVALID_DATA = 14, 24


@dataclass(frozen=True, slots=True)
class Key:
    """Which copy: of the zone `apex`; `state` tells its lives apart where a catalog resets it."""

    apex: bytes
    state: str = ""

    @property
    def stem(self) -> str:
        """The name of its file: readable, and different for every key."""
        shown = re.sub(r"[^a-z0-9._-]", "_", names.to_text(self.apex))[:100].lstrip(".")
        return f"{shown}-{hashlib.blake2b(self.apex + self.state.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Copy:
    """A zone, and when a primary last confirmed it, seconds since 1970."""

    zone: Zone
    refreshed: float

    @property
    def expires(self) -> float:
        """When it may no longer be answered from, seconds since 1970."""
        return self.refreshed + expire(self.zone)


def refresh(zone: Zone) -> int:
    """Seconds after which a primary is asked whether its serial has changed."""
    return _timer(zone, -16)


def retry(zone: Zone) -> int:
    """Seconds after which it is asked again when it did not answer."""
    return _timer(zone, -12)


def expire(zone: Zone) -> int:
    """Seconds without an answer after which the zone is no longer answered for."""
    return _timer(zone, -8)


def _timer(zone: Zone, at: int) -> int:
    return int.from_bytes(zone.soa.rdatas[0][2][at : at + 4 or None], "big")


class Store:
    """The directory of copies. With `keep`, zones that were read stay in memory, and are not read again."""

    def __init__(self, directory: Path, keep: bool = False) -> None:
        self._directory = directory
        self._keep = keep
        self._kept: dict[Path, tuple[bytes, Zone]] = {}

    def check(self) -> None:
        """Raise UnmoorError where no copy could be kept."""
        if not os.access(self._directory, os.R_OK | os.W_OK | os.X_OK):
            raise UnmoorError(
                f"{self._directory}: copies of transferred zones cannot be kept there; "
                "make it, owned by the server's user (StateDirectory= of the unit), or name another (--state)"
            )

    def _path(self, key: Key, ending: str = "zone") -> Path:
        return self._directory / f"{key.stem}.{ending}"

    def read(self, key: Key) -> Copy | None:
        """Give the copy that was accepted last; None if there is none, or it is damaged."""
        return self._read(self._path(key))

    def offered(self, key: Key) -> Copy | None:
        """Give the version that waits to be accepted."""
        return self._read(self._path(key, "new"))

    def _read(self, path: Path) -> Copy | None:
        try:
            with path.open("rb") as file:
                refreshed = os.fstat(file.fileno()).st_mtime
                head = file.read(_HEAD_SIZE)
                kept = self._kept.get(path)
                if kept is None or kept[0] != head:
                    kept = (head, _decode(head, file.read()))
                    if self._keep:
                        self._kept[path] = kept
        except FileNotFoundError:
            self._kept.pop(path, None)
            return None
        except (OSError, ValueError, IndexError, struct.error, ZoneFileError) as error:
            log.error("%s: cannot be read, and is not used: %s", path, error)  # noqa: TRY400 - a damaged file, not a defect
            return None
        return Copy(kept[1], refreshed)

    def offer(self, key: Key, zone: Zone) -> None:
        """Write a version beside the copy. Raises OSError."""
        _write(self._path(key, "new"), _encode(zone))

    def accept(self, key: Key) -> None:
        """Put the version that waits in the copy's place."""
        offered, copy = self._path(key, "new"), self._path(key)
        offered.replace(copy)
        if offered in self._kept:
            self._kept[copy] = self._kept.pop(offered)

    def refuse(self, key: Key) -> None:
        """Throw the version that waits away."""
        self._path(key, "new").unlink(missing_ok=True)

    def confirm(self, key: Key) -> None:
        """Note that a primary has just said that the copy is its own version. Raises OSError."""
        os.utime(self._path(key))

    def remove(self, key: Key) -> None:
        """Forget a zone."""
        self.refuse(key)
        self._path(key).unlink(missing_ok=True)

    def members(self) -> list[dict[str, str]]:
        """Give what `keep_members` kept; nothing if there is nothing to be read."""
        try:
            found: list[dict[str, str]] = jsontext.parse((self._directory / "members.json").read_bytes())
        except (OSError, ValueError):
            return []
        return found

    def keep_members(self, members: list[dict[str, str]]) -> None:
        """Keep which member zones there are. Raises OSError."""
        _write(self._directory / "members.json", json.dumps(members, indent=1).encode() + b"\n")


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a loss of power."""
    fresh = path.with_name(path.name + ".part")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _encode(zone: Zone) -> bytes:
    body = b"".join(_encoded(rrset) for node in zone.nodes.values() for rrset in node.values())
    return _MAGIC + hashlib.blake2b(zone.apex + body, digest_size=_DIGEST_SIZE).digest() + zone.apex + body


def _encoded(rrset: RRset) -> bytes:
    parts = [rrset.owner, struct.pack("!HII", rrset.rtype, rrset.ttl, len(rrset.rdatas))]
    for rdata in rrset.rdatas:
        data = b"".join(rdata)
        parts += (len(data).to_bytes(2, "big"), data)
    return b"".join(parts)


def _decode(head: bytes, body: bytes) -> Zone:
    """Read what `_encode` wrote. Raises ValueError for what it did not."""
    if head != _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST_SIZE).digest():
        raise ValueError("is damaged, or no copy of ours")
    end = names.end(body)
    return static_zone.of(body[:end], _decoded(body, end))


def _decoded(body: bytes, at: int) -> Iterator[RRset]:
    while at < len(body):
        end = names.end(body, at)
        owner = body[at:end]
        rtype, ttl, count = struct.unpack_from("!HII", body, end)
        at = end + 10
        datas = []
        for _ in range(count):
            start = at + 2
            at = start + int.from_bytes(body[at:start], "big")
            datas.append(static_zone.pieces(rtype, body[start:at]))
        yield RRset(owner, rtype, ttl, tuple(datas))


def current(store: Store, keys: Iterable[Key], now: float) -> dict[bytes, Zone]:
    """Give each zone as it is to be answered from at `now`, a dark one where there is no valid copy."""
    return {key.apex: _current(store.read(key), key.apex, now) for key in keys}


def _current(copy: Copy | None, apex: bytes, now: float) -> Zone:
    if copy is None:
        return static_zone.dark(apex, NOT_READY)
    return static_zone.dark(apex, INVALID_DATA) if copy.expires <= now else copy.zone
