"""Proofs of an edge or of a whole PoP: runs of the probe, derived from the documents.

Pure: it returns arguments of `unmoor probe`, which playbooks run on a vantage host.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmoor import paths
from unmoor.dns.parse.document import parse
from unmoor.dns.policy.policies import Traits, first_match, matchers
from unmoor.dns.protocol import names
from unmoor.model import DnsDocument, Policy, Prefix, Service
from unmoor.model.documents import Documents

#: Queries per pool: five for each address, as the chi-square test requires, within bounds.
QUERIES_PER_ADDRESS = 5.2
MIN_QUERIES, MAX_QUERIES = 2_000, 25_000
#: Queries of a gate, which checks only that answers are in the pool. A PoP's proof tests uniformity.
GATE_QUERIES = 200
#: Random addresses of each prefix, besides the ends of its range, that a gate connects to on every port.
GATE_SAMPLE = 12


@dataclass(frozen=True)
class Proof:
    """One run of the probe: its title and its arguments."""

    title: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A hostname whose queries of one type are answered by one policy."""

    policy: Policy
    name: str
    qtype: str


def of_edge(documents: Documents, via: Sequence[str], ca: str | None) -> Iterator[Proof]:
    """Yield proofs of one edge: a sample of everything, with packets sent to the next hops `via`."""
    only = [*(word for gateway in via for word in ("--via", gateway)), "--edge", documents.edge.edge]
    hostnames = parse(documents.dns, documents.registry).examples()
    yield from _reach(documents, hostnames, ca, [*only, "--sample", str(GATE_SAMPLE)])
    anycast = {prefix.network_address for prefix in documents.edge.addresses}
    servers = [str(address) for address in documents.dns.listen if address not in anycast]
    chosen = tuple(examples(documents.dns, hostnames))
    for server in servers:
        for example in chosen:
            yield _uniformity(documents.dns, example, [server], GATE_QUERIES)


def of_pop(documents: Documents, ca: str | None) -> Iterator[Proof]:
    """Yield proofs of a PoP from one edge's documents: every IPv4 address, and uniformity of answers."""
    hostnames = parse(documents.dns, documents.registry).examples()
    chosen = tuple(examples(documents.dns, hostnames))
    yield from _reach(documents, hostnames, ca, [])
    anycast = [str(prefix.network_address) for prefix in documents.edge.addresses]
    servers = anycast or [str(address) for address in documents.dns.listen]
    for service in documents.edge.services:
        if _is_dns(documents.dns, service):
            yield from _over_udp(documents.dns, chosen[:1], service.prefixes or documents.edge.prefixes)
    for example in chosen:
        addresses = sum(part.num_addresses for part in _parts(documents.dns, example))
        queries = min(max(int(addresses * QUERIES_PER_ADDRESS), MIN_QUERIES), MAX_QUERIES)
        if example.qtype == "AAAA":
            queries = MIN_QUERIES  # such pools are too large to see each address
        yield _uniformity(documents.dns, example, servers, queries)


def unproved(documents: Documents) -> Iterator[str]:
    """Yield a line for each service that no proof covers, or only in part."""
    for service in documents.edge.services:
        if service.check == "none":
            yield f"Not proved: service {service.label} has check: none."
        elif "udp" in service.protocols and not _is_dns(documents.dns, service):
            yield f"Not proved: service {service.label} over UDP; its check uses TCP."


def _is_dns(document: DnsDocument, service: Service) -> bool:
    """Report whether the DNS server answers on the prefixes of `service`."""
    return (
        document.any_address
        and service.ports == (document.port,)
        and set(service.protocols) == {"udp", "tcp"}
    )


def examples(document: DnsDocument, hostnames: Mapping[Traits, bytes]) -> Iterator[Example]:
    """Yield one hostname for each query type and each policy that draws evenly from one pool.

    It is the first of `hostnames`, which has one for all traits, that the policy answers.
    """
    ordered = matchers(document)
    found: set[tuple[int, str]] = set()
    for subject, name in hostnames.items():
        for qtype in ("A", "AAAA"):
            index = first_match(ordered, subject, document.pop, qtype)
            if index is None or (index, qtype) in found:
                continue
            found.add((index, qtype))
            example = Example(ordered[index].policy, names.to_text(name), qtype)
            if _parts(document, example) and _even(document, example.policy):
                yield example


def _even(document: DnsDocument, policy: Policy) -> bool:
    """Report whether all addresses of the policy's pool are equally likely for every client."""
    answer = policy.answer
    plain = answer.strategy == "random" and not answer.also and answer.records == 1
    return plain and not document.pools[answer.pool].exclude and policy.match.clients is None


