"""`probe uniformity`: send many queries, and test that answers are spread evenly over the pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from unmoor.probe.clients.dnsclient import DnsClient, Reply
from unmoor.probe.clients.dnswire import Question
from unmoor.probe.clients.outcome import Fault
from unmoor.probe.progress import Show
from unmoor.probe.results.pool import Cells, NumberedPool, divide
from unmoor.probe.results.report import failures
from unmoor.probe.results.statistics import ChiSquare, expected_distinct
from unmoor.probe.results.tally import Tally
from unmoor.probe.stop import Stop

#: Questions in flight at once; a socket buffer holds as many replies.
WINDOW = 128
#: Even draws fail this test once in a million runs.
P_MIN = 1e-6


@dataclass(slots=True)
class Spread:
    """Counts of answers. `lost` counts datagrams, including those whose question was answered later."""

    asked: int = 0
    answered: int = 0
    lost: int = 0
    loads: Counter[str] = field(default_factory=Counter)
    servers: Counter[str] = field(default_factory=Counter)
    failures: Tally = field(default_factory=Tally)
    interrupted: bool = False

    def add(self, reply: Reply) -> None:
        """Count `reply`."""
        self.lost += reply.lost
        if reply.fault is not None:
            self.failures.fail(reply.fault, f"{reply.question.name} {reply.question.type} @{reply.server}")
            return
        self.answered += 1
        self.servers[reply.server] += 1
        self.loads.update(reply.addresses)


def ask(client: DnsClient, questions: Sequence[Question], count: int, show: Show, stop: Stop) -> Spread:
    """Send `count` questions in turn. Ends early on a stop request, or if there are only failures."""
    spread = Spread()
    waiting = islice(cycle(questions), count)
    while True:
        for question in islice(waiting, WINDOW - len(client)):
            client.ask(question)
            spread.asked += 1
        if not len(client):
            return spread
        for reply in client.poll(0.25):
            spread.add(reply)
        show(spread.answered, spread.failures.failed)
        spread.interrupted = stop.requested
        if stop.requested or (not spread.answered and spread.failures.failed >= WINDOW):
            return spread


@dataclass(frozen=True, slots=True)
class Verdict:
    """A spread compared with the pool; without a pool there is no test."""

    spread: Spread
    pool: NumberedPool | None
    cells: tuple[Cells, ...] = ()
    tests: tuple[ChiSquare, ...] = ()
    outside: int = 0

    @property
    def p(self) -> float | None:
        """The smallest p of the tests."""
        return min((test.p for test in self.tests), default=None)

    @property
    def passed(self) -> bool:
        """Report whether nothing was lost or failed, all was inside the pool, and p is at least P_MIN."""
        spread = self.spread
        complete = spread.answered > 0 and not (spread.lost or spread.failures.failed or spread.interrupted)
        return complete and (self.p is None or self.p >= P_MIN)

    @property
    def loads(self) -> list[int]:
        """Answers per address of the pool, per bucket, or per address seen, in descending order."""
        counts = self.cells[0].counts if self.cells else self.spread.loads.values()
        return sorted(counts, reverse=True)


def judge(spread: Spread, pool: NumberedPool | None) -> Verdict:
    """Compare `spread` with `pool`; answers outside of it are failures."""
    if pool is None:
        return Verdict(spread, None)
    offsets: dict[int, int] = {}
    outside = 0
    for address, count in spread.loads.items():
        offset = pool.offset(address)
        if offset is None:
            outside += count
            spread.failures.fail(Fault("outside of the pool", f"answered {count} times"), address, count)
        else:
            offsets[offset] = count
    draws = sum(offsets.values())
    cells = divide(offsets, pool.size, draws) if draws else ()
    return Verdict(spread, pool, cells, tuple(cell.test() for cell in cells), outside)


def as_json(verdict: Verdict) -> dict[str, object]:
    """Return all results; `p` is null without a pool."""
    spread, loads = verdict.spread, verdict.loads
    return {
        "queries": spread.asked,
        "answered": spread.answered,
        "lost": spread.lost,
        "failed": spread.failures.failed,
        "outside": verdict.outside,
        "interrupted": spread.interrupted,
        "causes": dict(spread.failures.causes.most_common()),
        "examples": spread.failures.examples,
        "servers": dict(sorted(spread.servers.items())),
        "pool_size": verdict.pool.size if verdict.pool else None,
        "distinct": len(spread.loads),
        "distinct_expected": _expected(verdict),
        "load_over": verdict.cells[0].over if verdict.cells else "addresses seen",
        "load": {"min": loads[-1], "max": loads[0]} if loads else {},
        "tests": [
            {"over": t.over, "cells": t.cells, "chi_square": t.statistic, "freedom": t.freedom, "p": t.p}
            for t in verdict.tests
        ],
        "p": verdict.p,
    }


def _expected(verdict: Verdict) -> float | None:
    if verdict.pool is None:
        return None
    draws = sum(verdict.spread.loads.values()) - verdict.outside
    return round(expected_distinct(verdict.pool.size, draws), 1)


def as_text(verdict: Verdict) -> Iterator[str]:
    """Yield the results as lines of text, without the chart."""
    spread = verdict.spread
    yield f"{spread.asked} queries sent, {spread.answered} answered, {spread.lost} datagrams lost"
    if spread.interrupted:
        yield "interrupted: tests of the answers so far"
    expected = _expected(verdict)
    yield f"{len(spread.loads)} distinct addresses seen" + (
        f", {expected:.0f} expected of even draws from {verdict.pool.size}"
        if expected and verdict.pool
        else ""
    )
    for test in verdict.tests:
        yield (
            f"chi-square over {test.cells} {test.over}: {test.statistic:.1f} "
            f"({test.freedom} degrees of freedom), p = {test.p:.3g}"
        )
    if verdict.p is not None and verdict.p < P_MIN:
        yield f"not even: random draws are this uneven less than once in {1 / P_MIN:.0f} runs"
    if any(test.freedom and test.p > 1 - P_MIN for test in verdict.tests):
        yield "suspiciously even: random draws are less so; does the server rotate addresses?"
    loads = verdict.loads
    if loads:
        over = verdict.cells[0].over if verdict.cells else "addresses seen"
        yield f"answers for each of {len(loads)} {over}: least {loads[-1]}, most {loads[0]}"
    yield from failures(spread.failures)
