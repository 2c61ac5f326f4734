"""Generations on disk: manifests and blobs by digest, what the host had before, and the state of the edge.

Everything is below one directory of root's, written to stable storage before the next step depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from unmoor import jsontext
from unmoor.errors import UnmoorError
from unmoor.rollout import manifest
from unmoor.rollout.manifest import ZERO, Absent, Entry, File, Link, Manifest

#: Confirmed generations that are kept, without the current one.
KEPT = 5
_TEMPORARY = ".new-"

T = TypeVar("T")


class StoreError(UnmoorError):
    """The stored generations are damaged, or cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A generation that is applied, or being applied, and not confirmed.

    `target` and `previous` are ids of generations. `back` means that the target is an older generation.
    `boot` is the boot id, and `deadline` the time on the clock of that boot (CLOCK_BOOTTIME, seconds) at
    which the edge returns. `touched` names the parts that were changed, or were about to be. `holder` says
    who applies it, `since` when (seconds since the epoch), `pid` and `started` identify the process
    (started: clock ticks since boot).
    """

    target: str
    previous: str
    boot: str
    deadline: float
    back: bool = False
    touched: tuple[str, ...] = ()
    holder: str = ""
    since: float = 0
    pid: int = 0
    started: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """A confirmed generation: its id, when it was confirmed (seconds since the epoch), and by whom."""

    id: str
    when: float
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """The last return of the edge: from and to which generation, when, why, and what failed."""

    source: str
    target: str
    when: float
    why: str
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """What is confirmed ("" is generation zero), pending, and was confirmed before, newest first."""

    confirmed: str = ""
    pending: Pending | None = None
    history: tuple[Record, ...] = ()
    returned: Returned | None = None
    repairs: int = 0


@dataclass(frozen=True, slots=True)
class Original:
    """What the host had before a path, a unit or a kernel setting became part of any generation.

    `folders` are directories that did not exist; a unit's state is: exists, is enabled, is active.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    units: dict[str, tuple[bool, bool, bool]] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