def _over_udp(
    document: DnsDocument, chosen: Sequence[Example], prefixes: Sequence[Prefix]
) -> Iterator[Proof]:
    """Query the DNS server by UDP at the first and the last address of each of `prefixes`."""
    for example in chosen:
        for prefix in prefixes:
            ends = dict.fromkeys((str(prefix.network_address), str(prefix.broadcast_address)))
            yield _uniformity(document, example, list(ends), GATE_QUERIES)


def _parts(document: DnsDocument, example: Example) -> tuple[Prefix, ...]:
    pool = document.pools[example.policy.answer.pool]
    return pool.ipv4 if example.qtype == "A" else pool.ipv6


def _uniformity(document: DnsDocument, example: Example, servers: Sequence[str], queries: int) -> Proof:
    arguments = ["uniformity", example.name, "--type", example.qtype, "--queries", str(queries)]
    arguments += ["--port", str(document.port)]
    for server in servers:
        arguments += ["--server", server]
    for part in _parts(document, example):
        arguments += ["--pool", str(part)]
    title = f"DNS {example.qtype} by policy {example.policy.name} from {', '.join(servers)}"
    return Proof(title, tuple(arguments))


def _reach(
    documents: Documents, hostnames: Mapping[Traits, bytes], ca: str | None, more: Sequence[str]
) -> Iterator[Proof]:
    """Yield one run for all services with the same check and the same prefixes."""
    together: dict[tuple[str, tuple[Prefix, ...]], list[Service]] = defaultdict(list)
    for service in documents.edge.services:
        if service.check != "none" and "tcp" in service.protocols:
            way = "http" if service.check == "https" else service.check
            together[way, service.prefixes or documents.edge.prefixes].append(service)
    for (check, prefixes), services in together.items():
        arguments = ["reach", *map(str, prefixes), "--check", check, *more]
        for service in services:
            ports = ",".join(map(str, service.ports))
            arguments += ["--tls" if service.check == "https" else "--tcp", ports]
            arguments += ["--service", f"{service.label}={ports}"]
        if any(service.check == "https" for service in services):
            name = next(map(names.to_text, hostnames.values()), None)
            arguments += ["--sni", name] if name else []
            arguments += ["--ca", ca] if ca else []
        title = f"{', '.join(service.label for service in services)} on {', '.join(map(str, prefixes))}"
        yield Proof(title, tuple(arguments))


def summary(title: str, result: dict[str, Any]) -> list[str]:
    """Summarize the JSON output of one run of the probe."""
    return _reach_summary(title, result) if "pairs" in result else _uniformity_summary(title, result)


#: Advice by the cause of failed connections, and for failed DNS queries.
_ADVICE = {
    "refused": "is the listener registered? On the edge: unmoor sockets status, systemctl status of its unit",
    "timeout": "are the prefixes routed to the edge, and local there? Try unmoor anyip apply --check on it",
    "unreachable": "does the vantage host have a route, and is the edge on its link (unmoor_gate_via)?",
    "wrong edge": "another edge took the connection: see unmoor_gate_vantage and unmoor_gate_via",
}
_DNS_ADVICE = f"does the DNS server run? On the edge: systemctl status {paths.DNS_UNIT}; unmoor dns status"


def failure(title: str, status: int, result: dict[str, Any] | None, errors: str) -> list[str]:
    """Describe why one run of the probe failed, with advice; return no lines if it passed."""
    if status == 0:
        return []
    if result is None:
        return [f"{title}: the probe did not run: {errors.strip()}"]
    lines = [f"{title}:"]
    for cause, count in result["causes"].items():
        examples = [str(example) for example in result["examples"].get(cause, ())][:1]
        lines.append(f"  {count} times {cause}" + "".join(f"; {example}" for example in examples))
        if "pairs" in result and cause in _ADVICE:
            lines.append(f"    check: {_ADVICE[cause]}")
    if "pairs" in result:
        return lines
    if result["lost"] or result["failed"]:
        return [*lines, f"    check: {_DNS_ADVICE}"]
    return lines + _uniformity_summary(title, result)[1:]


def _reach_summary(title: str, result: dict[str, Any]) -> list[str]:
    lines = [f"{title}:"]
    for family, count in result["families"].items():
        seen = "" if family == "ipv4" else ", a random sample and the edges of the range"
        lines.append(
            f"  {count['answered']} of {count['pairs']} (address, port) pairs answered ({family}{seen})"
        )
    rates = ", ".join(f"{kind} {rate:.0f}/s" for kind, rate in result["rate"].items())
    edges = ", ".join(f"{edge} {count}" for edge, count in sorted(result["edges"].items()))
    return [*lines, f"  connections: {rates}" + (f"; answered by {edges}" if edges else "")]


def _uniformity_summary(title: str, result: dict[str, Any]) -> list[str]:
    size = result["pool_size"]
    return [
        f"{title}:",
        f"  {result['queries']} queries sent, {result['lost']} lost, {result['outside']} answers outside",
        f"  {result['distinct']} distinct addresses of {size} seen; chi-square p {result['p']:.3f}",
    ]
