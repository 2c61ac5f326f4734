"""Explains an answer: the policies in order, why each does not match, and the reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dns.message
import dns.rdatatype

from unmoor.dns.answer import lookup
from unmoor.dns.answer.resolver import Resolver
from unmoor.dns.answer.snapshot import compiled
from unmoor.dns.check.check import check
from unmoor.dns.hostnames.hostnames import Registered
from unmoor.dns.parse.content import NO_COPIES
from unmoor.dns.parse.document import parse
from unmoor.dns.policy.policies import matchers
from unmoor.dns.policy.pools import ranges_in_use
from unmoor.dns.protocol import message, names, svcb
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.dns.protocol.message import Query
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_store import INVALID_DATA, NOT_READY
from unmoor.errors import UnmoorError
from unmoor.model import DnsDocument, Policy, Prefix

_MISSING = {NOT_READY: "there is no copy of it yet", INVALID_DATA: "its copy has expired"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A policy's result: `objection` describes the condition that does not match, None if it answers."""

    policy: str
    objection: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result of `explain`: the name after aliases, the policies up to the one that answers, a reply."""

    name: str
    zone: str | None
    tags: dict[str, str] | None
    verdicts: tuple[Verdict, ...]
    source: str | None
    rcode: str
    reply: tuple[str, ...]
    #: Why the zone is unavailable; None if it is available.
    missing: str | None = None

    def lines(self) -> Iterator[str]:
        """Yield the explanation as text."""
        if self.zone is None:
            yield f"{self.name} is in none of the server's zones"
        elif self.tags is None:
            yield f"{self.name}, in the zone {self.zone}, is not registered: the zone's records answer"
        else:
            tags = ", ".join(f"{key}={value}" for key, value in sorted(self.tags.items())) or "no tags"
            yield f"{self.name}, in the zone {self.zone}, is a registered hostname with {tags}"
        width = max((len(each.policy) for each in self.verdicts), default=0)
        for number, each in enumerate(self.verdicts, 1):
            verdict = f"no: {each.objection}" if each.objection else "answers"
            yield f"  {number:>3}  {each.policy:<{width}}  {verdict}"
        if self.source:
            yield self.source
        if self.missing:
            yield f"the zone is transferred, but {self.missing}"
        yield f"current reply: {self.rcode}"
        yield from (f"  {record}" for record in self.reply)


def explain(
    document: DnsDocument,
    place: str,
    name: str,
    qtype: str,
    pop: str | None,
    client: Prefix | None,
    copies: Mapping[bytes, Zone] = NO_COPIES,
) -> Explanation:
    """Explain the answer to `name` and `qtype` (text) at `pop`, by default the document's, for `client`.

    `copies` are the zones that are transferred. Raises InvalidInputError if the document has problems, and
    UnmoorError if `name` or `qtype` is invalid.
    """
    document = document.model_copy(update={"pop": pop}) if pop else document
    try:
        asked, rtype = names.from_text(name), int(dns.rdatatype.from_text(qtype))
    except (ValueError, dns.rdatatype.UnknownRdatatype) as error:
        raise UnmoorError(f"cannot ask for {name} {qtype}: {error}") from None
    counters = {policy.name: at for at, policy in enumerate(document.policies)}
    parsed = parse(document, copies=copies)
    snapshot = compiled(check(parsed), place, counters)
    resolver = Resolver(snapshot)
    network = Subnet.of(client) if client else Subnet(4, 0, 0)
    question = asked + rtype.to_bytes(2, "big") + b"\0\1"
    query = Query(b"\0\0", False, question, asked, rtype, message.IN, None)
    reply = resolver.answer(query, network)
    aliases = [names.fold(each.rdatas[0][0]) for each in reply.answer if each.rtype == message.CNAME != rtype]
    decided = aliases[-1] if aliases else asked
    zone = snapshot.zone_of(decided)
    missing = zone.missing if zone else 0
    source = decided if missing else lookup.source_of(snapshot, zone, decided) if zone else None
    registered = parsed.registered(source or b"")
    # HTTPS and SVCB queries are answered by the policies of the hinted addresses.
    decisive = "A" if rtype in svcb.TYPES else dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rtype))
    verdicts = tuple(_verdicts(document, registered, decisive, network))
    shown = dns.message.from_wire(message.write(query, reply, message.TCP_SIZE))
    answering = verdicts[-1].policy if verdicts and verdicts[-1].objection is None else None
    return Explanation(
        names.to_text(decided),
        names.to_text(zone.apex) if zone else None,
        dict(registered.traits.tags) if registered else None,
        verdicts,
        _source(document, answering, rtype),
        message.RCODE_NAMES[reply.rcode],
        tuple(str(each) for section in shown.sections[1:] for rrset in section for each in _split(rrset)),
        _MISSING.get(missing),
    )


def _split(rrset: dns.rrset.RRset) -> list[str]:
    return rrset.to_text().splitlines()


def _verdicts(
    document: DnsDocument, registered: Registered | None, qtype: str, client: Subnet
) -> Iterator[Verdict]:
    """Yield the result of each policy up to the one that answers."""
    if registered is None:
        return
    for matcher in matchers(document):
        objection = matcher.objection(registered.traits, document.pop, qtype, client)
        yield Verdict(matcher.policy.name, objection)
        if objection is None:
            return


def _source(document: DnsDocument, name: str | None, rtype: int) -> str | None:
    """Describe the pools and the strategy of the policy that answers."""
    policy = next((each for each in document.policies if each.name == name), None)
    if policy is None:
        return None
    answer = policy.answer
    how = f"strategy {answer.strategy}" + (f" by {answer.sticky_by}" if answer.strategy == "sticky" else "")
    parts = [_pool(document, policy, pool, weight, rtype) for pool, weight in _shares(policy)]
    return f"policy {name}: {'; '.join(parts)}; {how}, up to {answer.records} of them, TTL {answer.ttl} s"


def _shares(policy: Policy) -> list[tuple[str, int]]:
    return [(policy.answer.pool, policy.answer.weight), *policy.answer.also.items()]


def _pool(document: DnsDocument, policy: Policy, name: str, weight: int, rtype: int) -> str:
    pool = document.pools[name]
    version = 6 if rtype == message.AAAA else 4
    size = sum(each.size for each in ranges_in_use(pool, version))
    if not size:
        return f"pool {name}, which has no IPv{version} addresses"
    prefixes = ", ".join(map(str, pool.ipv6 if version == 6 else pool.ipv4))
    total = sum(share for _, share in _shares(policy))
    share = f", {weight} of {total} queries" if policy.answer.also else ""
    return f"pool {name}, {size} addresses of {prefixes}{share}"
