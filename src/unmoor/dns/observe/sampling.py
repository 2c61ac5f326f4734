"""Random samples of the queries: for the latency histogram, and for the query log."""

from __future__ import annotations

import math
import random
import time
from typing import NamedTuple

from unmoor.dns.answer.fast_path import Answerer
from unmoor.dns.counters.counters import Counts
from unmoor.dns.observe.query_log import QueryLogger

#: The latency of one query in so many is measured.
LATENCY_SAMPLE = 256

# From the operating system: a client that could predict the sample could evade it.
_random = random.SystemRandom()
_NEVER = 1 << 62


def gap(mean: int) -> int:
    """Return the distance to the next sampled query, each with a chance of one in `mean`; 0 means never."""
    if not mean:
        return _NEVER
    # The geometric distribution. 1 - random() is never zero.
    return 1 if mean == 1 else 1 + int(math.log(1 - _random.random()) / math.log1p(-1 / mean))


class _Sampled(NamedTuple):
    """A sampled query: whether it is timed, the log to which it goes, if any, and the entry's contents."""

    timed: bool
    log: QueryLogger | None
    policy: str
    packet: bytes
    reply: bytes | None
    address: str


class Observer:
    """Samples the queries of one transport, answered by `answer`, or by `log` if they are to be logged.

    The caller calls `begin` when queries were received, `each` for each of them, and `end` when the replies
    are sent. For a batch of at most `left` queries, which contains no sampled one, the caller may subtract
    its size from `left` and use `answer` instead.
    """

    def __init__(self, answer: Answerer, counts: Counts, log: QueryLogger | None = None) -> None:
        self.answer = answer
        self._counts = counts
        self._log = log
        self._sample = log.sample if log else 0
        self._to_latency, self._to_log = gap(LATENCY_SAMPLE), gap(self._sample)
        # Queries before the next sampled one: those left, and their number when it was chosen.
        self.left = self._gap = min(self._to_latency, self._to_log) - 1
        self._began = 0
        self._sampled: list[_Sampled] = []

    def begin(self) -> None:
        """Record that queries were received now."""
        self._began = time.perf_counter_ns()

    def each(self, packet: bytes, limit: int, address: str) -> bytes | None:
        """Answer one query."""
        if self.left:
            self.left -= 1
            return self.answer(packet, limit, address)
        if not self._began:
            self.begin()
        self._to_latency -= self._gap + 1
        self._to_log -= self._gap + 1
        log = None if self._to_log else self._log
        reply = (log.answer if log else self.answer)(packet, limit, address)
        policy = log.policy() if log else ""
        self._sampled.append(_Sampled(not self._to_latency, log, policy, packet, reply, address))
        self._to_latency = self._to_latency or gap(LATENCY_SAMPLE)
        self._to_log = self._to_log or gap(self._sample)
        self.left = self._gap = min(self._to_latency, self._to_log) - 1
        return reply

    def end(self) -> None:
        """Record the sampled queries: their replies are sent."""
        if self._sampled:
            took = time.perf_counter_ns() - self._began
            for each in self._sampled:
                if each.timed:
                    self._counts.add_latency(took)
                if each.log:
                    each.log.record(each.packet, each.reply, each.address, each.policy, took)
            self._sampled.clear()
        self._began = 0

    def alone(self, packet: bytes, limit: int, address: str) -> bytes | None:
        """Answer one query; its latency ends with the reply, whose sending depends on the client."""
        reply = self.each(packet, limit, address)
        if self._began:
            self.end()
        return reply
