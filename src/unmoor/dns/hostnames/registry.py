"""The registry: an immutable file of hostnames and their tags, which all workers map into memory.

    header | names | index | summary

`names` are entries in buckets. An entry is the octet 255, the name's length less one, the name in wire form,
and two octets for its kind. Neither names nor kinds contain the octet 255, so it occurs only at the beginning
of an entry: a name that is found after it, with the right length, is a whole name and not a part of another.
`index` holds the offset of each bucket, and the end of the last one. `summary` is JSON: the kinds (one for
each combination of tags and zone that occurs), the number of names of each kind, and an example.

A name's bucket is the upper bits of (the name as a number modulo a prime). Each file has its own prime: if
names are chosen to fill one bucket, the builder uses another prime.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from unmoor import jsontext
from unmoor.dns.protocol import names
from unmoor.errors import UnmoorError

MAGIC = b"UNMOORRG"
VERSION = 1
#: Magic, version and checksum, followed by the fields of `Header`, which the checksum covers too.
_PREAMBLE = struct.Struct("<8sII")
_FIELDS = struct.Struct("<QQQQIII4x")
HEADER_SIZE = _PREAMBLE.size + _FIELDS.size

#: The first octet of an entry; no name and no kind contains it.
MARK = b"\xff"
#: The octets before a name, by its length. For length 0, octets that occur nowhere.
HEADS = (MARK + MARK, *(MARK + bytes((size - 1,)) for size in range(1, names.MAX_NAME + 1)))
#: Octets of a kind, and the kind of names that only have hostnames below them (RFC 8020).
KIND_SIZE = 2
INTERIOR = b"\xfe\xfe"
#: Kinds are numbered in base 255, so that no octet is 255; the last number is INTERIOR.
MAX_KINDS = 254 * 255 + 254
#: Bits of a remainder. Primes below 2 ** 30 are one digit of a Python integer, which makes modulo fast.
HASH_BITS = 30

_CHUNK = 1 << 22
#: MADV_POPULATE_READ of madvise(2), which Python 3.11 does not define.
_POPULATE_READ = 22
#: Octets that `pieces` splits at a time.
_STRIDE = 1 << 20

Tags = frozenset[tuple[str, str]]
T = TypeVar("T")


class RegistryError(UnmoorError):
    """A file that is not a valid registry: the reason, and the fix."""

    def __init__(self, path: Path, why: str, fix: str) -> None:
        super().__init__(f"{path}: {why}\n    fix: {fix}")
        self.why, self.fix = why, fix


@dataclass(frozen=True, slots=True)
class Header:
    """The header's fields: the file's size in octets, the offsets of index and summary, the number of names.

    There are 2 ** `bits` buckets; `width` is the size of a number of the index in octets, 4 or 8.
    """

    size: int
    index: int
    summary: int
    names: int
    prime: int
    bits: int
    width: int

    def pack(self, checksum_of_body: int) -> bytes:
        """Encode the header. The file's checksum continues `checksum_of_body` with the fields."""
        fields = _FIELDS.pack(
            self.size, self.index, self.summary, self.names, self.prime, self.bits, self.width
        )
        return _PREAMBLE.pack(MAGIC, VERSION, zlib.crc32(fields, checksum_of_body)) + fields


@dataclass(frozen=True, slots=True)
class Kind:
    """Hostnames with the same tags in the same zone: their number, and an example in wire form."""

    tags: Tags
    apex: bytes
    count: int
    example: bytes


def kind_key(number: int) -> bytes:
    """Encode a kind's number."""
    return bytes(divmod(number, 255))


