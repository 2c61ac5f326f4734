"""Looking at some of the queries, chosen at random: how long they take, and what the query log is told."""

from __future__ import annotations

import math
import random
import time
from typing import NamedTuple

from unmoor.dns.answer.fast_path import Answerer
from unmoor.dns.counters.counters import Counts
from unmoor.dns.observe.query_log import QueryLogger

#: One query in so many has its time taken.
LATENCY_SAMPLE = 256

# From the operating system: who could foretell what is looked at could hide from it.
_random = random.SystemRandom()
_NEVER = 1 << 62


def gap(mean: int) -> int:
    """How many queries further the next one is chosen: each is with a chance of one in `mean`; 0 is never."""
    if not mean:
        return _NEVER
    # The geometric distribution. 1 - random() is never zero.
    return 1 if mean == 1 else 1 + int(math.log(1 - _random.random()) / math.log1p(-1 / mean))


class _Looked(NamedTuple):
    """A query that was looked at: whether its time is taken, and what the log, if any, is to be told."""

    timed: bool
    log: QueryLogger | None
    policy: str
    packet: bytes
    reply: bytes | None
    address: str


class Observer:
    """Looks at queries of one transport, answered by `answer`, or by `log` if they are to be logged.

    Whoever answers `begin`s when queries were received, gives them to `each`, and `end`s when the replies are
    sent. A batch of no more queries than are `left` before the one to look at need not come by: whoever has
    one takes its size off `left`, and uses `answer`.
    """

    def __init__(self, answer: Answerer, counts: Counts, log: QueryLogger | None = None) -> None:
        self.answer = answer
        self._counts = counts
        self._log = log
        self._sample = log.sample if log else 0
        self._to_latency, self._to_log = gap(LATENCY_SAMPLE), gap(self._sample)
        # How many queries come before the next one to look at; and how many there were when it was chosen.
        self.left = self._gap = min(self._to_latency, self._to_log) - 1
        self._began = 0
        self._looked: list[_Looked] = []

    def begin(self) -> None:
        """Queries were received just now."""
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
        self._looked.append(_Looked(not self._to_latency, log, policy, packet, reply, address))
        self._to_latency = self._to_latency or gap(LATENCY_SAMPLE)
        self._to_log = self._to_log or gap(self._sample)
        self.left = self._gap = min(self._to_latency, self._to_log) - 1
        return reply

    def end(self) -> None:
        """What was answered is sent: note what there is to note of it."""
        if self._looked:
            took = time.perf_counter_ns() - self._began
            for each in self._looked:
                if each.timed:
                    self._counts.add_latency(took)
                if each.log:
                    each.log.tell(each.packet, each.reply, each.address, each.policy, took)
            self._looked.clear()
        self._began = 0

    def alone(self, packet: bytes, limit: int, address: str) -> bytes | None:
        """Answer one query; its time ends with the reply, for who sends it whenever the client has room."""
        reply = self.each(packet, limit, address)
        if self._began:
            self.end()
        return reply
