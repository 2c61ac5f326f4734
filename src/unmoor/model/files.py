"""The files that an inventory names: zone files, hostname files and registries.

Each function returns what it could read and adds a problem to the source for everything it could not.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from unmoor.errors import Problem, UnmoorError
from unmoor.model.dns import Hostnames, Zone
from unmoor.model.variables import Source, ZoneFiles

#: Returns the path, SHA-256 and number of names of the registry that a file is, or that it builds from the
#: file for the given zones. Raises UnmoorError.
RegistryMaker = Callable[[Path, Sequence[str]], tuple[Path, str, int]]


def read_registry(
    source: Source, file: str, zones: Sequence[str], registry_of: RegistryMaker | None
) -> tuple[Path, str, int] | None:
    """Return the path, SHA-256 and number of names of the registry for `zones`; None if there is none."""
    if not file or registry_of is None:
        return None
    try:
        return registry_of(source.directory / file, zones)
    except UnmoorError as error:
        lines = getattr(error, "problems", ())
        source.problems += lines
        first, _, rest = str(error).partition("\n    fix: ")
        why = first.splitlines()[0].rstrip(":")
        fix = "fix them; each is reported separately" if lines else rest or "correct the list"
        source.problem(("dns_registry",), file, why, fix)
        return None


def read_zone(source: Source, number: int, zone: ZoneFiles) -> Zone:
    """Read the files of the zone at index `number` of `unmoor_zones`."""
    records = _read_records(source, number, zone) if zone.records_file else ""
    if bool(zone.records_file) == bool(zone.primaries):
        why = "has both a records_file and primaries" if zone.primaries else "has no records"
        fix = "give it either a records_file, or primaries to transfer them from"
        source.problem(("zones", number), zone.name, why, fix)
    hostnames: tuple[Hostnames, ...] = ()
    if zone.hostnames_file:
        hostnames = _read_hostnames(source, number, zone.name, source.directory / zone.hostnames_file)
    return Zone(
        name=zone.name,
        records=records,
        source=zone.records_file or "",
        primaries=zone.primaries,
        hostnames=hostnames,
    )


def _read_records(source: Source, number: int, zone: ZoneFiles) -> str:
    path = source.directory / (zone.records_file or "")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        key = ("zones", number, "records_file")
        source.problem(key, zone.records_file, str(reason), f"write the zone file {path}")
        return ""


def _read_hostnames(source: Source, number: int, zone: str, path: Path) -> tuple[Hostnames, ...]:
    by_tags: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    lines = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if "name" not in (rows.fieldnames or ()):
                source.problems.append(
                    Problem(
                        f"{path}:1",
                        "",
                        "",
                        "has no column `name`",
                        "begin the file with a header, as in `name,account`",
                    )
                )
                return ()
            for row in rows:
                lines = rows.line_num
                name = row.pop("name") or ""
                if problem := _name_problem(name, zone):
                    source.problems.append(Problem(f"{path}:{lines}", "name", repr(name)[1:-1], *problem))
                    continue
                if None in row or None in row.values() or not name:
                    source.problems.append(
                        Problem(
                            f"{path}:{lines}",
                            "name",
                            name,
                            "the line has no name, or more or fewer fields than the first line",
                            "write one field for each column",
                        )
                    )
                    continue
                by_tags[tuple(sorted((tag, value) for tag, value in row.items() if value))].append(name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        source.problem(
            ("zones", number, "hostnames_file"), path.name, str(reason), f"write the CSV file {path}"
        )
        return ()
    if not lines:
        why = "has a header line and no names"
        fix = "write the names; or remove hostnames_file from the zone"
        source.problems.append(Problem(f"{path}:1", "", "", why, fix))
    elif not path.read_bytes().endswith(b"\n"):
        why = "ends without a newline: it may be truncated"
        fix = "write the file again; if it is complete, add the newline"
        source.problems.append(Problem(f"{path}:{lines}", "", "", why, fix))
    return tuple(Hostnames(tags=dict(tags), names=tuple(names)) for tags, names in by_tags.items())


def _name_problem(name: str, zone: str) -> tuple[str, str] | None:
    """Return what is wrong with a name of a hostnames file, and the fix. Its syntax is checked elsewhere."""
    if any(letter.isspace() or not letter.isprintable() for letter in name):
        return "has a space or a control character", "remove it; inside a label, write \\DDD (RFC 1035)"
    whole, apex = name.lower(), zone.lower().rstrip(".")
    if apex and (whole == apex or whole.endswith(f".{apex}")):
        relative = name[: -len(apex) - 1] or "@"
        why = f"is an absolute name, but names here are relative to the zone: it would become {name}.{apex}"
        return why, f"write {relative}, or {name}. with a final dot"
    return None
