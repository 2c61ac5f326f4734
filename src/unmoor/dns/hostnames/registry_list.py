"""Lists of hostnames as operators keep them, CSV or JSON lines, read line by line; what is wrong is counted.

A line stands for itself: a quote that never ends spoils its own line and no other.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from unmoor.dns.hostnames.registry import INTERIOR, MARK, MAX_KINDS, Tags, kind_key
from unmoor.dns.protocol import names
from unmoor.errors import Problem, UnmoorError

STANDARD_INPUT = "-"

#: Parents that are remembered; an operator's list has thousands of them, or as many as names.
_MAX_PARENTS = 200_000
_MAX_TAGS = 200_000
#: Lines read between two looks at the progress.
EVERY = 1 << 15


class Line(NamedTuple):
    """One line of a list: its number, what to do with the name (only a list of changes says), the tags."""

    number: int
    action: str
    name: str
    tags: Tags


class BadLineError(Exception):
    """A line that cannot be taken: the value that is wrong, why, and the fix."""

    def __init__(self, value: str, why: str, fix: str) -> None:
        super().__init__(why)
        self.value, self.why, self.fix = value, why, fix


class BadLinesError(UnmoorError):
    """A list with bad lines, of which `problems` are the first; nothing was written."""

    def __init__(self, text: str, problems: Sequence[Problem]) -> None:
        super().__init__(text)
        self.problems = tuple(problems)


class BadLines:
    """The lines that could not be taken: all are counted, the first are kept, all are written to `record`."""

    SHOWN = 10

    def __init__(self, place: str, record: IO[str] | None = None) -> None:
        self.place = place
        self.count = 0
        self._first: list[Problem] = []
        self._record = record

    def add(self, number: int, error: BadLineError) -> None:
        """Note what is wrong with the line of this number."""
        self.count += 1
        # What stands in a file may be anything: a terminal's commands, or no text at all.
        value = "".join(each if each.isprintable() else f"\\{ord(each):03}" for each in error.value[:60])
        if len(self._first) < self.SHOWN:
            place = f"{self.place}:{number}"
            self._first.append(Problem(place, "", "", f"{value or 'the line'} {error.why}", error.fix))
        if self._record:
            print(f"{number}: {value}: {error.why}", file=self._record)

    def lines(self) -> Iterator[str]:
        """What there is to say: the first of them, and how many more."""
        yield from map(str, self._first)
        if self.count > len(self._first):
            yield f"... and {self.count - len(self._first)} more; --bad FILE lists all"

    def refuse(self) -> None:
        """Raise BadLinesError if there are any."""
        if self.count:
            head = f"{self.count} bad line{'s' * (self.count != 1)}; nothing was written:"
            fix = "mend them, or leave them out with --skip-bad"
            raise BadLinesError("\n".join([head, *self.lines(), fix]), self._first)


# -- from a file to lines ----------------------------------------------------------------------------------


def read_lines(
    source: str, bad: BadLines, actions: Sequence[str] = (), show: Callable[[int], None] = lambda _: None
) -> Iterator[Line]:
    """Read a list from a file, or from standard input for '-'; it may be packed by gzip.

    A CSV file begins with its columns: `name`, with `actions` also `action`, and one for each tag, empty
    where a name does not carry it. JSON lines are objects with `name`, `tags`, and with actions `action`.
    `show` is told now and then how many lines were read. Raises UnmoorError for a file that is neither.
    """
    try:
        with _text(source) as text:
            first = text.readline()
            if first.startswith("{"):
                parse = _json_parser(actions)
                yield from _parse(first, 1, parse, bad)
            else:
                parse = _csv_parser(first, actions, source)
            for number, line in enumerate(text, 2):
                if not number % EVERY:
                    show(number)
                yield from _parse(line, number, parse, bad)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnmoorError(f"{source}: {reason}; name a readable CSV file or JSON lines") from None


def count_lines(source: str) -> int | None:
    """How many lines a list has, for the progress bar; None if only reading it would tell."""
    if source == STANDARD_INPUT:
        return None
    try:
        with Path(source).open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                return None
            file.seek(0)
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return None


@contextmanager
def _text(source: str) -> Iterator[IO[str]]:
    with ExitStack() as stack:
        raw: Any = sys.stdin.buffer
        if source != STANDARD_INPUT:
            raw = stack.enter_context(Path(source).open("rb"))
        if raw.peek(2)[:2] == b"\x1f\x8b":
            raw = stack.enter_context(gzip.open(raw))
        # Octets that are no UTF-8 are a matter of their line, not of the file.
        yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")


_Parser = Callable[[str], tuple[str, str, Tags]]


def _parse(line: str, number: int, parse: _Parser, bad: BadLines) -> Iterator[Line]:
    try:
        yield Line(number, *parse(line))
    except BadLineError as error:
        if line.strip():  # a blank line says nothing
            bad.add(number, error)


def _csv_parser(first: str, actions: Sequence[str], source: str) -> _Parser:
    """Make the reader of a CSV file's lines from its first line, the columns."""
    columns = [column.strip() for column in next(csv.reader([first]), [])]
    wanted = ["name", *(["action"] if actions else [])]
    missing = [column for column in wanted if column not in columns]
    if missing or len(set(columns)) != len(columns) or not all(columns):
        what = (
            f"has no column {missing[0]!r}" if missing else "has a column without a name, or one name twice"
        )
        raise UnmoorError(
            f"{source}:1: {what}\n    fix: begin with a line such as {','.join([*wanted, 'account_type'])}, "
            "or write JSON lines"
        )
    name_at = columns.index("name")
    action_at = columns.index("action") if actions else None
    tag_columns = [(at, column) for at, column in enumerate(columns) if column not in wanted]
    known: dict[tuple[str, ...], Tags] = {}

    def parse(line: str) -> tuple[str, str, Tags]:
        row = line.rstrip("\n").split(",") if '"' not in line else _quoted(line)
        if len(row) != len(columns):
            raise BadLineError(
                line.strip()[:60],
                f"has {len(row)} fields, not {len(columns)}",
                "write one field for each column of the first line",
            )
        values = tuple([row[at] for at, _ in tag_columns])
        tags = known.get(values)
        if tags is None:
            tags = frozenset((column, row[at].strip()) for at, column in tag_columns if row[at].strip())
            _check_tags(tags)
            _remember(known, values, tags, _MAX_TAGS)
        action = "" if action_at is None else _action(row[action_at].strip(), actions)
        return action, row[name_at].strip(), tags

    return parse


