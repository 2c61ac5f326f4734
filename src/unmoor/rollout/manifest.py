"""The manifest of an edge generation: its parts, their files, and the commands that bring them into force.

A manifest is JSON. Its id is the SHA-256 of its canonical form, so equal generations have equal ids. All
paths are absolute. A file's content is a blob named by its own SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from unmoor import jsontext
from unmoor.errors import InvalidInputError, Problem

FORMAT = 1

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"0[0-7]{3}")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_PART_KEYS = {
    "name", "order", "files", "units", "sysctls", "checks", "rules", "verify", "repair", "remove", "requires",
}  # fmt: skip

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. `digest` is the SHA-256 of its content in hexadecimal, `mode` its permission bits."""

    path: str
    digest: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"

    @property
    def public(self) -> bool:
        """Whether every user may read it, so that its content may be printed."""
        return bool(self.mode & 0o004)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to `target`."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Absent:
    """A path at which there is no file."""

    path: str


Entry = File | Link | Absent


@dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit and the state that it has in this generation."""

    name: str
    enabled: bool = True
    active: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A command that runs when any of the paths `on` changed.

    Of the rules with the same `unit`, only the first that applies runs, and none when the unit was just
    started: so a restart, listed first, replaces a reload.
    """

    on: tuple[str, ...]
    run: Command
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One service of an edge: its files, units and kernel settings, and the commands around them.

    `order` is its place: lower parts are applied first, and undone last. `checks` run before anything is
    touched; in them, `@PATH` is the staged copy of a file of this part. `verify` commands exit with 0 when
    the part is in force, and `repair` commands bring it back when they do not although all files are in
    place. `remove` commands run before the part's files go. `requires` are paths outside of the generation
    that must exist, such as a release.
    """

    name: str
    order: int = 50
    files: tuple[Entry, ...] = ()
    units: tuple[Unit, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Command, ...] = ()
    rules: tuple[Rule, ...] = ()
    verify: tuple[Command, ...] = ()
    repair: tuple[Command, ...] = ()
    remove: tuple[Command, ...] = ()
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The parts of a generation, in the order in which they are applied."""

    parts: tuple[Part, ...] = ()

    @cached_property
    def id(self) -> str:
        """The SHA-256 of the canonical text; "" for the manifest without parts, generation zero."""
        return hashlib.sha256(self.text.encode()).hexdigest() if self.parts else ""

    @cached_property
    def text(self) -> str:
        """The canonical JSON text."""
        document = {"format": FORMAT, "parts": [_part_json(part) for part in self.parts]}
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All files, links and absent paths by path."""
        return {entry.path: entry for part in self.parts for entry in part.files}

    @cached_property
    def units(self) -> dict[str, Unit]:
        """All units by name."""
        return {unit.name: unit for part in self.parts for unit in part.units}

    @cached_property
    def sysctls(self) -> dict[str, str]:
        """All kernel settings by name."""
        return {name: value for part in self.parts for name, value in part.sysctls.items()}

    @property
    def digests(self) -> set[str]:
        """The digests of all blobs."""
        return {entry.digest for entry in self.entries.values() if isinstance(entry, File)}

    def part(self, name: str) -> Part | None:
        """Return the part with this name, or None."""
        return next((part for part in self.parts if part.name == name), None)

    def with_parts(self, other: Manifest) -> Manifest:
        """Return a manifest in which the parts of `other` replace those of the same name."""
        names = {part.name for part in other.parts}
        return make([*(part for part in self.parts if part.name not in names), *other.parts])


ZERO = Manifest()


def make(parts: Sequence[Part], place: str = "manifest") -> Manifest:
    """Return the manifest of these parts in their order. Raises InvalidInputError if two parts overlap."""
    ordered = tuple(sorted(parts, key=lambda part: (part.order, part.name)))
    if problems := list(_overlaps(ordered, place)):
        raise InvalidInputError(problems)
    return Manifest(ordered)


def parse(text: str | bytes, place: str = "manifest") -> tuple[Manifest, dict[str, bytes]]:
    """Parse a manifest; return it and the blobs that it contains inline, by digest.

    A file has either its `sha256`, or its `content` as text, which becomes a blob. Raises InvalidInputError
    with every problem; `place` names the input in them.
    """
    try:
        document = jsontext.parse(text)
    except ValueError as error:
        raise InvalidInputError(
            [Problem(place, "", "", f"is not JSON: {error}", "send the file again")]
        ) from None
    reader = _Reader(place)
    parts = reader.manifest(document)
    if reader.problems:
        raise InvalidInputError(reader.problems)
    return make(parts, place), reader.blobs


def _overlaps(parts: tuple[Part, ...], place: str) -> Iterator[Problem]:
    owners: dict[tuple[str, str], str] = {}
    for part in parts:
        names = [("name", part.name), *(("files", entry.path) for entry in part.files)]
        names += [("units", unit.name) for unit in part.units]
        names += [("sysctls", name) for name in part.sysctls]
        for kind, name in names:
            if (kind, name) in owners:
                why = f"belongs to part {owners[kind, name]} already"
                yield Problem(place, f"{part.name}.{kind}", name, why, "list it in one part only")
            owners[kind, name] = part.name


def _part_json(part: Part) -> dict[str, Any]:
    document: dict[str, Any] = {"name": part.name, "order": part.order}
    document["files"] = [_entry_json(entry) for entry in part.files]
    document["units"] = [
        {"name": unit.name, "enabled": unit.enabled, "active": unit.active} for unit in part.units
    ]
    document["sysctls"] = dict(part.sysctls)
    document["rules"] = [{"on": rule.on, "run": rule.run, "unit": rule.unit} for rule in part.rules]
    for key in ("checks", "verify", "repair", "remove", "requires"):
        document[key] = getattr(part, key)
    return {key: value for key, value in document.items() if value not in ({}, [], ())}


def _entry_json(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, File):
        return {
            "path": entry.path,
            "sha256": entry.digest,
            "mode": f"{entry.mode:04o}",
            "owner": entry.owner,
            "group": entry.group,
        }
    if isinstance(entry, Link):
        return {"path": entry.path, "link": entry.target}
    return {"path": entry.path, "absent": True}


class _Reader:
    """Turns JSON values into parts, and collects problems and inline blobs."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.problems: list[Problem] = []
        self.blobs: dict[str, bytes] = {}

    def problem(self, key: str, value: Any, why: str, fix: str) -> None:
        shown = "" if value == "" else jsontext.shown(value)
        self.problems.append(Problem(self.place, key, shown if len(shown) < 80 else "...", why, fix))

    def manifest(self, document: Any) -> list[Part]:
        if not isinstance(document, dict) or not isinstance(document.get("parts"), list):
            self.problem("", "", "is not an object with `parts`", "send a manifest")
            return []
        if document.get("format") != FORMAT:
            self.problem(
                "format", document.get("format"), f"this release reads format {FORMAT}",
                "apply it with the release that made it, or make it again with this one",
            )  # fmt: skip
            return []
        return [self.part(each, f"parts[{number}]") for number, each in enumerate(document["parts"])]

    def part(self, value: Any, key: str) -> Part:
        if not isinstance(value, dict) or not _NAME.fullmatch(str(value.get("name", ""))):
            self.problem(
                key, value, "has no valid `name`", "name it with lower-case letters, digits, - and _"
            )
            return Part("invalid")
        name = value["name"]
        for unknown in sorted(value.keys() - _PART_KEYS):
            self.problem(
                f"{name}.{unknown}", "", "is not a key of a part", f"use {', '.join(sorted(_PART_KEYS))}"
            )
        order = value.get("order", 50)
        if type(order) is not int or not 0 <= order <= 99:
            self.problem(f"{name}.order", order, "is not a number from 0 to 99", "choose the part's place")
            order = 50
        sysctls = value.get("sysctls", {})
        if not isinstance(sysctls, dict) or not all(isinstance(each, str) for each in sysctls.values()):
            self.problem(
                f"{name}.sysctls", sysctls, "is not an object of strings", 'write {"net.core.x": "1"}'
            )
            sysctls = {}
        commands = {
            each: self.commands(value.get(each, []), f"{name}.{each}")
            for each in ("checks", "verify", "repair", "remove")
        }
        return Part(
            name,
            order,
            tuple(self.entry(each, f"{name}.files") for each in self.items(value, name, "files")),
            tuple(self.unit(each, f"{name}.units") for each in self.items(value, name, "units")),
            sysctls,
            rules=tuple(self.rule(each, f"{name}.rules") for each in self.items(value, name, "rules")),
            requires=self.strings(value.get("requires", []), f"{name}.requires"),
            **commands,
        )

    def items(self, value: dict[str, Any], name: str, key: str) -> list[dict[str, Any]]:
        found = value.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            self.problem(f"{name}.{key}", found, "is not a list of objects", "see docs/generations.md")
            return []
        return found

    def strings(self, value: Any, key: str) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            self.problem(key, value, "is not a list of strings", 'write ["one", "two"]')
            return ()
        return tuple(value)

    def commands(self, value: Any, key: str) -> tuple[Command, ...]:
        if not isinstance(value, list | tuple):
            self.problem(key, value, "is not a list of commands", 'write [["program", "argument"]]')
            return ()
        return tuple(self.command(each, key) for each in value)

    def command(self, value: Any, key: str) -> Command:
        command = self.strings(value, key)
        if not command or not command[0].startswith("/"):
            self.problem(
                key, value, "does not begin with an absolute path", 'write ["/usr/bin/program", ...]'
            )
        return command

    def entry(self, value: dict[str, Any], key: str) -> Entry:
        path = value.get("path")
        if not isinstance(path, str) or not _clean(path):
            self.problem(key, path, "is not an absolute path without . and ..", "write the whole path")
            return Absent("/invalid")
        if "link" in value:
            return Link(path, self.text(value["link"], f"{key}: {path}: link"))
        if value.get("absent") is True:
            return Absent(path)
        mode = value.get("mode", "0644")
        if not isinstance(mode, str) or not _MODE.fullmatch(mode):
            self.problem(f"{key}: {path}: mode", mode, "is not four octal digits", 'write "0644"')
            mode = "0644"
        owner, group = (
            self.text(value.get(each, "root"), f"{key}: {path}: {each}") for each in ("owner", "group")
        )
        return File(path, self.digest(value, f"{key}: {path}"), int(mode, 8), owner, group)

    def digest(self, value: dict[str, Any], key: str) -> str:
        if isinstance(value.get("content"), str):
            content = value["content"].encode()
            digest = hashlib.sha256(content).hexdigest()
            self.blobs[digest] = content
            return digest
        named = value.get("sha256")
        if not isinstance(named, str) or not _DIGEST.fullmatch(named):
            # Without the value, which may be a secret in the wrong place.
            self.problem(
                key, "", "has neither `content` nor a `sha256` of 64 hexadecimal digits", "give one of them"
            )
            return ""
        return named

    def text(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            self.problem(key, value, "is not a text", "write a name")
            return ""
        return value

    def unit(self, value: dict[str, Any], key: str) -> Unit:
        states = {each: value.get(each, True) for each in ("enabled", "active")}
        if not all(isinstance(each, bool) for each in states.values()):
            self.problem(key, value, "has a state that is neither true nor false", "write true or false")
        return Unit(self.text(value.get("name"), f"{key}.name"), **states)

    def rule(self, value: dict[str, Any], key: str) -> Rule:
        unit = value.get("unit", "")
        return Rule(
            self.strings(value.get("on", []), f"{key}.on"),
            self.command(value.get("run", []), f"{key}.run"),
            unit if unit == "" else self.text(unit, f"{key}.unit"),
        )


def _clean(path: str) -> bool:
    parts = path.split("/")
    return (
        path.startswith("/") and len(path) > 1 and "\0" not in path and not {"", ".", ".."} & set(parts[1:])
    )
