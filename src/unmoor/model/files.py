"""The files that an inventory names: zone files, hostname files and registries.

Each is read once, whichever edges name it, and edges that name the same share what was read.
"""

from __future__ import annotations

import csv
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from unmoor.errors import Fault, Problem, UnmoorError
from unmoor.model.dns import Hostnames, Zone
from unmoor.model.documents import BrokenZone
from unmoor.model.source_map import Lines
from unmoor.model.variables import Source, ZoneFiles, shown

#: Returns the path, SHA-256 and number of names of the registry that a file is, or that it builds from the
#: file for the given zones. Raises UnmoorError.
RegistryMaker = Callable[[Path, Sequence[str]], tuple[Path, str, int]]


@dataclass(frozen=True)
class ZoneRead:
    """A zone, whole or broken, and why something in it could not be read.

    Paths of faults begin inside the zone. Problems are those inside of its hostnames file.
    """

    zone: Zone | BrokenZone
    faults: tuple[Fault, ...]
    names: NamesRead

    @property
    def complete(self) -> bool:
        """Whether every hostname was read."""
        return self.names.groups is not None and not self.names.problems


@dataclass(frozen=True)
class NamesRead:
    """The groups of a hostnames file (None: it could not be read), the lines of their names, and problems."""

    groups: tuple[Hostnames, ...] | None = ()
    lines: Lines = ()
    problems: tuple[Problem, ...] = ()
    #: Why the file could not be read.
    error: str = ""


class Files:
    """The files of one inventory, as read. A file that changes meanwhile is not read again."""

    def __init__(self, registry_of: RegistryMaker | None = None) -> None:
        self.zone = cache(_read_zone)
        self._registry_of = registry_of and cache(_kept(registry_of))

    def registry(self, source: Source, file: str, zones: Sequence[str]) -> tuple[Path, str, int] | None:
        """Return the path, SHA-256 and number of names of the registry for `zones`; None if there is none.

        Adds to `source` why it could not be read.
        """
        if not file or self._registry_of is None:
            return None
        found = self._registry_of(source.directory / file, tuple(zones))
        if not isinstance(found, UnmoorError):
            return found
        lines = getattr(found, "problems", ())
        source.problems += lines
        first, _, rest = str(found).partition("\n    fix: ")
        why = first.splitlines()[0].rstrip(":")
        fix = "fix them; each is reported separately" if lines else rest or "correct the list"
        source.problem(("dns_registry",), file, why, fix)
        return None


def _kept(
    registry_of: RegistryMaker,
) -> Callable[[Path, tuple[str, ...]], tuple[Path, str, int] | UnmoorError]:
    """Return a function that returns the error instead of raising it, so that it is kept like a result."""

    def made(file: Path, zones: tuple[str, ...]) -> tuple[Path, str, int] | UnmoorError:
        try:
            return registry_of(file, zones)
        except UnmoorError as error:
            return error

    return made


def _read_zone(directory: Path, given: ZoneFiles) -> ZoneRead:
    """Read the files of a zone, which lie below the inventory's directory."""
    faults: list[Fault] = []
    records = None
    if given.records_file:
        path = directory / given.records_file
        try:
            records = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fix = f"write the zone file {path}"
            faults.append(Fault(("records_file",), given.records_file, _reason(error), fix))
    if bool(given.records_file) == bool(given.primaries):
        why = "has both a records_file and primaries" if given.primaries else "has no records"
        fix = "give it either a records_file, or primaries to transfer them from"
        faults.append(Fault((), given.name, why, fix))
    names = NamesRead()
    if given.hostnames_file:
        path = directory / given.hostnames_file
        names = _read_hostnames(path, given.name)
        if names.error:
            faults.append(Fault(("hostnames_file",), path.name, names.error, f"write the CSV file {path}"))
    source = given.records_file or ""
    if names.groups is None or (records is None and not given.primaries):
        zone: Zone | BrokenZone = BrokenZone(given.name, records, source, names.groups)
    else:
        zone = Zone(
            name=given.name,
            records=records or "",
            source=source,
            primaries=given.primaries,
            hostnames=names.groups,
        )
    return ZoneRead(zone, tuple(faults), names)


def _read_hostnames(path: Path, zone: str) -> NamesRead:
    by_tags: dict[tuple[tuple[str, str], ...], tuple[list[str], array[int]]] = defaultdict(
        lambda: ([], array("L"))
    )
    problems: list[Problem] = []
    last = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if "name" not in (rows.fieldnames or ()):
                fix = "begin the file with a header, as in `name,account`"
                problem = Problem(f"{shown(path)}:1", "", "", "has no column `name`", fix)
                return NamesRead(None, (), (problem,))
            for row in rows:
                last = rows.line_num
                name = row.pop("name") or ""
                if wrong := _row_problem(name, row, zone):
                    value = repr(name)[1:-1]
                    problems.append(Problem(f"{shown(path)}:{last}", "name", value, *wrong))
                    continue
                names, lines = by_tags[tuple(sorted((tag, value) for tag, value in row.items() if value))]
                names.append(name)
                lines.append(last)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return NamesRead(None, (), tuple(problems), _reason(error))
    problems += _end_problems(path, last)
    groups = tuple(Hostnames(tags=dict(tags), names=tuple(names)) for tags, (names, _) in by_tags.items())
    return NamesRead(groups, tuple(lines for _, lines in by_tags.values()), tuple(problems))


def _reason(error: OSError | UnicodeDecodeError | csv.Error) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    return str(error.strerror if isinstance(error, OSError) else error)


def _end_problems(path: Path, last: int) -> Iterator[Problem]:
    """Report a file that seems to be truncated; `last` is its last line with a name, 0 if it has none."""
    if not last:
        why = "has a header line and no names"
        fix = "write the names; or remove hostnames_file from the zone"
        yield Problem(f"{shown(path)}:1", "", "", why, fix)
    elif not path.read_bytes().endswith(b"\n"):
        why = "ends without a newline: it may be truncated"
        fix = "write the file again; if it is complete, add the newline"
        yield Problem(f"{shown(path)}:{last}", "", "", why, fix)


def _row_problem(name: str, tags: dict[str, str], zone: str) -> tuple[str, str] | None:
    """Return what is wrong with a row, and the fix. The syntax of names is checked elsewhere."""
    if any(letter.isspace() for letter in name) or not name.isprintable():
        return "has a space or a control character", "remove it; inside a label, write \\DDD (RFC 1035)"
    whole, apex = name.lower(), zone.lower().rstrip(".")
    if apex and (whole == apex or whole.endswith(f".{apex}")):
        relative = name[: -len(apex) - 1] or "@"
        why = f"is an absolute name, but names here are relative to the zone: it would become {name}.{apex}"
        return why, f"write {relative}, or {name}. with a final dot"
    if None in tags or None in tags.values() or not name:
        why = "the line has no name, or more or fewer fields than the first line"
        return why, "write one field for each column"
    return None
