"""The watch on an edge: repairs what the host loses of the confirmed generation, every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat

from unmoor import systemd
from unmoor.errors import UnmoorError
from unmoor.rollout import edge
from unmoor.rollout.plan import Run
from unmoor.rollout.store import Store

#: The longest wait after repairs that did not help, in seconds.
_MAX_WAIT = 60.0


def watch(
    store: Store,
    run: Run,
    report: Callable[[str], None],
    interval: float,
    rounds: Iterator[None] | None = None,
) -> None:
    """Repair every `interval` seconds, and report each repair and each new failure.

    While repairs fail, the wait doubles up to a minute. Runs without end, or for as many `rounds`. `run` runs
    the verify commands.
    """
    systemd.notify("READY=1")
    wait, last = interval, ""
    for _ in rounds or repeat(None):
        try:
            lines = edge.repair(store, run) if edge.lost(store, run) else []
            failed = "\n".join(lines) if lines and edge.lost(store, run) else ""
        except UnmoorError as error:  # another process changes the edge, or the disk is full: try again
            lines, failed = [], str(error)
        for line in lines:
            report(line)
        if failed and failed != last and not lines:
            report(failed)
        last = failed
        wait = min(2 * wait, _MAX_WAIT) if failed else interval
        time.sleep(wait)
