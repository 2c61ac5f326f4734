"""Counts of outcomes: answers, causes of failures with examples, edges, services, latency and rate."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from unmoor.probe.clients.outcome import Fault, Outcome

#: Seconds after which Linux repeats a lost SYN (RFC 6298 section 2).
SYN_RETRY = 1.0


@dataclass(slots=True)
class Side:
    """Counts of one address family, or of connections with or without TLS."""

    pairs: int = 0
    answered: int = 0
    latencies: array[float] = field(default_factory=lambda: array("f"))
    first: float = float("inf")
    last: float = 0.0

    def add(self, outcome: Outcome, now: float) -> None:
        """Count `outcome`; `now` is its time in monotonic seconds."""
        self.pairs += 1
        self.first = min(self.first, now - outcome.seconds)
        self.last = max(self.last, now)
        if outcome.fault is None:
            self.answered += 1
            self.latencies.append(outcome.seconds)

    def merge(self, other: Side) -> None:
        """Add the counts of another process."""
        self.pairs += other.pairs
        self.answered += other.answered
        self.latencies.extend(other.latencies)
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)

    @property
    def rate(self) -> float:
        """Connections per second, from the first connect to the last outcome."""
        span = self.last - self.first
        return self.pairs / span if span > 0 else 0.0


@dataclass(slots=True)
class Tally:
    """Counts of outcomes."""

    examples_kept: int = 3
    families: dict[int, Side] = field(default_factory=dict)
    kinds: dict[str, Side] = field(default_factory=dict)
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    edges: Counter[str] = field(default_factory=Counter)
    services: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, now: float) -> None:
        """Count `outcome`; `now` is its time in monotonic seconds."""
        target = outcome.target
        self.kinds.setdefault("tls" if target.tls else "plain", Side()).add(outcome, now)
        family = self.families.setdefault(target.version, Side())
        family.pairs += 1
        if outcome.fault is not None:
            self.fail(outcome.fault, str(target))
            return
        family.answered += 1
        if outcome.identity.edge:
            self.edges[outcome.identity.edge] += 1
        if outcome.identity.service:
            self.services[outcome.identity.service] += 1

    def fail(self, fault: Fault, where: str, count: int = 1) -> None:
        """Count a failure, and keep it if its cause has fewer than `examples_kept` examples."""
        self.causes[fault.cause] += count
        kept = self.examples.setdefault(fault.cause, [])
        if len(kept) < self.examples_kept:
            kept.append(f"{where}: {fault.detail or fault.cause}")

    def merge(self, other: Tally) -> None:
        """Add the counts of another process."""
        for version, side in other.families.items():
            self.families.setdefault(version, Side()).merge(side)
        for kind, side in other.kinds.items():
            self.kinds.setdefault(kind, Side()).merge(side)
        self.causes.update(other.causes)
        self.edges.update(other.edges)
        self.services.update(other.services)
        for cause, examples in other.examples.items():
            kept = self.examples.setdefault(cause, [])
            kept.extend(examples[: self.examples_kept - len(kept)])

    @property
    def pairs(self) -> int:
        """The number of pairs tried."""
        return sum(side.pairs for side in self.families.values())

    @property
    def answered(self) -> int:
        """The number of pairs answered by the right service."""
        return sum(side.answered for side in self.families.values())

    @property
    def failed(self) -> int:
        """The number of failures."""
        return sum(self.causes.values())


def latency_ms(latencies: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile (nearest rank) and maximum of `latencies` (seconds) in milliseconds.

    Empty without latencies.
    """
    if not latencies:
        return {}
    ordered = sorted(latencies)
    count = len(ordered)
    ranks = {"p50": -(-count * 50 // 100), "p99": -(-count * 99 // 100), "max": count}
    return {name: round(ordered[rank - 1] * 1000, 3) for name, rank in ranks.items()}
