"""The registry: one immutable file of hostnames and what each carries, mapped into memory by all workers.

    header | names | index | summary

`names` are entries, sorted into buckets: the octet 255, the name's length less one, the name in wire form,
two octets for its kind. Neither names nor kinds hold the octet 255, so it marks the beginning of an entry and
nothing else: what is found behind it, with the right length, is the name that was asked for and no other.
`index` says where each bucket begins, and one more: where the last ends. `summary` is JSON: the kinds (one
for each combination of tags and zone that occurs), how many names each has, and one of these.

A name's bucket are the upper bits of the name, read as a number, modulo a prime. The prime is the file's own:
whoever would fill one bucket with names chosen for it makes the builder take another.
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
#: Magic, version, checksum; then what the checksum covers as well: sizes and places (octets), see `Header`.
_PREAMBLE = struct.Struct("<8sII")
_FIELDS = struct.Struct("<QQQQIII4x")
HEADER_SIZE = _PREAMBLE.size + _FIELDS.size

#: Marks the beginning of an entry; no name and no kind holds it.
MARK = b"\xff"
#: What stands before a name of each length; before none, what stands nowhere.
HEADS = (MARK + MARK, *(MARK + bytes((size - 1,)) for size in range(1, names.MAX_NAME + 1)))
#: Octets of a kind, and the kind of a name that exists only because there are names below it (RFC 8020).
KIND_SIZE = 2
INTERIOR = b"\xfe\xfe"
#: A kind's number is written to the base 255; the last one is taken.
MAX_KINDS = 254 * 255 + 254
#: Remainders are below this: prime numbers just below it are one digit of Python's long integers.
HASH_BITS = 30

_CHUNK = 1 << 22
#: MADV_POPULATE_READ (madvise(2)); Python does not name it yet.
_POPULATE_READ = 22
#: Octets that are taken apart at once when all entries are read.
_STRIDE = 1 << 20

Tags = frozenset[tuple[str, str]]
T = TypeVar("T")


class RegistryError(UnmoorError):
    """A file that is no registry we can serve: why, and the fix."""

    def __init__(self, path: Path, why: str, fix: str) -> None:
        super().__init__(f"{path}: {why}\n    fix: {fix}")
        self.why, self.fix = why, fix


@dataclass(frozen=True, slots=True)
class Header:
    """Where things are. `size` of the file, `index` and `summary` in octets from its beginning.

    There are 2 ** `bits` buckets; `width` is the size of a number of the index, octets.
    """

    size: int
    index: int
    summary: int
    names: int
    prime: int
    bits: int
    width: int

    def pack(self, checksum_of_body: int) -> bytes:
        """Write the header; the checksum is that of all that follows it, and then of the fields."""
        fields = _FIELDS.pack(
            self.size, self.index, self.summary, self.names, self.prime, self.bits, self.width
        )
        return _PREAMBLE.pack(MAGIC, VERSION, zlib.crc32(fields, checksum_of_body)) + fields


@dataclass(frozen=True, slots=True)
class Kind:
    """What names have in common: their tags and their zone's apex; how many there are, and one of them."""

    tags: Tags
    apex: bytes
    count: int
    example: bytes


def kind_key(number: int) -> bytes:
    """Write a kind's number as entries hold it."""
    return bytes(divmod(number, 255))


