"""Copies of transferred zones on disk: a restarted server can answer while the primary is unreachable.

A copy's modification time is the time at which a primary last confirmed it; from then on it is valid for the
EXPIRE of its SOA (RFC 1035 section 3.3.13). A newly transferred version is kept in a file of its own beside
the copy until the server accepts or refuses it.
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

_MAGIC = b"unmoor zone 1\n"
_DIGEST_SIZE = 32
_HEAD_SIZE = len(_MAGIC) + _DIGEST_SIZE

# Extended DNS Errors of zones without a valid copy: Not Ready (RFC 8914 section 4.15) and Invalid Data
# (section 4.25).
NOT_READY, INVALID_DATA = 14, 24


@dataclass(frozen=True, slots=True)
class CopyKey:
    """Identifies a copy: the zone's apex, and a state that changes when a catalog resets the zone."""

    apex: bytes
    state: str = ""

    @property
    def stem(self) -> str:
        """The base name of the copy's file: readable, and unique to the key."""
        shown = re.sub(r"[^a-z0-9._-]", "_", names.to_text(self.apex))[:100].lstrip(".")
        return f"{shown}-{hashlib.blake2b(self.apex + self.state.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Copy:
    """A zone, and the time at which a primary last confirmed it, in seconds since 1970."""

    zone: Zone
    refreshed: float

    @property
    def expires(self) -> float:
        """The time at which the copy expires, in seconds since 1970."""
        return self.refreshed + expire(self.zone)


def refresh(zone: Zone) -> int:
    """Return REFRESH of the zone's SOA: seconds between queries of a primary for its serial."""
    return _timer(zone, -16)


def retry(zone: Zone) -> int:
    """Return RETRY of the zone's SOA: seconds until a failed refresh is repeated."""
    return _timer(zone, -12)


def expire(zone: Zone) -> int:
    """Return EXPIRE of the zone's SOA: seconds after the last refresh at which the zone expires."""
    return _timer(zone, -8)


def _timer(zone: Zone, at: int) -> int:
    return int.from_bytes(zone.soa.rdatas[0][2][at : at + 4 or None], "big")


class Store:
    """A directory of copies. With `keep`, parsed zones are cached in memory until their file changes."""

    def __init__(self, directory: Path, keep: bool = False) -> None:
        self._directory = directory
        self._keep = keep
        self._kept: dict[Path, tuple[bytes, Zone]] = {}

    def check(self) -> None:
        """Raise UnmoorError if the directory is not writable."""
        if not os.access(self._directory, os.R_OK | os.W_OK | os.X_OK):
            raise UnmoorError(
                f"{self._directory}: copies of transferred zones cannot be kept there; "
                "make it, owned by the server's user (StateDirectory= of the unit), or name another (--state)"
            )

    def _path(self, key: CopyKey, ending: str = "zone") -> Path:
        return self._directory / f"{key.stem}.{ending}"

    def read(self, key: CopyKey) -> Copy | None:
        """Return the accepted copy; None if there is none or it is damaged."""
        return self._read(self._path(key))

    def offered(self, key: CopyKey) -> Copy | None:
        """Return the version that is neither accepted nor refused yet; None if there is none."""
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
            log.error("%s: cannot be read, and is not used: %s", path, error)  # noqa: TRY400 - a damaged file, not an internal error
            return None
        return Copy(kept[1], refreshed)

    def offer(self, key: CopyKey, zone: Zone) -> None:
        """Write a new version beside the copy. Raises OSError."""
        _write(self._path(key, "new"), _encode(zone))

    def accept(self, key: CopyKey) -> None:
        """Replace the copy by the new version. Raises OSError."""
        offered, copy = self._path(key, "new"), self._path(key)
        offered.replace(copy)
        if offered in self._kept:
            self._kept[copy] = self._kept.pop(offered)

    def refuse(self, key: CopyKey) -> None:
        """Remove the new version, if there is one."""
        self._path(key, "new").unlink(missing_ok=True)

    def confirm(self, key: CopyKey) -> None:
        """Record that a primary has just confirmed the copy's serial. Raises OSError."""
        os.utime(self._path(key))

    def remove(self, key: CopyKey) -> None:
        """Remove the copy and the new version."""
        self.refuse(key)
        self._path(key).unlink(missing_ok=True)

    def members(self) -> list[dict[str, str]]:
        """Return the member zones that `keep_members` wrote; empty if they cannot be read."""
        try:
            found: list[dict[str, str]] = jsontext.parse((self._directory / "members.json").read_bytes())
        except (OSError, ValueError):
            return []
        return found

    def keep_members(self, members: list[dict[str, str]]) -> None:
        """Write the list of member zones. Raises OSError."""
        _write(self._directory / "members.json", json.dumps(members, indent=1).encode() + b"\n")


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically, also in case of a power loss."""
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
    """Decode what `_encode` wrote. Raises ValueError if it is damaged."""
    if head != _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST_SIZE).digest():
        raise ValueError("is damaged, or not a copy of a zone")
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


def current(store: Store, keys: Iterable[CopyKey], now: float) -> dict[bytes, Zone]:
    """Return each key's zone as of `now` (seconds since 1970), an unavailable one if it has no valid copy."""
    return {key.apex: _current(store.read(key), key.apex, now) for key in keys}


def _current(copy: Copy | None, apex: bytes, now: float) -> Zone:
    if copy is None:
        return static_zone.unavailable(apex, NOT_READY)
    return static_zone.unavailable(apex, INVALID_DATA) if copy.expires <= now else copy.zone
