"""Builds a registry from a list of hostnames in bounded memory.

Entries are first spread over parts on disk by hash, then each part is sorted into buckets and written. Equal
lists give equal files, because primes are tried in a fixed order; random ones follow only if these fail.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from math import isqrt
from pathlib import Path
from typing import IO

from unmoor.dns.hostnames.registry import (
    HASH_BITS,
    HEADER_SIZE,
    INTERIOR,
    KIND_SIZE,
    MARK,
    Header,
    Kind,
    write_summary,
)
from unmoor.dns.hostnames.registry_list import (
    BadLineError,
    BadLines,
    EntryEncoder,
    Line,
    ancestor_entry,
    entry,
)
from unmoor.dns.protocol import names
from unmoor.errors import UnmoorError

#: Entries of a bucket. Four to five are usual; a look-up searches the whole bucket.
MAX_IN_BUCKET = 40
#: Leading bits of the hash that select an entry's part; there are at least as many buckets as parts.
_PART_BITS = 8
_PART_SHIFT = HASH_BITS - _PART_BITS
#: Entries that are buffered in memory before they are appended to the parts.
_HELD = 1 << 19
#: Primes that are tried in a fixed order before random ones, which names cannot be chosen to defeat.
_FIXED_PRIMES = 8
_MAX_PRIMES = 64

Show = Callable[[int], None]


class OverfullError(Exception):
    """A bucket has more than MAX_IN_BUCKET entries, so another prime is needed."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written: the numbers of hostnames, empty non-terminals, octets and kinds."""

    names: int
    interior: int
    size: int
    kinds: int


def build(
    lines: Iterable[Line],
    zones: Sequence[bytes],
    output: Path,
    bad: BadLines,
    *,
    skip_bad: bool = False,
    show: Callable[[str, int, int | None], None] = lambda *_: None,
) -> Summary:
    """Build a registry of the hostnames in `lines`, each in the closest of `zones` (apexes), at `output`.

    Bad lines are added to `bad`; nothing is written if there are any, unless `skip_bad` omits them. The
    second line for a name is bad. `show` is called with the phase, the number of names done, and the total.
    Raises BadLinesError, and UnmoorError if the file cannot be written.
    """
    zones = sorted(set(zones))
    with writing(output), _working_directory(output) as directory:
        spool = Spool(directory / "0", prime(0))
        encoder = EntryEncoder(zones)
        _spool_entries(lines, encoder, spool, bad)
        for attempt in range(1, _MAX_PRIMES):
            try:
                with Writer(output, spool.prime, _bits(spool.count)) as writer:
                    tally = _write(spool, writer, bad, show)
                    if not skip_bad:
                        bad.refuse()
                    return writer.finish(zones, tally.kinds(encoder), tally.interior)
            except OverfullError:
                spool = spool.moved(directory / str(attempt), prime(attempt), bad)
    raise UnmoorError(f"no prime out of {_MAX_PRIMES} distributes these names evenly; build again")


def _spool_entries(lines: Iterable[Line], encoder: EntryEncoder, spool: Spool, bad: BadLines) -> None:
    """Add the entries of all lines, and of the names above their hostnames, to the spool."""
    add, name_of, kind_of, ancestors = spool.add, encoder.name, encoder.kind, encoder.ancestors
    for number, _, text, tags in lines:
        try:
            name, apex = name_of(text)
        except BadLineError as error:
            bad.add(number, error)
            continue
        add(name, entry(name, kind_of(tags, apex)), number)
        if ancestors:
            for ancestor in ancestors:
                add(ancestor, ancestor_entry(ancestor), 0)
            ancestors.clear()