@dataclass(eq=False)
class Registry:
    """An open registry. `kinds` are by the octets that stand for them in entries, `zones` the apexes."""

    path: Path
    header: Header
    zones: tuple[bytes, ...]
    kinds: Mapping[bytes, Kind]
    interior: int
    _map: mmap.mmap
    #: Gives the kind of a name (wire form, lower case), INTERIOR for one that is none but has some below it.
    find: Callable[[bytes], bytes | None] = field(init=False)

    def __post_init__(self) -> None:
        self.find = self.finder(lambda kind: kind)

    def __len__(self) -> int:
        """How many hostnames it holds."""
        return self.header.names

    @property
    def offsets(self) -> memoryview:
        """Where the buckets begin, and where the last one ends."""
        size = ((1 << self.header.bits) + 1) * self.header.width
        part = memoryview(self._map)[self.header.index : self.header.index + size]
        form: Literal["I", "Q"] = "I" if self.header.width == 4 else "Q"
        return part.cast(form)

    def finder(self, meaning: Callable[[bytes], T | None]) -> Callable[[bytes], T | None]:
        """Make a function that gives what `meaning` gives for a name's kind, or None for an unknown name.

        It is right for any octets, well-formed names or not.
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
        """What is known of a hostname; None for a name that is none."""
        return self.kinds.get(self.find(name) or b"")

    def exists(self, name: bytes) -> bool:
        """Whether it is a hostname, or has hostnames below it."""
        return self.find(name) is not None

    def zone_of(self, name: bytes) -> bytes | None:
        """The closest apex, of those that it was built for, at or above a name."""
        return next((suffix for suffix in names.suffixes(name) if suffix in self.zones), None)

    def names_in(self, apex: bytes) -> list[Kind]:
        """The kinds of a zone that it was built for."""
        return [kind for kind in self.kinds.values() if kind.apex == apex]

    def populate(self) -> None:
        """Enter all of it into the page tables of this process, so that no look-up has to."""
        with suppress(OSError):  # Linux below 5.14
            self._map.madvise(_POPULATE_READ)

    def octets(self, start: int, end: int) -> bytes:
        """The entries of whole buckets, as they stand in the file, from one offset to another."""
        return self._map[start:end]

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every name with its kind, interior ones as well, bucket by bucket."""
        for piece in self.pieces():
            for entry in piece:
                yield entry[1:-KIND_SIZE], entry[-KIND_SIZE:]

    def pieces(self) -> Iterator[list[bytes]]:
        """Every entry as it stands in the file, without its mark, some thousand at a time."""
        at, end = HEADER_SIZE, self.offsets[-1]
        rest = b""
        while at < end:
            # A piece ends anywhere; what follows its last mark waits for the next one.
            whole = (rest + self._map[at : min(at + _STRIDE, end)]).split(MARK)
            at += _STRIDE
            rest = whole.pop()
            yield whole if at > HEADER_SIZE + _STRIDE else whole[1:]  # nothing stands before the first mark
        if rest:
            yield [rest]

    def first_below(self, ancestor: bytes) -> bytes | None:
        """A hostname below a name, for a message: it may read the whole file."""
        for name, kind in self.entries():
            if kind != INTERIOR and name != ancestor and names.is_below(name, ancestor):
                return name
        return None


def open_registry(path: Path, sha256: str | None = None) -> Registry:
    """Map a registry into memory, and verify every octet of it: against `sha256`, or its own checksum.

    A file that was verified once is not read again while it is the last one opened and stays as it is.
    Raises RegistryError.
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
    """The summary as `_read_summary` reads it; equal content gives equal octets."""
    rows = [
        [key[0] * 255 + key[1], zones.index(kind.apex), kind.count, names.to_text(kind.example), tags]
        for key, kind in sorted(kinds.items())
        for tags in [dict(sorted(kind.tags))]
    ]
    summary = {"zones": list(map(names.to_text, zones)), "interior": interior, "kinds": rows}
    return json.dumps(summary, separators=(",", ":")).encode()


def _read_header(path: Path, data: bytes, size: int) -> tuple[Header, int]:
    """Read the header of a file of `size` octets; gives the checksum that it claims as well."""
    if len(data) < _PREAMBLE.size or data[: len(MAGIC)] != MAGIC:
        raise RegistryError(path, "is not a registry", _BUILD)
    _, version, checksum = _PREAMBLE.unpack_from(data)
    if version != VERSION:
        why = f"has the format {version}, and this release of unmoor reads {VERSION}"
        raise RegistryError(path, why, "build it with this release, or install the one that it is for")
    if len(data) < HEADER_SIZE:
        raise RegistryError(path, "is cut short within its header", _BROKEN)
    header = Header(*_FIELDS.unpack_from(data, _PREAMBLE.size))
    if header.size != size:
        raise RegistryError(path, f"has {size} octets, not {header.size} as it says", _BROKEN)
    index = ((1 << min(header.bits, HASH_BITS)) + 1) * header.width
    places = HEADER_SIZE <= header.index <= header.index + index <= header.summary <= size
    if not places or header.bits > HASH_BITS or header.width not in (4, 8) or header.prime < 2:
        raise RegistryError(path, "is damaged: its header contradicts itself", _BROKEN)
    if sys.byteorder != "little":
        raise RegistryError(path, "is for little-endian machines", "serve it on x86-64 or arm64")
    return header, checksum


def _checksum(file: Any) -> int:
    file.seek(HEADER_SIZE)
    found = 0
    while chunk := file.read(_CHUNK):
        found = zlib.crc32(chunk, found)
    file.seek(_PREAMBLE.size)
    return zlib.crc32(file.read(_FIELDS.size), found)


def sha256_of(path: Path) -> str:
    """The digest that a document names a registry by, as `sha256sum` prints it. Raises RegistryError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RegistryError(path, str(error.strerror), _BUILD) from None
