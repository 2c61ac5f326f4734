"""The result of `probe reach`, as text and as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unmoor.probe.results.tally import SYN_RETRY, Tally, latency_ms


@dataclass(frozen=True, slots=True)
class Reached:
    """A finished run: counts, the number of `pairs` planned, and whether a signal ended it early."""

    tally: Tally
    pairs: int
    seed: str
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Report whether every pair was tried and answered."""
        return self.tally.answered == self.pairs and not self.tally.failed


def as_json(reached: Reached) -> dict[str, object]:
    """Return all counts; latencies in milliseconds, rates in connections per second."""
    tally = reached.tally
    return {
        "pairs": reached.pairs,
        "tried": tally.pairs,
        "answered": tally.answered,
        "failed": tally.failed,
        "interrupted": reached.interrupted,
        "families": {
            f"ipv{version}": {"pairs": side.pairs, "answered": side.answered}
            for version, side in sorted(tally.families.items())
        },
        "causes": dict(tally.causes.most_common()),
        "examples": tally.examples,
        "edges": dict(sorted(tally.edges.items())),
        "services": dict(sorted(tally.services.items())),
        "latency_ms": {kind: latency_ms(side.latencies) for kind, side in sorted(tally.kinds.items())},
        "rate": {kind: round(side.rate, 1) for kind, side in sorted(tally.kinds.items())},
        "seed": reached.seed,
    }


def as_text(reached: Reached) -> Iterator[str]:
    """Yield the result as lines of text."""
    tally = reached.tally
    yield f"{tally.answered} of {reached.pairs} (address, port) pairs answered"
    for version, side in sorted(tally.families.items()):
        yield f"  IPv{version}: {side.answered} of {side.pairs} (address, port) pairs answered"
    if reached.interrupted:
        yield f"interrupted: {reached.pairs - tally.pairs} pairs were not tried"
    for kind, side in sorted(tally.kinds.items()):
        yield _kind_line(kind, side.rate, latency_ms(side.latencies))
    slow = sum(1 for side in tally.kinds.values() for seconds in side.latencies if seconds >= SYN_RETRY)
    if slow:
        yield f"  {slow} took {SYN_RETRY:g} s or more: a lost SYN is sent again after {SYN_RETRY:g} s"
    if tally.services:
        yield f"services: {counts(tally.services)}"
    if tally.edges:
        yield f"edges: {counts(tally.edges)}"
    yield from failures(tally)
    yield f"seed: {reached.seed}"


def _kind_line(kind: str, rate: float, latency: Mapping[str, float]) -> str:
    times = ", ".join(f"{name} {value:.1f}" for name, value in latency.items())
    return f"{'TLS' if kind == 'tls' else kind}: {rate:.0f} connections/s" + (
        f"; ms: {times}" if times else ""
    )


def counts(counted: Mapping[str, int]) -> str:
    """Format names with their counts, sorted by name."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items()))


def failures(tally: Tally) -> Iterator[str]:
    """Yield each cause with its count, the most frequent first, and its examples."""
    if not tally.failed:
        return
    yield f"{tally.failed} failed:"
    for cause, count in tally.causes.most_common():
        yield f"  {count} {cause}"
        for example in tally.examples[cause]:
            yield f"      {example}"