def _bits(entries: int) -> int:
    """Return the binary logarithm of the number of buckets, for 2.8 to 5.7 entries each."""
    return max(_PART_BITS, (entries * 10 // 57).bit_length())


def _write(
    spool: Spool, writer: Writer, bad: BadLines, show: Callable[[str, int, int | None], None]
) -> _Tally:
    tally = _Tally()
    for part in range(1 << _PART_BITS):
        found = spool.distinct(part, bad)
        for bucket in _buckets(found, spool.prime, writer.bits, part):
            writer.bucket(bucket)
        tally.add(found)
        show("writing", tally.names, spool.count)
    return tally


def _buckets(found: Mapping[bytes, bytes], prime: int, bits: int, part: int) -> Iterator[list[bytes]]:
    """Sort a part's entries into its buckets. Raises OverfullError."""
    shift, number = HASH_BITS - bits, int.from_bytes
    first = part << (bits - _PART_BITS)
    buckets: list[list[bytes]] = [[] for _ in range(1 << (bits - _PART_BITS))]
    for name, each in found.items():
        buckets[(number(name, "little") % prime >> shift) - first].append(each)
    if max(map(len, buckets)) > MAX_IN_BUCKET:
        raise OverfullError
    for bucket in buckets:
        bucket.sort()
    return iter(buckets)


class _Tally:
    """Counts the written entries by kind, with an example of each."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()
        self._examples: dict[bytes, bytes] = {}

    def add(self, found: Mapping[bytes, bytes]) -> None:
        counts = Counter([each[-KIND_SIZE:] for each in found.values()])
        missing = counts.keys() - self._examples.keys()
        if missing:
            for name, each in found.items():
                if each[-KIND_SIZE:] in missing:
                    self._examples.setdefault(each[-KIND_SIZE:], name)
        self._counts += counts

    @property
    def interior(self) -> int:
        return self._counts[INTERIOR]

    @property
    def names(self) -> int:
        return self._counts.total() - self.interior

    def kinds(self, encoder: EntryEncoder) -> dict[bytes, Kind]:
        return {
            key: Kind(tags, apex, self._counts[key], self._examples[key])
            for (tags, apex), key in encoder.kinds.items()
            if key in self._counts
        }


class Spool:
    """Entries with their line numbers, spread over parts by the leading bits of their hash."""

    def __init__(self, directory: Path, prime: int) -> None:
        directory.mkdir()
        self.directory = directory
        self.prime = prime
        self.count = 0
        #: Parts whose repeated names have been added to the bad lines.
        self._noted: set[int] = set()
        self._entries: list[list[bytes]] = [[] for _ in range(1 << _PART_BITS)]
        self._lines = [array("Q") for _ in range(1 << _PART_BITS)]

    def add(self, name: bytes, each: bytes, line: int) -> None:
        """Add an entry; empty non-terminals, which no line names, have line 0."""
        part = int.from_bytes(name, "little") % self.prime >> _PART_SHIFT
        self._entries[part].append(each)
        self._lines[part].append(line)
        self.count += 1
        if not self.count % _HELD:
            self._flush()

    def _flush(self) -> None:
        for part, (entries, lines) in enumerate(zip(self._entries, self._lines, strict=True)):
            if entries:
                with self._file(part, "entries").open("ab") as file:
                    file.write(MARK + MARK.join(entries))
                with self._file(part, "lines").open("ab") as file:
                    lines.tofile(file)
                entries.clear()
                del lines[:]

    def _file(self, part: int, what: str) -> Path:
        return self.directory / f"{part}.{what}"

    def read(self, part: int) -> tuple[list[bytes], array[int]]:
        """Return a part's entries and line numbers in the order of addition."""
        entries: list[bytes] = []
        lines = array("Q")
        if self._file(part, "entries").exists():
            entries = self._file(part, "entries").read_bytes().split(MARK)[1:]
            lines.frombytes(self._file(part, "lines").read_bytes())
        return entries + self._entries[part], lines + self._lines[part]

    def distinct(self, part: int, bad: BadLines) -> dict[bytes, bytes]:
        """Return a part's entries by name; later lines for the same name are added to `bad`."""
        entries, lines = self.read(part)
        first: dict[bytes, int] = {}
        for at, each in enumerate(entries):
            other = first.setdefault(each[1:-KIND_SIZE], at)
            if other == at or not lines[at]:
                continue
            if not lines[other]:  # an empty non-terminal so far
                first[each[1:-KIND_SIZE]] = at
            elif part not in self._noted:
                shown = names.to_text(each[1:-KIND_SIZE])
                why = f"is registered twice, first in line {lines[other]}"
                bad.add(lines[at], BadLineError(shown, why, "keep one of the lines"))
        self._noted.add(part)
        return {name: entries[at] for name, at in first.items()}

    def moved(self, directory: Path, prime: int, bad: BadLines) -> Spool:
        """Return a spool with the same names, each once, spread by another prime, and remove this one."""
        other = Spool(directory, prime)
        for part in range(1 << _PART_BITS):
            for name, each in self.distinct(part, bad).items():
                other.add(name, each, 0)
        shutil.rmtree(self.directory)
        return other


class Writer:
    """Writes a registry bucket by bucket to a temporary file, which replaces `output` when it is complete."""

    def __init__(self, output: Path, prime: int, bits: int) -> None:
        self._output = output
        self._prime, self.bits = prime, bits
        self._at = HEADER_SIZE
        self._offsets = array("Q")
        self._checksum = 0
        self._names = 0
        self._waiting: list[bytes] = []

    def __enter__(self) -> Writer:
        self._path = self._output.with_name(f".{self._output.name}.{os.getpid()}")
        self._file: IO[bytes] = self._path.open("wb")
        self._file.write(bytes(HEADER_SIZE))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with suppress(FileNotFoundError):  # `finish` has renamed it
            self._path.unlink()

    def bucket(self, entries: Sequence[bytes]) -> None:
        """Write the next bucket from sorted entries without their marks."""
        self._offsets.append(self._at)
        if entries:
            data = MARK + MARK.join(entries)
            self._at += len(data)
            self._waiting.append(data)
            if len(self._waiting) >= 1 << 14:
                self._flush()

    def copy(self, data: bytes, offsets: Iterable[int]) -> None:
        """Write encoded buckets; `offsets` are their offsets in this file."""
        self._flush()
        self._offsets.extend(offsets)
        self._put(data)
        self._at += len(data)

    @property
    def at(self) -> int:
        """The offset of the next bucket."""
        return self._at

    def _flush(self) -> None:
        self._put(b"".join(self._waiting))
        self._waiting.clear()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)

    def finish(self, zones: Sequence[bytes], kinds: Mapping[bytes, Kind], interior: int) -> Summary:
        """Write index, summary and header, and rename the file to `output`. Raises OSError."""
        self._flush()
        self._offsets.append(self._at)
        padding = bytes(-self._at % 8)
        width = 4 if self._at + len(padding) < 1 << 32 else 8
        index = self._at + len(padding)
        summary = index + len(self._offsets) * width
        self._put(padding)
        self._put((array("I", self._offsets) if width == 4 else self._offsets).tobytes())
        data = write_summary(zones, kinds, interior)
        self._put(data)
        count = sum(kind.count for kind in kinds.values())
        header = Header(summary + len(data), index, summary, count, self._prime, self.bits, width)
        self._file.seek(0)
        self._file.write(header.pack(self._checksum))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.chmod(0o644)
        self._path.replace(self._output)
        _sync_directory(self._output.parent)
        return Summary(count, interior, header.size, len(kinds))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _working_directory(output: Path) -> Iterator[Path]:
    """Provide a temporary directory beside `output`."""
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as directory:
        yield Path(directory)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Convert an OSError into an UnmoorError that names the requirements of `output`."""
    try:
        yield
    except OSError as error:
        raise UnmoorError(
            f"{error.filename or output}: {error.strerror}; "
            "the output's directory must be writable, with room for twice the list"
        ) from None


def prime(attempt: int) -> int:
    """Return the prime below 2 ** 30 of an attempt: from a fixed sequence first, random later."""
    if attempt < _FIXED_PRIMES:
        seed = int.from_bytes(sha256(b"unmoor registry %d" % attempt).digest()[:4], "big")
    else:
        seed = secrets.randbits(32)
    number = (1 << HASH_BITS) - 1 - 2 * (seed % (1 << 23))
    while any(number % divisor == 0 for divisor in range(3, isqrt(number) + 1, 2)):
        number -= 2
    return number
