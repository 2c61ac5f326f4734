"""`probe reach`: connect to every pair, split among worker processes with an engine each."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic

from unmoor.probe.clients.engine import Engine, Settings
from unmoor.probe.clients.outcome import Fault, Outcome
from unmoor.probe.clients.targets import Block, Target, pairs
from unmoor.probe.progress import Show
from unmoor.probe.results.tally import Tally
from unmoor.probe.stop import Stop

#: Seconds between a worker's reports, and between checks for a stop request.
_INTERVAL = 0.25
#: File descriptors that a process needs besides its connections.
_OTHER_FILES = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """Targets and limits: `concurrency` connections at once in all `processes` together."""

    blocks: Sequence[Block]
    plain: Sequence[int]
    tls: Sequence[int]
    settings: Settings
    concurrency: int = 128
    processes: int = 1
    examples: int = 3


@dataclass(frozen=True, slots=True)
class _Progress:
    """A worker's report of its progress; the last one has its counts."""

    done: int
    failed: int
    tally: Tally | None = None


@dataclass(frozen=True, slots=True)
class _Worker:
    process: BaseProcess
    link: Connection[None, _Progress]


def run(plan: Plan, show: Show, stop: Stop) -> Tally:
    """Connect to every pair of `plan`; a stop request returns the counts so far.

    The death of a worker counts as a failure, because its part is unknown.
    """
    each = _connections_each(plan)
    workers: list[_Worker] = []
    try:
        for part in range(plan.processes):
            workers.append(_start(plan, part, each))
        return _collect(plan, workers, show, stop)
    finally:
        # All links first: a worker inherits copies of the links of earlier ones.
        for worker in workers:
            worker.link.close()
        for worker in workers:
            worker.process.join()


def _connections_each(plan: Plan) -> int:
    """Return the connections at once of one worker, within its limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = -(-plan.concurrency // plan.processes)
    if hard == resource.RLIM_INFINITY or wanted + _OTHER_FILES <= hard:
        if soft != resource.RLIM_INFINITY and soft < wanted + _OTHER_FILES:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + _OTHER_FILES, hard))
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, hard - _OTHER_FILES)


def _start(plan: Plan, part: int, concurrency: int) -> _Worker:
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    process = context.Process(target=_work, args=(plan, part, concurrency, parent, child), daemon=True)
    process.start()
    child.close()
    return _Worker(process, parent)


def _collect(plan: Plan, workers: Sequence[_Worker], show: Show, stop: Stop) -> Tally:
    total = Tally(plan.examples)
    latest = {worker.link: _Progress(0, 0) for worker in workers}
    waiting = dict.fromkeys(latest)
    notified = False
    while waiting:
        for link in wait(list(waiting), _INTERVAL):
            assert isinstance(link, multiprocessing.connection.Connection)  # noqa: S101 - wait() returns what it was given
            progress = _receive(link)
            if progress is None:
                total.fail(
                    Fault("local limit", "a worker process died; its part is unknown"), "this computer"
                )
            else:
                latest[link] = progress
            if progress is None or progress.tally is not None:
                del waiting[link]
                total.merge(progress.tally if progress and progress.tally else Tally())
        show(sum(each.done for each in latest.values()), sum(each.failed for each in latest.values()))
        if stop.requested and not notified:
            notified = True
            for link in waiting:
                link.send(None)
    return total


def _receive(link: Connection[None, _Progress]) -> _Progress | None:
    try:
        return link.recv()
    except (EOFError, OSError):
        return None


def _work(
    plan: Plan,
    part: int,
    concurrency: int,
    others: Connection[None, _Progress],
    link: Connection[_Progress, None],
) -> None:
    """Body of a worker process."""
    others.close()  # an inherited copy, which would keep the link open after the parent's death
    # Ctrl-C reaches the whole process group; the parent requests a stop over the link.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()
    tally = Tally(plan.examples)
    try:
        for phase in _phases(plan, (part, plan.processes)):
            if not _run_phase(phase, plan.settings, concurrency, tally, link):
                break
        link.send(_Progress(tally.pairs, tally.failed, tally))
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent has exited


def _phases(plan: Plan, share: tuple[int, int]) -> Iterator[Iterator[Target]]:
    """Yield the targets without TLS, then those with TLS, so that each phase has its own rate."""
    if plan.plain:
        yield pairs(plan.blocks, plan.plain, tls=False, share=share)
    if plan.tls:
        yield pairs(plan.blocks, plan.tls, tls=True, share=share)


def _run_phase(
    targets: Iterator[Target],
    settings: Settings,
    concurrency: int,
    tally: Tally,
    link: Connection[_Progress, None],
) -> bool:
    """Connect to all of `targets`. Returns false on a stop request."""

    def report(outcome: Outcome) -> None:
        tally.add(outcome, monotonic())

    with closing(Engine(settings, report)) as engine:
        more = True
        due = monotonic() + _INTERVAL
        while more or len(engine):
            while more and len(engine) < concurrency:
                target = next(targets, None)
                if target is None:
                    more = False
                else:
                    engine.start(target)
            engine.poll(_INTERVAL)
            if monotonic() >= due:
                due = monotonic() + _INTERVAL
                if link.poll():
                    return False
                link.send(_Progress(tally.pairs, tally.failed))
    return True
