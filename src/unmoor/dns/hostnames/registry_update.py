"""Applies a list of changes to a registry; buckets without changes are copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unmoor.dns.hostnames.registry import HASH_BITS, INTERIOR, KIND_SIZE, MARK, Kind, Registry
from unmoor.dns.hostnames.registry_build import MAX_IN_BUCKET, Summary, Writer, writing
from unmoor.dns.hostnames.registry_list import BadLineError, BadLines, EntryEncoder, Line, entry
from unmoor.dns.protocol import names
from unmoor.errors import UnmoorError

ADD, CHANGE, REMOVE = ACTIONS = ("add", "change", "remove")

#: Buckets copied at a time: some megabytes.
_STRIDE = 1 << 15


@dataclass(slots=True)
class Changes:
    """The changes of a list: the new kind of each name (None if it is removed), and lines per action."""

    kinds: dict[bytes, bytes | None] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)

    @property
    def removed(self) -> set[bytes]:
        """The names that are removed."""
        return {name for name, kind in self.kinds.items() if kind is None}


def update(
    old: Registry,
    lines: Iterable[Line],
    output: Path,
    bad: BadLines,
    *,
    skip_bad: bool = False,
    show: Callable[[str, int, int | None], None] = lambda *_: None,
) -> tuple[Summary, Counter[str]]:
    """Write `old` with the changes in `lines` to `output`; return its summary, and the changes per action.

    ADD requires a name that is not registered, CHANGE and REMOVE one that is; other lines are bad. `show` is
    called with the phase, the number of names done, and the total. Raises BadLinesError, and UnmoorError if
    the file cannot be written; then nothing is.
    """
    encoder = EntryEncoder(old.zones, {(kind.tags, kind.apex): key for key, kind in old.kinds.items()})
    changes = _read(old, lines, encoder, bad)
    if not skip_bad:
        bad.refuse()
    edits, kinds = _edits(old, changes, encoder, show)
    with writing(output), Writer(output, old.header.prime, old.header.bits) as writer:
        for done in _rewrite(old, edits, writer):
            show("copying", done, len(old))
        before = sum(old.find(name) == INTERIOR for name in edits)
        interior = old.interior - before + sum(kind == INTERIOR for kind in edits.values())
        return writer.finish(old.zones, kinds, interior), changes.done


def _read(old: Registry, lines: Iterable[Line], encoder: EntryEncoder, bad: BadLines) -> Changes:
    changes = Changes()
    first: dict[bytes, int] = {}
    for number, action, text, tags in lines:
        try:
            name, apex = encoder.name(text)
            _check_action(text, action, old.kind_of(name) is not None, first.setdefault(name, number), number)
        except BadLineError as error:
            bad.add(number, error)
            continue
        changes.kinds[name] = None if action == REMOVE else encoder.kind(tags, apex)
        changes.done[action] += 1
    return changes


def _check_action(text: str, action: str, there: bool, first: int, number: int) -> None:
    """Raise BadLineError if a line's action does not apply to its name."""
    if first != number:
        raise BadLineError(text, f"is named twice, first in line {first}", "keep one of the lines")
    if action == ADD and there:
        raise BadLineError(text, "is registered already", f"write {CHANGE}")
    if action != ADD and not there:
        raise BadLineError(text, "is not registered", f"write {ADD}, or correct the name")


def _edits(
    old: Registry,
    changes: Changes,
    encoder: EntryEncoder,
    show: Callable[[str, int, int | None], None],
) -> tuple[dict[bytes, bytes | None], dict[bytes, Kind]]:
    """Return the new kind of each changed entry, names above hostnames included, and all kinds afterwards."""
    edits = dict(changes.kinds)
    # Names that may have nothing below them any more: the removed ones, and empty non-terminals above them. A
    # zone's apex always exists, and makes no name above it exist: that belongs to another zone.
    doubtful = changes.removed.difference(old.zones)
    for name in changes.removed:
        doubtful |= {each for each in _above(old, name) if old.find(each) == INTERIOR}
    passed_over = doubtful.union(old.zones)
    kinds = _Kinds(old, changes, encoder)
    remaining: set[bytes] = set()
    if doubtful or kinds.without_example:
        done = 0
        for piece in old.pieces():
            # The parent of a name is what follows its first label.
            below = [each for each in piece if each[2 + each[1] : -KIND_SIZE] in doubtful]
            remaining |= {
                each[2 + each[1] : -KIND_SIZE] for each in below if each[1:-KIND_SIZE] not in passed_over
            }
            if kinds.without_example:
                kinds.find_examples(piece, changes)
            done += len(piece)
            show("reading", done, len(old) + old.interior)
    for name, after in changes.kinds.items():
        if after is not None:
            remaining |= doubtful.intersection(_above(old, name))
            edits |= {
                each: INTERIOR for each in _above(old, name) if each not in edits and not old.find(each)
            }
    for name in list(remaining):
        remaining |= doubtful.intersection(_above(old, name))
    for name in doubtful:
        if edits.get(name) is None:
            edits[name] = INTERIOR if name in remaining else None
    return edits, kinds.afterwards()


