"""Repair of pins that were removed or replaced by hand, found by the ids of their maps.

Every pin of a map must refer to the map that the attached program uses. Where another pin of the same map
exists, the missing one is restored from it and nothing is lost. Otherwise the load that follows creates it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unmoor.bpf import libbpf
from unmoor.bpf.pins import PROGRAMS, SHARED, TABLE, Pins, protect
from unmoor.errors import UnmoorError

_RESTORED = "restored the pin {}"
_REPLACED = "created the pin {} again: its counts are lost"
_SOCKETS_LOST = "created the map of sockets again: register every service again"
_RECORD_LOST = "created the record of what is loaded again: register every service again"


def repair(pins: Pins) -> tuple[str, ...]:
    """Restore pins from others of the same map, and unpin maps that the attached program does not use.

    The caller holds the lock and the guard. Returns a line for each pin that was restored or is lost; unless
    there is none, the load must build a new generation. Raises UnmoorError when a pin is of another kind.
    """
    if not pins.link.exists():
        return tuple(_align(pins, None))
    live = pins.live()
    used = _used(live / "dispatch") if live else None
    restored = tuple(_align(pins, used))
    _unpin_outdated(pins, used)
    return (*restored, *_missing(pins))


def missing(pins: Pins) -> tuple[str, ...]:
    """Return the pins of a loaded table that do not exist. Needs no right but to list the directories."""
    names = [*SHARED, pins.registry.name]
    names += [f"{pins.current.name}/{name}" for name in (*TABLE, *PROGRAMS, "record")]
    return tuple(name for name in names if not (pins.root / name).exists())


def check_rollback(pins: Pins) -> None:
    """Raise UnmoorError unless the previous generation uses the maps that are pinned."""
    used = _used(pins.previous / "dispatch") or frozenset()
    outdated = [name for name in SHARED if _id(pins.root / name) not in used]
    if outdated:
        raise UnmoorError(
            f"{pins.previous}: its program uses other maps than those pinned as {', '.join(outdated)}\n"
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
        elif name != pins.registry.name:  # it is reported with `sockets`
            yield _RESTORED.format(name)


def _align(pins: Pins, used: frozenset[int] | None) -> Iterator[str]:
    """Pin the same map as `sockets` and `registry`: the attached program's (in `used`), if either is it."""
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
    """Unpin maps that the attached program does not use: their content belongs to another table."""
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
    """Return the id of a pinned map; None if nothing is pinned there."""
    try:
        fd = libbpf.open_pin_to_read(path, "map")
    except FileNotFoundError:
        return None
    with libbpf.closing(fd):
        return libbpf.map_info(fd).id


def _used(program: Path) -> frozenset[int] | None:
    """Return the ids of the maps that a pinned program uses; None if nothing is pinned there."""
    try:
        with libbpf.opened(program, "program") as fd:
            return libbpf.program_maps(fd)
    except FileNotFoundError:
        return None