class Store:
    """The directory `home` of generations."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._blobs, self._manifests = home / "blobs", home / "manifests"

    def add(self, generation: Manifest, blobs: dict[str, bytes]) -> None:
        """Store a manifest with its blobs. Raises StoreError if a blob is neither given nor stored."""
        for digest in sorted(generation.digests):
            if not self.has_blob(digest):
                if digest not in blobs:
                    path = next(
                        e.path for e in generation.entries.values() if getattr(e, "digest", "") == digest
                    )
                    raise StoreError(f"{path}: its content is missing\n    fix: send blob {digest}, too")
                self.add_blob(blobs[digest])
        if generation.parts:
            self.write(self._manifests / f"{generation.id}.json", generation.text.encode())

    def add_blob(self, content: bytes) -> str:
        """Store a blob, unless it is stored; return its digest."""
        digest = hashlib.sha256(content).hexdigest()
        if not self.has_blob(digest):
            self.write(self._blobs / digest, content)
        return digest

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is stored."""
        return (self._blobs / digest).is_file()

    def blob(self, digest: str) -> bytes:
        """Return a blob. Raises StoreError if it is missing or damaged."""
        path = self._blobs / digest
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}\n    fix: roll the edge out again") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise StoreError(
                f"{path}: is damaged: its SHA-256 is another\n    fix: remove it and roll out again"
            )
        return content

    def generation(self, id_: str) -> Manifest:
        """Return a generation; "" is generation zero. Raises StoreError if it is missing or damaged."""
        if not id_:
            return ZERO
        path = self._manifests / f"{id_}.json"
        try:
            text = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}\n    fix: choose one of `unmoor edge list`") from None
        found, _ = manifest.parse(text, str(path))
        if found.id != id_:
            raise StoreError(f"{path}: is damaged: its SHA-256 is another\n    fix: roll the edge out again")
        return found

    def resolve(self, prefix: str) -> str:
        """Return the id of the one stored generation that begins with `prefix`; "zero" is generation zero."""
        if prefix == "zero":
            return ""
        stems = [path.stem for path in self._manifests.glob("*.json")]
        found = [stem for stem in stems if prefix and stem.startswith(prefix)]
        if len(found) != 1:
            why = "names no generation of this edge" if not found else f"names {len(found)} generations"
            raise StoreError(f"'{prefix}': {why}\n    fix: choose one of `unmoor edge list`")
        return found[0]

    def state(self) -> State:
        """Return the edge's state; that of a host that was never rolled out if there is none yet."""
        value = self._read_json("state.json")
        if value is None:
            return State()
        pending, returned = value.get("pending"), value.get("returned")
        return _known(
            State,
            value
            | {
                "pending": pending and _known(Pending, pending | {"touched": tuple(pending["touched"])}),
                "returned": returned
                and _known(Returned, returned | {"failures": tuple(returned["failures"])}),
                "history": tuple(_known(Record, each) for each in value["history"]),
            },
        )

    def save(self, state: State) -> None:
        """Replace the edge's state. The file `pending`, which units test for, exists while one is pending."""
        marker = self.home / "pending"
        if state.pending:
            self.write(marker, b"")
        self.write(self.home / "state.json", json.dumps(asdict(state)).encode())
        if not state.pending:
            marker.unlink(missing_ok=True)

    def original(self) -> Original:
        """Return what the host had before, as far as any generation has replaced it."""
        value = self._read_json("zero.json")
        if value is None:
            return Original()
        entries = {path: _entry(path, each) for path, each in value["entries"].items()}
        units = {name: (each[0], each[1], each[2]) for name, each in value["units"].items()}
        return Original(entries, units, value["sysctls"], tuple(value["folders"]))

    def save_original(self, original: Original) -> None:
        """Replace what the host had before."""
        entries = {
            path: asdict(entry) | {"kind": type(entry).__name__} for path, entry in original.entries.items()
        }
        document = {
            "entries": entries,
            "units": original.units,
            "sysctls": original.sysctls,
            "folders": original.folders,
        }
        self.write(self.home / "zero.json", json.dumps(document).encode())

    def collect(self, state: State) -> State:
        """Remove generations that are no longer kept, and their blobs; return the state without them."""
        kept = replace(state, history=state.history[:KEPT])
        ids = {state.confirmed, *(each.id for each in kept.history)}
        if state.pending:
            ids |= {state.pending.target, state.pending.previous}
        self.save(kept)
        digests = {e.digest for e in self.original().entries.values() if isinstance(e, File)}
        for id_ in ids:
            digests |= self.generation(id_).digests
        _remove_others(self._manifests, {f"{id_}.json" for id_ in ids})
        _remove_others(self._blobs, digests)
        return kept

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.home / name
        try:
            value: dict[str, Any] = jsontext.parse(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}\n    fix: restore it from a backup") from None
        return value

    def write(self, path: Path, content: bytes, mode: int = 0o600) -> None:
        """Write a file and rename it into place. Raises StoreError; nothing is left then."""
        name = None
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(name).rename(path)
        except OSError as error:
            if name:
                Path(name).unlink(missing_ok=True)
            raise StoreError(
                f"{path}: cannot be written: {error.strerror}\n    fix: free space there and run this again"
            ) from None
        sync(path.parent)


def sync(folder: Path) -> None:
    """Write a directory to stable storage, so that a rename in it outlives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _known(kind: type[T], value: dict[str, Any]) -> T:
    """Make a dataclass from the keys that it has: the state of a newer release may have more."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{key: each for key, each in value.items() if key in names})


def _entry(path: str, value: dict[str, Any]) -> Entry:
    if value["kind"] == "File":
        return File(path, value["digest"], value["mode"], value["owner"], value["group"])
    return Link(path, value["target"]) if value["kind"] == "Link" else Absent(path)


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    keep = set(names)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in keep:
            path.unlink()
