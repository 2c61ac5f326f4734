"""Pins that somebody removed or replaced by hand: found by the ids of their maps, then put right.

Every pin that names a map must name the one that the attached program uses. What still has another name is
pinned again under the missing one, and nothing is lost; what has none is made again by the load that follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unmoor.bpf import libbpf
from unmoor.bpf.pins import PROGRAMS, SHARED, TABLE, Pins, protect
from unmoor.errors import UnmoorError

_RESTORED = "restored the pin {}"
_REPLACED = "the pin {} is made again: what it counted is lost"
_SOCKETS_LOST = "the map of sockets is made again: register every service again"
_RECORD_LOST = "the record of what is loaded is made again: register every service again"


def repair(pins: Pins) -> tuple[str, ...]:
    """Restore what another pin still names, and unpin what names another map than the attached program uses.

    Call it with the lock and the guard held. Returns what was done or is lost; a load must then build a new
    generation. Raises UnmoorError when a pin is of another kind.
    """
    if not pins.link.exists():
        return tuple(_align(pins, None))
    live = pins.live()
    used = _used(live / "dispatch") if live else None
    restored = tuple(_align(pins, used))
    _unpin_outdated(pins, used)
    return (*restored, *_missing(pins))


def missing(pins: Pins) -> tuple[str, ...]:
    """The pins that a loaded table has and that are not there; needs no right but to look."""
    names = [*SHARED, pins.registry.name]
    names += [f"{pins.current.name}/{name}" for name in (*TABLE, *PROGRAMS, "record")]
    return tuple(name for name in names if not (pins.root / name).exists())


def check_rollback(pins: Pins) -> None:
    """Raise UnmoorError unless the generation before uses the maps that are pinned."""
    used = _used(pins.previous / "dispatch") or frozenset()
    outdated = [name for name in SHARED if _id(pins.root / name) not in used]
    if outdated:
        raise UnmoorError(
            f"{pins.previous}: uses other maps than those pinned as {', '.join(outdated)}\n"
            "    fix: load the earlier document instead: unmoor sockets load --config FILE"
        )


def _missing(pins: Pins) -> Iterator[str]:
    for name in missing(pins):
        if name == "sockets":
            yield _SOCKETS_LOST
        elif name in SHARED:
            yield _REPLACED.format(name)
        elif name.endswith("/record"):
            yield _RECORD_LOST
        elif name != pins.registry.name:  # it follows `sockets`
            yield _RESTORED.format(name)


def _align(pins: Pins, used: frozenset[int] | None) -> Iterator[str]:
    """Make `sockets` and `registry` one map: the attached program's (of the ids `used`), if either is."""
    sockets = pins.root / "sockets"
    ids = {path: _id(path) for path in (sockets, pins.registry)}
    found = [path for path, number in ids.items() if number is not None and (not used or number in used)]
    if not found:
        return
    for path, number in ids.items():
        if number != ids[found[0]]:
            _pin_again(found[0], path)
            yield _RESTORED.format(path.name)


def _pin_again(source: Path, path: Path) -> None:
    with libbpf.closing(libbpf.open_pin_to_read(source)) as fd:
        path.unlink(missing_ok=True)
        libbpf.pin(fd, path)
    protect(path)


def _unpin_outdated(pins: Pins, used: frozenset[int] | None) -> None:
    """Unpin maps that the attached program does not use: what they hold is of another table."""
    if not used:
        return
    for name in SHARED:
        path = pins.root / name
        number = _id(path)
        if number is None or number in used:
            continue
        path.unlink()
        if name == "sockets":
            pins.registry.unlink(missing_ok=True)


def _id(path: Path) -> int | None:
    """The id of a pinned map; None when nothing is pinned there."""
    try:
        fd = libbpf.open_pin_to_read(path, "map")
    except FileNotFoundError:
        return None
    with libbpf.closing(fd):
        return libbpf.map_info(fd).id


def _used(program: Path) -> frozenset[int] | None:
    """The ids of the maps that a pinned program uses; None when nothing is pinned there."""
    try:
        with libbpf.opened(program, "program") as fd:
            return libbpf.program_maps(fd)
    except FileNotFoundError:
        return None
