"""`probe watch`: connect and query continuously, to detect failures during a change.

It connects to random addresses of the prefixes, queries names, and connects to the addresses of answers, as
clients of the service do.
"""

from __future__ import annotations

import select
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from itertools import cycle
from random import Random
from time import monotonic, time

from unmoor.model import Prefix
from unmoor.probe.clients.dnsclient import DnsClient, Reply
from unmoor.probe.clients.dnswire import Question
from unmoor.probe.clients.engine import Engine, Settings
from unmoor.probe.clients.outcome import Fault, Outcome
from unmoor.probe.clients.targets import Target, address_text
from unmoor.probe.results.report import counts
from unmoor.probe.results.tally import latency_ms

#: Seconds between checks of the time, the stop file and signals.
_INTERVAL = 0.05
#: Maximum number of failures and of networks kept; a watch may run for hours.
KEPT = 10_000
#: Prefix lengths by which answers are counted: few enough networks, and a pool change is visible.
NETWORK_BITS = {4: 24, 6: 48}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure: its time (seconds since 1970), the operation, and the fault."""

    when: float
    what: str
    fault: Fault

    def __str__(self) -> str:
        return f"{_clock(self.when)} {self.what}: {self.fault}"


@dataclass(slots=True)
class Answers:
    """Times of the first and last DNS answer with a network (seconds since 1970), and their number."""

    first: float
    last: float
    count: int = 0


@dataclass(slots=True)
class Watched:
    """Counts of a watch. A connection is counted when it ends."""

    began: float
    ended: float = 0.0
    connections: int = 0
    connected: int = 0
    queries: int = 0
    answered: int = 0
    lost: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    edges: Counter[str] = field(default_factory=Counter)
    networks: dict[str, Answers] = field(default_factory=dict)
    latencies: array[float] = field(default_factory=lambda: array("f"))

    @property
    def passed(self) -> bool:
        """Report whether anything was tried and nothing failed."""
        return self.connections + self.queries > 0 and not self.causes

    def fail(self, what: str, fault: Fault) -> None:
        """Count a failure, and keep it with its time."""
        self.causes[fault.cause] += 1
        if len(self.failures) < KEPT:
            self.failures.append(Failure(time(), what, fault))

    def connection(self, outcome: Outcome) -> None:
        """Count a connection that ended."""
        self.connections += 1
        if outcome.fault is not None:
            self.fail(f"connect {outcome.target}", outcome.fault)
            return
        self.connected += 1
        self.latencies.append(outcome.seconds)
        if outcome.identity.edge:
            self.edges[outcome.identity.edge] += 1

    def reply(self, reply: Reply) -> None:
        """Count a reply; a lost datagram is a failure, even if the next one was answered."""
        self.queries += 1
        self.lost += reply.lost
        what = f"ask {reply.question.name} {reply.question.type} @{reply.server}"
        if reply.fault is not None:
            self.fail(what, reply.fault)
            return
        self.answered += 1
        if reply.lost:
            self.fail(what, Fault("datagram lost", f"{reply.lost} before the answer"))
        now = time()
        for address in reply.addresses:
            network = _network(address)
            if network in self.networks or len(self.networks) < KEPT:
                seen = self.networks.setdefault(network, Answers(now, now))
                seen.last, seen.count = now, seen.count + 1


def _network(address: str) -> str:
    bits = NETWORK_BITS[ip_address(address).version]
    return str(ip_network(f"{address}/{bits}", strict=False))


@dataclass(frozen=True, slots=True)
class Load:
    """Targets, questions, and their maximum rates (per second)."""

    prefixes: Sequence[Prefix]
    plain: Sequence[int]
    tls: Sequence[int]
    questions: Sequence[Question]
    rate: float
    query_rate: float
    concurrency: int
    random: Random

    def target(self, address: str) -> Target:
        """Return a random port of `address`."""
        place = self.random.randrange(len(self.plain) + len(self.tls))
        ports = (*self.plain, *self.tls)
        return Target(address, ports[place], place >= len(self.plain))

    def address(self) -> str:
        """Return a random address of a random prefix."""
        prefix = self.random.choice(self.prefixes)
        number = int(prefix.network_address) + self.random.randrange(prefix.num_addresses)
        return address_text(prefix.version, number)

    def inside(self, address: str) -> bool:
        """Report whether `address` is in the prefixes; others are not connected to."""
        found = ip_address(address)
        return any(found in prefix for prefix in self.prefixes)


class _Pace:
    """A limit of `rate` events per second; after a pause it catches up by one interval only."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate
        self._next = monotonic()

    def due(self) -> bool:
        now = monotonic()
        if now < self._next:
            return False
        self._next = max(self._next + self._gap, now - _INTERVAL)
        return True


