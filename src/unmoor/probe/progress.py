"""Progress on standard error: a bar on a terminal, a plain line every few seconds otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

#: Seconds between plain lines.
EVERY = 5.0


class Show(Protocol):
    """A function that shows the progress of a run."""

    def __call__(self, done: int, failed: int) -> None:
        """Show that `done` steps are done, of which `failed` failed."""


@contextmanager
def progress(what: str, total: int | None, *, quiet: bool) -> Iterator[Show]:
    """Show the progress of run `what` with `total` steps (None: unknown number)."""
    if quiet:
        yield lambda done, failed: None
    elif sys.stderr.isatty():
        with _bar(what, total) as show:
            yield show
    else:
        yield _lines(what, total)


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Show]:
    from rich.console import Console  # noqa: PLC0415 - it takes a quarter of a second, which most runs do not need
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - as above

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # no thread beside the forked workers
    )
    with bar:
        task = bar.add_task(what, total=total, failed="")

        def show(done: int, failed: int) -> None:
            bar.update(task, completed=done, failed=f"{failed} failed" if failed else "", refresh=True)

        yield show


def _lines(what: str, total: int | None) -> Show:
    began = last = monotonic()

    def show(done: int, failed: int) -> None:
        nonlocal last
        now = monotonic()
        if now - last < EVERY:
            return
        last = now
        rate = done / (now - began)
        of = "" if total is None else f" of {total}"
        print(f"{what}: {done}{of} done, {failed} failed, {rate:.0f}/s", file=sys.stderr, flush=True)

    return show
