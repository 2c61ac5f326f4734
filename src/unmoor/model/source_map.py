"""Where the values of a compiled document come from: a variable of the inventory, or a file that it names.

The compiler makes one beside each document. It is no part of the document: the edges do not need it, and
reformatting an inventory must not change what is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

from unmoor.errors import Fault, Key, Problem, dotted
from unmoor.model.dns import DnsDocument
from unmoor.model.variables import PREFIX, Source, shown

#: The lines of hostnames in their file, by group and position, as in `hostnames` of a zone.
Lines = Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Variable:
    """A variable, without its prefix; with `whole`, the variable has no keys below it."""

    path: Key
    whole: bool = False


@dataclass(frozen=True)
class _Text:
    """A file whose text is the document's value; a fault has its line."""

    path: Path


@dataclass(frozen=True)
class _Rows:
    """A CSV file of hostnames."""

    path: Path
    lines: Lines


class SourceMap:
    """The origins of a DNS document's values. What has no origin of its own has that of the value around it.

    A value that has none at all comes from the variable of the same name.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._origins: dict[Key, _Variable | _Text | _Rows] = {}

    def variable(self, path: Key, variable: Key, *, whole: bool = False) -> None:
        """Record that the value at `path` is that of a variable; with `whole`, so is all below it."""
        self._origins[path] = _Variable(variable, whole)

    def text(self, path: Key, file: Path) -> None:
        """Record that the value at `path` is the text of a file."""
        self._origins[path] = _Text(file)

    def rows(self, path: Key, file: Path, lines: Lines) -> None:
        """Record that the hostnames at `path` are the rows of a CSV file."""
        self._origins[path] = _Rows(file, lines)

    def problem(self, fault: Fault) -> Problem:
        """Locate a fault in the inventory: file and line, key and value as they are written there."""
        for length in range(len(fault.path), 0, -1):
            origin = self._origins.get(fault.path[:length])
            if isinstance(origin, _Text):
                return _in_text(fault, shown(origin.path))
            if isinstance(origin, _Rows):
                return _in_rows(fault, fault.path[length:], origin)
            if origin is not None:
                rest = () if origin.whole else fault.path[length:]
                return self._in_variable(fault, origin.path + rest)
        return self._in_variable(fault, fault.path)

    def _in_variable(self, fault: Fault, path: Key) -> Problem:
        written = self._source.written(path)
        value = str(written) if _same(written, fault.value) else fault.value
        return Problem(self._source.place(path), PREFIX + dotted(path), value, fault.why, fault.fix)


def in_document(document: DnsDocument, place: str) -> Callable[[Fault], Problem]:
    """Return a function that locates faults in the document's own file, or the zone file that it names."""

    def problem(fault: Fault) -> Problem:
        match fault.path:
            case ("zones", int(index), "records"):
                zone = document.zones[index]
            case _:
                return fault.at(place)
        if fault.line and zone.source:
            return _in_text(fault, zone.source)
        why = f"line {fault.line}: {fault.why}" if fault.line else fault.why
        key = dotted(fault.path)
        return Problem(zone.source or place, key, fault.value or zone.name, why, fault.fix)

    return problem


def _in_text(fault: Fault, file: str) -> Problem:
    # The text has no keys: what a fault shows there is the name of a record.
    return Problem(f"{file}:{fault.line}" if fault.line else file, fault.value, "", fault.why, fault.fix)


def _in_rows(fault: Fault, rest: Key, origin: _Rows) -> Problem:
    place = shown(origin.path)
    match rest:
        case (int(group), "names", int(position)):
            place += f":{origin.lines[group][position]}"
    return Problem(place, "name", fault.value, fault.why, fault.fix)


def _same(written: object, value: str) -> bool:
    """Report whether both are one address or prefix, which may be written in several ways."""
    if not isinstance(written, str) or not value:
        return False
    try:
        return ip_interface(written) == ip_interface(value)
    except ValueError:
        return False