def _above(registry: Registry, name: bytes) -> Iterator[bytes]:
    """Yield the names between a name and its zone's apex, both excluded."""
    apex = registry.zone_of(name) or names.ROOT
    for suffix in names.suffixes(names.parent(name)):
        if len(suffix) <= len(apex):
            return
        yield suffix


class _Kinds:
    """The number of names of each kind after the changes, and an example of each."""

    def __init__(self, old: Registry, changes: Changes, encoder: EntryEncoder) -> None:
        self._owners = {key: owner for owner, key in encoder.kinds.items()}
        self._counts = Counter({key: kind.count for key, kind in old.kinds.items()})
        self._examples = {key: kind.example for key, kind in old.kinds.items()}
        for name, after in changes.kinds.items():
            before = old.find(name)
            if before is not None and before in old.kinds:
                self._counts[before] -= 1
            if after is not None:
                self._counts[after] += 1
        #: Kinds with names whose example is removed or changes its kind.
        self.without_example = {
            key
            for key, example in self._examples.items()
            if self._counts[key] and changes.kinds.get(example, key) != key
        }
        for name, after in changes.kinds.items():
            if after is not None and (after in self.without_example or after not in self._examples):
                self.set_example(after, name)

    def set_example(self, key: bytes, name: bytes) -> None:
        self._examples[key] = name
        self.without_example.discard(key)

    def find_examples(self, piece: Iterable[bytes], changes: Changes) -> None:
        """Take missing examples from entries without changes."""
        for each in piece:
            name, key = each[1:-KIND_SIZE], each[-KIND_SIZE:]
            if key in self.without_example and name not in changes.kinds:
                self.set_example(key, name)

    def afterwards(self) -> dict[bytes, Kind]:
        return {
            key: Kind(*self._owners[key], count, self._examples[key])
            for key, count in self._counts.items()
            if count
        }


def _rewrite(old: Registry, edits: dict[bytes, bytes | None], writer: Writer) -> Iterator[int]:
    """Write all buckets; yield the approximate number of names done after each stride."""
    by_bucket: dict[int, dict[bytes, bytes | None]] = {}
    shift = HASH_BITS - old.header.bits
    for name, kind in edits.items():
        bucket = int.from_bytes(name, "little") % old.header.prime >> shift
        by_bucket.setdefault(bucket, {})[name] = kind
    offsets, count = old.offsets, 1 << old.header.bits
    at = 0
    for bucket in [*sorted(by_bucket), count]:
        while at < bucket:
            end = min(bucket, at + _STRIDE)
            start, moved = offsets[at], writer.at - offsets[at]
            writer.copy(old.octets(start, offsets[end]), [each + moved for each in offsets[at:end]])
            at = end
            yield len(old) * at // count
        if bucket < count:
            data = old.octets(offsets[bucket], offsets[bucket + 1])
            writer.bucket(_edited(data, by_bucket[bucket]))
            at += 1


def _edited(data: bytes, edits: dict[bytes, bytes | None]) -> list[bytes]:
    entries = {each[1:-KIND_SIZE]: each for each in data.split(MARK)[1:]}
    for name, kind in edits.items():
        if kind is None:
            entries.pop(name, None)
        else:
            entries[name] = entry(name, kind)
    if len(entries) > MAX_IN_BUCKET:
        raise UnmoorError("an update would overfill a bucket of the registry\n    fix: build it again")
    return sorted(entries.values())
