"""Lists of hostnames in CSV or JSON lines: parsed line by line into registry entries, bad lines counted.

Lines are independent: an unclosed quote affects its own line only.
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

#: Parent names, and combinations of tags, that are cached.
_MAX_PARENTS = 200_000
_MAX_TAGS = 200_000
#: Lines between two reports of progress.
_PROGRESS_INTERVAL = 1 << 15


class Line(NamedTuple):
    """A line of a list: its number, the action (empty unless it is a list of changes), the name, its tags."""

    number: int
    action: str
    name: str
    tags: Tags


class BadLineError(Exception):
    """An invalid line: the wrong value, the reason, and the fix."""

    def __init__(self, value: str, why: str, fix: str) -> None:
        super().__init__(why)
        self.value, self.why, self.fix = value, why, fix


class BadLinesError(UnmoorError):
    """A list has bad lines, and nothing was written; `problems` holds the first of them."""

    def __init__(self, text: str, problems: Sequence[Problem]) -> None:
        super().__init__(text)
        self.problems = tuple(problems)


class BadLines:
    """Bad lines of a list: counts all, keeps the first `SHOWN`, and writes all to `record` if given."""

    SHOWN = 10

    def __init__(self, place: str, record: IO[str] | None = None) -> None:
        self.place = place
        self.count = 0
        self._first: list[Problem] = []
        self._record = record

    def add(self, number: int, error: BadLineError) -> None:
        """Add the error of line `number`."""
        self.count += 1
        # The file may contain anything, such as escape sequences for terminals.
        value = "".join(each if each.isprintable() else f"\\{ord(each):03}" for each in error.value[:60])
        if len(self._first) < self.SHOWN:
            place = f"{self.place}:{number}"
            self._first.append(Problem(place, "", "", f"{value or 'the line'} {error.why}", error.fix))
        if self._record:
            print(f"{number}: {value}: {error.why}", file=self._record)

    def lines(self) -> Iterator[str]:
        """Yield the first bad lines for display, and the number of the others."""
        yield from map(str, self._first)
        if self.count > len(self._first):
            yield f"... and {self.count - len(self._first)} more; --bad FILE lists all"

    def refuse(self) -> None:
        """Raise BadLinesError if there are bad lines."""
        if self.count:
            head = f"{self.count} bad line{'s' * (self.count != 1)}; nothing was written:"
            fix = "correct them, or leave them out with --skip-bad"
            raise BadLinesError("\n".join([head, *self.lines(), fix]), self._first)


# -- from a file to lines ----------------------------------------------------------------------------------


def read_lines(
    source: str, bad: BadLines, actions: Sequence[str] = (), show: Callable[[int], None] = lambda _: None
) -> Iterator[Line]:
    """Yield the lines of a list from a file, or from standard input for '-'; gzip is detected.

    The first line of CSV names the columns: `name`, `action` if `actions` are given, and one for each tag,
    empty in lines without the tag. JSON lines are objects with the keys `name`, `tags` and, if `actions`
    are given, `action`. `show` is called regularly with the number of lines read. Raises UnmoorError if
    the file cannot be read or lacks a column.
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
                if not number % _PROGRESS_INTERVAL:
                    show(number)
                yield from _parse(line, number, parse, bad)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnmoorError(f"{source}: {reason}; name a readable CSV file or JSON lines") from None


def count_lines(source: str) -> int | None:
    """Return the number of lines for a progress bar; None for standard input and compressed files."""
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
        # Invalid UTF-8 makes its line bad, not the file.
        yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")


_Parser = Callable[[str], tuple[str, str, Tags]]


def _parse(line: str, number: int, parse: _Parser, bad: BadLines) -> Iterator[Line]:
    try:
        yield Line(number, *parse(line))
    except BadLineError as error:
        if line.strip():  # blank lines are ignored
            bad.add(number, error)


def _csv_parser(first: str, actions: Sequence[str], source: str) -> _Parser:
    """Make the parser of a CSV file's lines from its first line."""
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
            line.strip()[:60], f"is not valid CSV: {error}", "close the quote, on the same line"
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
            raise BadLineError(line.strip()[:60], "is not an object with a name and tags", _JSON_FIX)
        if unknown := sorted(data.keys() - keys):
            raise BadLineError(unknown[0], "is not a known key", _JSON_FIX)
        if not all(isinstance(value, str) for value in given.values()):
            raise BadLineError(line.strip()[:60], "has a tag whose value is not text", _JSON_FIX)
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
    raise BadLineError(str(word), "is not an action", f"write one of: {', '.join(actions)}")


def _remember(cache: dict[Any, Any], key: object, value: object, limit: int) -> None:
    if len(cache) >= limit:
        cache.clear()
    cache[key] = value


# -- from lines to entries ---------------------------------------------------------------------------------


class EntryEncoder:
    """Converts names to wire form, finds their zones, and numbers their kinds.

    `kinds` holds the kinds that have numbers already; new ones are added.
    """

    def __init__(self, zones: Sequence[bytes], kinds: dict[tuple[Tags, bytes], bytes] | None = None) -> None:
        self._zones = frozenset(zones)
        #: Encoded kinds by (tags, apex).
        self.kinds = kinds if kinds is not None else {}
        self._free = 1 + max((key[0] * 255 + key[1] for key in self.kinds.values()), default=-1)
        self._parents: dict[str, tuple[bytes, bytes]] = {}
        #: Names between hostnames and their zone's apex; the caller takes and clears them.
        self.ancestors: list[bytes] = []

    def name(self, text: str) -> tuple[bytes, bytes]:
        """Return an absolute name (final dot optional) in wire form and its zone. Raises BadLineError."""
        head, _, rest = text.partition(".")
        parent = self._parents.get(rest)
        # Fast path: a plain first label below a known parent.
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
        """Return the encoded kind of tags in a zone. Raises UnmoorError if there are too many kinds."""
        key = (tags, apex)
        found = self.kinds.get(key)
        if found is None:
            if self._free >= MAX_KINDS:
                raise UnmoorError(
                    f"more than {MAX_KINDS} combinations of tags and zone\n    fix: leave out tags that "
                    "identify single hostnames; only those that policies match are needed"
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
    """Encode an entry without its mark."""
    return bytes((len(name) - 1,)) + name + kind


def ancestor_entry(name: bytes) -> bytes:
    """Encode the entry of an empty non-terminal, without its mark."""
    return entry(name, INTERIOR)
