"""Hints: which slots of a generation are known to be empty, so that a look-up without a socket skips them.

A promise that a slot is empty must hold, since the program does not read that slot then. No promise is always
right, and costs time only. So whatever fills a slot withdraws its group's promises first. Those of a
generation that is not live are withdrawn, and so are all while no activation service runs: the next one may
be of an earlier release, which does not know hints.

The caller of each function holds the guard.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unmoor.bpf import libbpf
from unmoor.bpf.layout import ANSWERS_SIZE, COOKIE, HINTS, HINTS_OFFSET, KEY, SOCKET_SLOTS
from unmoor.bpf.pins import missing_pin

_END = HINTS_OFFSET + HINTS
_MAPPED = -(-ANSWERS_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE


@contextmanager
def filling(
    generation: Path, sockets: int, groups: Iterable[int], slots: Iterable[int] = ()
) -> Iterator[None]:
    """Withdraw the promises about `groups` while a block fills `slots`, then renew them.

    `sockets` is the descriptor of the map. A slot that the block empties gets no promise: a packet may have
    passed the first slot just before the block filled it, and reads it again when others prove to be empty.
    Raises UnmoorError when the pin of the hints is missing.
    """
    with _opened(generation) as hints:
        if hints is None:
            yield
            return
        renewed = {group: _empty(sockets, group) for group in groups}
        for slot in slots:
            renewed[slot // SOCKET_SLOTS] &= ~(1 << slot % SOCKET_SLOTS)
        for group in renewed:
            hints[HINTS_OFFSET + group] = 0
        yield
        for group, empty in renewed.items():
            hints[HINTS_OFFSET + group] = empty


def carry_over(live: Path, following: Path) -> None:
    """Copy the promises of the live generation to the one that is about to replace it."""
    promises = bytes(HINTS)
    with _opened_if_pinned(live) as hints:
        if hints is not None:
            promises = hints[HINTS_OFFSET:_END]
    _write(following, promises)


def withdraw(generation: Path) -> None:
    """Withdraw all promises of a generation."""
    _write(generation, bytes(HINTS))


def _write(generation: Path, promises: bytes) -> None:
    with _opened_if_pinned(generation) as hints:
        if hints is not None:
            hints[HINTS_OFFSET:_END] = promises


@contextmanager
def _opened_if_pinned(generation: Path) -> Iterator[mmap.mmap | None]:
    if not (generation / "answers").exists():
        yield None
        return
    with _opened(generation) as hints:
        yield hints


@contextmanager
def _opened(generation: Path) -> Iterator[mmap.mmap | None]:
    """Map `struct answers` of a generation; None if the program of an earlier release has no hints."""
    try:
        fd = libbpf.open_pin(generation / "answers", "map")
    except FileNotFoundError:
        raise missing_pin(generation / "answers") from None
    with libbpf.closing(fd):
        if libbpf.map_info(fd).value_size != ANSWERS_SIZE:
            yield None
            return
        with mmap.mmap(fd, _MAPPED) as memory:
            yield memory


def _empty(sockets: int, group: int) -> int:
    """Return the empty slots of a group, a bit each."""
    slots = range(group * SOCKET_SLOTS, (group + 1) * SOCKET_SLOTS)
    found = (libbpf.lookup(sockets, KEY.pack(slot), COOKIE.size) for slot in slots)
    return sum(1 << number for number, cookie in enumerate(found) if cookie is None)