def run(load: Load, settings: Settings, client: DnsClient | None, ended: Callable[[], bool]) -> Watched:
    """Connect and query until `ended` returns true, then wait for what is in flight."""
    watched = Watched(time())
    engine = Engine(settings, watched.connection)
    try:
        _Watch(load, engine, client, watched).run(ended)
    finally:
        engine.close()
    watched.ended = time()
    return watched


class _Watch:
    def __init__(self, load: Load, engine: Engine, client: DnsClient | None, watched: Watched) -> None:
        self._load = load
        self._engine = engine
        self._client = client
        self._watched = watched
        self._connects = _Pace(load.rate)
        self._asks = _Pace(load.query_rate)
        self._questions = cycle(load.questions)
        self._poll = select.poll()
        self._poll.register(engine.fileno(), select.POLLIN)
        if client is not None:
            self._poll.register(client.fileno(), select.POLLIN)

    def run(self, ended: Callable[[], bool]) -> None:
        check = 0.0
        while True:
            if monotonic() >= check:
                if ended():
                    break
                check = monotonic() + _INTERVAL
            while self._connects.due():
                self._connect(self._load.address())
            while self._client is not None and self._asks.due():
                self._client.ask(next(self._questions))
            self._turn()
        while len(self._engine) or (self._client is not None and len(self._client)):
            self._turn()

    def _connect(self, address: str) -> None:
        if len(self._engine) < self._load.concurrency:
            self._engine.start(self._load.target(address))

    def _turn(self) -> None:
        # Short enough for rates up to some hundred per second.
        self._poll.poll(2)
        self._engine.poll(0)
        for reply in self._client.poll(0) if self._client is not None else ():
            self._watched.reply(reply)
            for address in reply.addresses:
                if self._load.inside(address):
                    self._connect(address)
                else:
                    what = f"ask {reply.question.name} {reply.question.type} @{reply.server}"
                    self._watched.fail(what, Fault("outside of the prefixes", address))


def _clock(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_json(watched: Watched) -> dict[str, object]:
    """Return all counts; times are UTC (RFC 3339), latencies are in milliseconds."""
    return {
        "began": _clock(watched.began),
        "ended": _clock(watched.ended),
        "seconds": round(watched.ended - watched.began, 3),
        "connections": watched.connections,
        "connected": watched.connected,
        "queries": watched.queries,
        "answered": watched.answered,
        "lost": watched.lost,
        "failed": watched.causes.total(),
        "causes": dict(watched.causes.most_common()),
        "failures": [
            {"time": _clock(f.when), "what": f.what, "cause": f.fault.cause, "detail": f.fault.detail}
            for f in watched.failures
        ],
        "edges": dict(sorted(watched.edges.items())),
        "answers": {
            network: {"first": _clock(seen.first), "last": _clock(seen.last), "count": seen.count}
            for network, seen in sorted(watched.networks.items(), key=_by_first)
        },
        "latency_ms": latency_ms(watched.latencies),
    }


def _by_first(item: tuple[str, Answers]) -> float:
    return item[1].first


def as_text(watched: Watched) -> Iterator[str]:
    """Yield the counts as lines of text, failures last."""
    yield f"watched for {watched.ended - watched.began:.1f} s"
    times = ", ".join(f"{name} {value:.1f}" for name, value in latency_ms(watched.latencies).items())
    yield f"{watched.connected} of {watched.connections} connections answered" + (
        f"; ms: {times}" if times else ""
    )
    yield f"{watched.answered} of {watched.queries} queries answered, {watched.lost} datagrams lost"
    if watched.edges:
        yield f"edges: {counts(watched.edges)}"
    for network, seen in sorted(watched.networks.items(), key=_by_first):
        yield f"answered {network}: {seen.count} times, first {_clock(seen.first)}, last {_clock(seen.last)}"
    if watched.causes:
        yield f"{watched.causes.total()} failed:"
        for cause, count in watched.causes.most_common():
            yield f"  {count} {cause}"
            yield from (f"      {failure}" for failure in watched.failures if failure.fault.cause == cause)