def _quoted(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise BadLineError(
            line.strip()[:60], f"is no line of CSV: {error}", "close the quote, on the same line"
        ) from None


def _json_parser(actions: Sequence[str]) -> _Parser:
    keys = {"name", "tags", *(["action"] if actions else [])}
    known: dict[tuple[tuple[str, str], ...], Tags] = {}

    def parse(line: str) -> tuple[str, str, Tags]:
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise BadLineError(line.strip()[:60], "is not JSON", _JSON_FIX) from None
        given = data.get("tags") or {} if isinstance(data, dict) else None
        if given is None or not isinstance(data.get("name"), str) or not isinstance(given, dict):
            raise BadLineError(line.strip()[:60], "is no hostname with its tags", _JSON_FIX)
        if unknown := sorted(data.keys() - keys):
            raise BadLineError(unknown[0], "is not a known key", _JSON_FIX)
        if not all(isinstance(value, str) for value in given.values()):
            raise BadLineError(line.strip()[:60], "has a tag whose value is no text", _JSON_FIX)
        key = tuple(given.items())
        tags = known.get(key)
        if tags is None:
            tags = frozenset(key)
            _check_tags(tags)
            _remember(known, key, tags, _MAX_TAGS)
        return _action(data.get("action", ""), actions) if actions else "", data["name"], tags

    return parse


_JSON_FIX = 'write {"name": "www.example.com", "tags": {"account_type": "free"}}'


def _check_tags(tags: Tags) -> None:
    for key, value in tags:
        try:
            (key + value).encode()
        except UnicodeEncodeError:
            raise BadLineError(f"{key}={value}", "is not UTF-8 text", "write the file in UTF-8") from None


def _action(word: object, actions: Sequence[str]) -> str:
    if word in actions:
        return str(word)
    raise BadLineError(str(word), "is no action", f"write one of: {', '.join(actions)}")


def _remember(cache: dict[Any, Any], key: object, value: object, limit: int) -> None:
    if len(cache) >= limit:
        cache.clear()
    cache[key] = value


# -- from lines to entries ---------------------------------------------------------------------------------


class Enrolment:
    """Puts names into wire form and into the closest of the zones, and gives each its kind."""

    def __init__(self, zones: Sequence[bytes], kinds: dict[tuple[Tags, bytes], bytes] | None = None) -> None:
        self._zones = frozenset(zones)
        #: The octets that stand for tags in a zone.
        self.kinds = kinds if kinds is not None else {}
        self._free = 1 + max((key[0] * 255 + key[1] for key in self.kinds.values()), default=-1)
        self._parents: dict[str, tuple[bytes, bytes]] = {}
        #: Names above registered ones, below their zone's apex, that nobody has taken yet.
        self.ancestors: list[bytes] = []

    def name(self, text: str) -> tuple[bytes, bytes]:
        """Read a whole name (the final dot may be missing); gives it, and its zone. Raises BadLineError."""
        head, _, rest = text.partition(".")
        parent = self._parents.get(rest)
        # The quick way is for a plain first label below a parent that was seen before.
        if parent is None or not 0 < len(head) <= names.MAX_LABEL or not head.isascii() or "\\" in head:
            return self._slow(text, head, rest)
        wire = bytes((len(head),)) + head.lower().encode() + parent[0]
        if len(wire) > names.MAX_NAME or wire in self._zones:
            return self._slow(text, head, rest)
        return wire, parent[1]

    def _slow(self, text: str, head: str, rest: str) -> tuple[bytes, bytes]:
        wire = _wire(text)
        apex = self._closest(wire)
        if apex is None:
            shown = ", ".join(sorted(map(names.to_text, self._zones))[:5])
            raise BadLineError(
                text, "is in none of the zones", f"write whole names; the zones are: {shown}; or add --zone"
            )
        if MARK in wire:
            raise BadLineError(text, "has the octet 255, which a registry cannot hold", "leave it out")
        self._note_ancestors(names.parent(wire), apex)
        if wire != apex and "\\" not in head and _is_text_of(rest, names.parent(wire)):
            _remember(self._parents, rest, (names.parent(wire), apex), _MAX_PARENTS)
        return wire, apex

    def _closest(self, wire: bytes) -> bytes | None:
        return next((suffix for suffix in names.suffixes(wire) if suffix in self._zones), None)

    def _note_ancestors(self, parent: bytes, apex: bytes) -> None:
        for suffix in names.suffixes(parent):
            if len(suffix) <= len(apex):
                return
            self.ancestors.append(suffix)

    def kind(self, tags: Tags, apex: bytes) -> bytes:
        """The octets that stand for these tags in this zone. Raises UnmoorError when there are too many."""
        key = (tags, apex)
        found = self.kinds.get(key)
        if found is None:
            if self._free >= MAX_KINDS:
                raise UnmoorError(
                    f"more than {MAX_KINDS} combinations of tags and zone\n    fix: leave out tags that tell "
                    "single hostnames apart; only those that policies ask for are needed"
                )
            found = self.kinds[key] = kind_key(self._free)
            self._free += 1
        return found


def _wire(text: str) -> bytes:
    try:
        wire = names.from_text(text)
    except ValueError as error:
        raise BadLineError(text[:60], str(error), "write a whole name, as in www.example.com") from None
    return wire


def _is_text_of(text: str, wire: bytes) -> bool:
    try:
        return names.from_text(text) == wire
    except ValueError:
        return False


def entry(name: bytes, kind: bytes) -> bytes:
    """An entry as it stands in the file, without its mark."""
    return bytes((len(name) - 1,)) + name + kind


def ancestor_entry(name: bytes) -> bytes:
    """The entry of a name that exists because there are names below it."""
    return entry(name, INTERIOR)