@dataclass(eq=False)
class Registry:
    """An open registry: its zones' apexes, kinds by encoded number, and number of empty non-terminals."""

    path: Path
    header: Header
    zones: tuple[bytes, ...]
    kinds: Mapping[bytes, Kind]
    interior: int
    _map: mmap.mmap
    #: Returns a name's encoded kind, INTERIOR for an empty non-terminal, None for an unknown name.
    find: Callable[[bytes], bytes | None] = field(init=False)

    def __post_init__(self) -> None:
        self.find = self.finder(lambda kind: kind)

    def __len__(self) -> int:
        """Return the number of hostnames."""
        return self.header.names

    @property
    def offsets(self) -> memoryview:
        """The offset of each bucket, and the end of the last one."""
        size = ((1 << self.header.bits) + 1) * self.header.width
        part = memoryview(self._map)[self.header.index : self.header.index + size]
        form: Literal["I", "Q"] = "I" if self.header.width == 4 else "Q"
        return part.cast(form)

    def finder(self, meaning: Callable[[bytes], T | None]) -> Callable[[bytes], T | None]:
        """Make a function that maps a name to `meaning` of its kind, and an unknown name to None.

        Names are in wire form and lower case; octets that are not a well-formed name are unknown.
        """
        offsets, find, mapped, heads, kind_size = self.offsets, self._map.find, self._map, HEADS, KIND_SIZE
        prime, shift, number = self.header.prime, HASH_BITS - self.header.bits, int.from_bytes

        def found(name: bytes) -> T | None:
            try:
                entry = heads[len(name)] + name
            except IndexError:  # longer than any name
                return None
            bucket = number(name, "little") % prime >> shift
            at = find(entry, offsets[bucket], offsets[bucket + 1])
            if at < 0:
                return None
            at += len(entry)
            return meaning(mapped[at : at + kind_size])

        return found

    def kind_of(self, name: bytes) -> Kind | None:
        """Return a hostname's kind; None if it is not a hostname."""
        return self.kinds.get(self.find(name) or b"")

    def exists(self, name: bytes) -> bool:
        """Report whether `name` is a hostname or has hostnames below it."""
        return self.find(name) is not None

    def zone_of(self, name: bytes) -> bytes | None:
        """Return the closest apex of `zones` at or above a name, None if there is none."""
        return next((suffix for suffix in names.suffixes(name) if suffix in self.zones), None)

    def names_in(self, apex: bytes) -> list[Kind]:
        """Return the kinds of the zone `apex`."""
        return [kind for kind in self.kinds.values() if kind.apex == apex]

    def populate(self) -> None:
        """Map all pages into this process now, so that look-ups cause no page faults."""
        with suppress(OSError):  # Linux below 5.14
            self._map.madvise(_POPULATE_READ)

    def octets(self, start: int, end: int) -> bytes:
        """Return the file's octets between the offsets of two buckets."""
        return self._map[start:end]

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every name with its encoded kind, empty non-terminals included, in the order of the file."""
        for piece in self.pieces():
            for entry in piece:
                yield entry[1:-KIND_SIZE], entry[-KIND_SIZE:]

    def pieces(self) -> Iterator[list[bytes]]:
        """Yield all entries, encoded and without their mark, in lists of some thousands."""
        at, end = HEADER_SIZE, self.offsets[-1]
        rest = b""
        while at < end:
            # A piece may end within an entry: what follows its last mark is prepended to the next piece.
            whole = (rest + self._map[at : min(at + _STRIDE, end)]).split(MARK)
            at += _STRIDE
            rest = whole.pop()
            yield whole if at > HEADER_SIZE + _STRIDE else whole[1:]  # empty before the first mark
        if rest:
            yield [rest]

    def first_below(self, ancestor: bytes) -> bytes | None:
        """Return a hostname below a name, as an example for a message; may read the whole file."""
        for name, kind in self.entries():
            if kind != INTERIOR and name != ancestor and names.is_below(name, ancestor):
                return name
        return None


def open_registry(path: Path, sha256: str | None = None) -> Registry:
    """Map a registry into memory and verify the whole file against `sha256` or, if None, its own checksum.

    The last file opened is not verified again until its size, inode or modification time changes. Raises
    RegistryError.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise RegistryError(path, str(error.strerror), _BUILD) from None
    return _open(path, sha256, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


_BUILD = "build it with `unmoor dns registry build`, or name another file"
_BROKEN = "copy it again from where it was built, or build it again"


@lru_cache(maxsize=1)
def _open(path: Path, sha256: str | None, _identity: tuple[int, ...]) -> Registry:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, checksum = _read_header(path, file.read(HEADER_SIZE), size)
            if sha256:
                file.seek(0)
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    why = f"is not the file that the document names: its SHA-256 is {found}, not {sha256}"
                    raise RegistryError(path, why, _BROKEN)
            elif _checksum(file) != checksum:
                raise RegistryError(path, "is damaged: its checksum is wrong", _BROKEN)
            mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    except OSError as error:
        raise RegistryError(path, str(error.strerror), _BUILD) from None
    try:
        zones, kinds, interior = _read_summary(mapped[header.summary :])
    except (ValueError, KeyError, TypeError, IndexError):
        raise RegistryError(path, "is damaged: its summary cannot be read", _BROKEN) from None
    return Registry(path, header, zones, kinds, interior, mapped)


def _read_summary(data: bytes) -> tuple[tuple[bytes, ...], dict[bytes, Kind], int]:
    summary = jsontext.parse(data)
    zones = tuple(names.from_text(zone) for zone in summary["zones"])
    kinds = {
        kind_key(number): Kind(frozenset(tags.items()), zones[zone], count, names.from_text(example))
        for number, zone, count, example, tags in summary["kinds"]
    }
    return zones, kinds, summary["interior"]


def write_summary(zones: Sequence[bytes], kinds: Mapping[bytes, Kind], interior: int) -> bytes:
    """Encode the summary. Equal arguments give equal octets."""
    rows = [
        [key[0] * 255 + key[1], zones.index(kind.apex), kind.count, names.to_text(kind.example), tags]
        for key, kind in sorted(kinds.items())
        for tags in [dict(sorted(kind.tags))]
    ]
    summary = {"zones": list(map(names.to_text, zones)), "interior": interior, "kinds": rows}
    return json.dumps(summary, separators=(",", ":")).encode()


def _read_header(path: Path, data: bytes, size: int) -> tuple[Header, int]:
    """Parse the header of a file of `size` octets; return it and the checksum. Raises RegistryError."""
    if len(data) < _PREAMBLE.size or data[: len(MAGIC)] != MAGIC:
        raise RegistryError(path, "is not a registry", _BUILD)
    _, version, checksum = _PREAMBLE.unpack_from(data)
    if version != VERSION:
        why = f"has format version {version}, and this release of unmoor reads version {VERSION}"
        raise RegistryError(path, why, "build it with this release, or install the release that built it")
    if len(data) < HEADER_SIZE:
        raise RegistryError(path, "is cut short within its header", _BROKEN)
    header = Header(*_FIELDS.unpack_from(data, _PREAMBLE.size))
    if header.size != size:
        raise RegistryError(path, f"has {size} octets, not {header.size} as in its header", _BROKEN)
    index = ((1 << min(header.bits, HASH_BITS)) + 1) * header.width
    places = HEADER_SIZE <= header.index <= header.index + index <= header.summary <= size
    if not places or header.bits > HASH_BITS or header.width not in (4, 8) or header.prime < 2:
        raise RegistryError(path, "is damaged: its header is inconsistent", _BROKEN)
    if sys.byteorder != "little":
        raise RegistryError(
            path, "is supported on little-endian machines only", "serve it on x86-64 or arm64"
        )
    return header, checksum


def _checksum(file: Any) -> int:
    file.seek(HEADER_SIZE)
    found = 0
    while chunk := file.read(_CHUNK):
        found = zlib.crc32(chunk, found)
    file.seek(_PREAMBLE.size)
    return zlib.crc32(file.read(_FIELDS.size), found)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal, as in the document's `registry`. Raises RegistryError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RegistryError(path, str(error.strerror), _BUILD) from None
