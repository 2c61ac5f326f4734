"""Answers queries by the algorithm of RFC 1034 section 4.3.2, with policies for registered hostnames."""

from __future__ import annotations

from unmoor import __version__
from unmoor.dns.answer import lookup
from unmoor.dns.answer.lookup import Match
from unmoor.dns.answer.snapshot import Plan, Snapshot, Target
from unmoor.dns.counters.counters import counter_of
from unmoor.dns.policy import reverse
from unmoor.dns.protocol import client_subnet, message, names, svcb
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.dns.protocol.edns import EXTENDED_ERROR, NOT_AUTHORITATIVE
from unmoor.dns.protocol.message import Query, Reply, RRset
from unmoor.dns.protocol.names import WireName
from unmoor.dns.zones.static_zone import Node, Zone
from unmoor.dns.zones.static_zone import addresses as glue
from unmoor.model import DnsDocument

#: CNAME and DNAME steps followed inside the server's zones. A loop ends earlier, at the first repeated name.
MAX_CHAIN = 16
#: Targets of SVCB and HTTPS records whose addresses a reply adds, AliasMode steps included.
MAX_TARGETS = 16
#: TTL of the HINFO answer to ANY, seconds (RFC 8482 section 4.2 leaves it to the operator).
ANY_TTL = 3600

_HINFO = ((b"\7RFC8482\0",),)
_EMPTY_TARGET = Target({}, {})


class Resolver:
    """Answers queries from a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def resolve(self, query: Query, address: str) -> Reply:
        """Answer a query that `message.parse` returned, from a resolver at `address`.

        Raises QueryError (FORMERR) if the client subnet option is malformed.
        """
        option = query.edns.option(client_subnet.OPTION) if query.edns else None
        named = client_subnet.parse(option) if option is not None else None
        # A source prefix of 0 bits asks not to use the client's address (RFC 7871 section 7.1.2).
        client = named if named and named.length else Subnet.of_address(address)
        reply = self.answer(query, client)
        if option is not None and reply.rcode in (message.NOERROR, message.NXDOMAIN):
            scope = reply.scope if client is named else 0
            reply.options.append((client_subnet.OPTION, client_subnet.echo(option, scope)))
        return reply

    def answer(self, query: Query, client: Subnet) -> Reply:
        """Answer a query from a client in the network `client`."""
        if not query.question:  # it only requests a cookie
            return Reply(authoritative=False)
        if query.qclass == message.CH and not (query.edns and query.edns.version):
            return _server_identity(query, self._snapshot.document)
        zone = self._zone(query.name, query.qtype)
        refusal = _refusal(query, zone)
        if refusal is not None:
            return refusal
        if zone and zone.missing:
            why = (EXTENDED_ERROR, zone.missing.to_bytes(2, "big"))
            return Reply(message.SERVFAIL, authoritative=False, options=[why])
        reply = Reply()
        self._follow(zone, query.name, query.qtype, client, reply)
        # An answer of a policy has the owner as its target, and its addresses are added already.
        if zone and query.qtype in svcb.TYPES and reply.answer and reply.counter is None:
            self._add_targets(zone, query.qtype, client, reply)
        return reply

    def _follow(self, zone: Zone | None, name: bytes, qtype: int, client: Subnet, reply: Reply) -> None:
        """Answer for a name of `zone`, and follow its aliases (RFC 1034 section 3.6.2), each name once."""
        seen: tuple[bytes, ...] = ()
        while zone and not zone.missing:
            following = self._step(zone, name, qtype, client, reply)
            if following is None:
                return
            seen = (*seen, name)
            if following in seen or len(seen) == MAX_CHAIN:
                return
            name, zone = following, self._zone(following, qtype)

    def _add_targets(self, zone: Zone, qtype: int, client: Subnet, reply: Reply) -> None:
        """Add the addresses of SVCB or HTTPS targets at or below the zone's apex (RFC 9460 section 4.1).

        For targets of AliasMode records, their records of type `qtype` are added and followed too.
        """
        found = [each for each in reply.answer if each.rtype == qtype]
        seen: set[bytes] = set()
        for rrset in found:  # grows while AliasMode is followed
            for target, is_alias in svcb.targets(rrset):
                if target in seen or len(seen) >= MAX_TARGETS or not names.is_below(target, zone.apex):
                    continue
                seen.add(target)
                if is_alias:
                    added = self._add(target, qtype, client, reply)
                    found += [each for each in added if each.rtype == qtype]
                for rtype in (message.A, message.AAAA):
                    self._add(target, rtype, client, reply)

    def _add(self, name: bytes, rtype: int, client: Subnet, reply: Reply) -> list[RRset]:
        """Add a name's records, aliases followed, without those in the reply already; return the new ones."""
        known = {_key(each) for each in (*reply.answer, *reply.extra)}
        if (name, rtype) in known:
            return []
        found = Reply()
        self._follow(self._zone(name, rtype), name, rtype, client, found)
        new = [each for each in (*found.answer, *found.extra) if _key(each) not in known]
        reply.extra += new
        reply.scope = max(reply.scope, found.scope)
        return new

    def _zone(self, name: bytes, qtype: int) -> Zone | None:
        """Return the zone that answers; for DS it is the parent (RFC 4035 section 3.1.4.1)."""
        if qtype == message.DS and name in self._snapshot.zones:
            return self._snapshot.zone_of(name, above=True) or self._snapshot.zones[name]
        return self._snapshot.zone_of(name)

    def _step(self, zone: Zone, name: bytes, qtype: int, client: Subnet, reply: Reply) -> bytes | None:
        """Answer for one name; return the next name of a chain in lower case, None at its end."""
        match, source = lookup.match(self._snapshot, zone, name, qtype, names.offsets(name))
        if match is Match.REFERRAL:
            _refer(zone, zone.nodes[source], reply)
            return None
        if match is Match.NOTHING and not (
            self._snapshot.ptr_ranges and self._pointer(zone, name, qtype, reply)
        ):
            reply.rcode = message.NXDOMAIN
            reply.authority.append(zone.negative_soa)
            return None
        reply.source = reply.source or source
        if match is Match.NOTHING:
            return None
        if match is Match.DNAME:
            return _redirect(zone.nodes[source][message.DNAME], name, qtype, reply)
        node, target = zone.nodes.get(source, {}), self._snapshot.target_of(source) or _EMPTY_TARGET
        if found := node.get(message.CNAME) or node.get(qtype):
            _append(reply.answer, _owned(found, name))
            follow = found.rtype == message.CNAME and qtype not in (message.CNAME, message.ANY)
            return names.fold(found.rdatas[0][0]) if follow else None
        if not self._choose(target, name, qtype, client, reply):
            if qtype == message.ANY and (node or target.candidates):
                reply.answer.append(RRset(name, message.HINFO, ANY_TTL, _HINFO))
            else:
                reply.authority.append(zone.negative_soa)
        return None

    def _choose(self, target: Target, name: bytes, qtype: int, client: Subnet, reply: Reply) -> bool:
        """Add the addresses that a policy chooses; report whether a policy answers."""
        if qtype in svcb.TYPES:
            return _bind_service(target, name, qtype, client, reply)
        plan = _plan(target, qtype, client, reply)
        if plan is None:
            return False
        addresses = plan.selector.addresses(name, client)
        reply.counter = counter_of(plan.slot, qtype)
        reply.answer.append(RRset(name, qtype, plan.ttl, tuple((each,) for each in addresses)))
        return True

    def _pointer(self, zone: Zone, name: bytes, qtype: int, reply: Reply) -> bool:
        """Answer for a reverse name of a pool's addresses; report whether it is one."""
        network = reverse.parse(name)
        found = reverse.target(network, self._snapshot.ptr_ranges) if network else None
        if found is None:
            return False
        if found and qtype == message.PTR:
            reply.answer.append(RRset(name, message.PTR, zone.soa.ttl, ((WireName(found),),)))
        elif found and qtype == message.ANY:
            reply.answer.append(RRset(name, message.HINFO, ANY_TTL, _HINFO))
        else:  # another type, or a name between the apex and the addresses (RFC 8020)
            reply.authority.append(zone.negative_soa)
        return True


def _refusal(query: Query, zone: Zone | None) -> Reply | None:
    """Return the error reply to a query that no zone answers; None if a zone does."""
    if query.edns and query.edns.version > 0:
        return Reply(message.BADVERS, authoritative=False)
    if query.qclass != message.IN or query.qtype in (message.AXFR, message.IXFR):
        return Reply(message.REFUSED, authoritative=False)
    # The other types from 128 to 255 are instructions, not data (RFC 6895 section 3.1).
    if query.qtype != message.ANY and 128 <= query.qtype <= 255:
        return Reply(message.NOTIMP, authoritative=False)
    if zone is None:
        return Reply(message.REFUSED, authoritative=False, options=[NOT_AUTHORITATIVE])
    return None


def _server_identity(query: Query, document: DnsDocument) -> Reply:
    """Answer CH queries for the server's name (RFC 4892) and version, if the document allows it."""
    known: dict[bytes, str] = {}
    if document.tell_name:
        known |= dict.fromkeys((b"\2id\6server\0", b"\10hostname\4bind\0"), document.edge)
    if document.tell_version:
        known |= dict.fromkeys((b"\7version\6server\0", b"\7version\4bind\0"), f"unmoor {__version__}")
    text = known.get(query.name)
    if text is None or query.qtype not in (message.TXT, message.ANY):
        return Reply(message.REFUSED, authoritative=False)
    data = text.encode()[:255]
    record = RRset(query.name, message.TXT, 0, ((bytes((len(data),)) + data,),), message.CH)
    return Reply(answer=[record])


def _plan(target: Target, qtype: int, client: Subnet, reply: Reply) -> Plan | None:
    plan, bits = target.choose(qtype, client)
    reply.scope = max(reply.scope, bits)
    return plan


def _bind_service(target: Target, name: bytes, qtype: int, client: Subnet, reply: Reply) -> bool:
    """Answer HTTPS or SVCB by the policy that answers A, or else AAAA; report whether one does.

    The addresses are chosen as for A and AAAA, and are added both as hints and to the additional section,
    since the two must agree (RFC 9460 section 7.3).
    """
    plans = {
        key: plan
        for key, rtype in ((svcb.IPV4_HINT, message.A), (svcb.IPV6_HINT, message.AAAA))
        if (plan := _plan(target, rtype, client, reply))
    }
    offering = next((plan for plan in plans.values() if qtype in plan.services), None)
    if offering is None:
        return False
    binding = offering.services[qtype]
    addresses = {key: plan.selector.addresses(name, client) for key, plan in plans.items()}
    hints = addresses if binding.hints else {}
    reply.counter = counter_of(offering.slot, qtype)
    ttl = min(plan.ttl for plan in plans.values())
    reply.answer.append(RRset(name, qtype, ttl, ((svcb.rdata(binding, hints),),)))
    reply.extra += [
        RRset(name, plan.rtype, plan.ttl, tuple((each,) for each in addresses[key]))
        for key, plan in plans.items()
    ]
    return True


def _key(rrset: RRset) -> tuple[bytes, int]:
    return names.fold(rrset.owner), rrset.rtype


def _append(section: list[RRset], rrset: RRset) -> None:
    """Append an RRset unless it is present: a chain may pass the same DNAME twice."""
    if rrset not in section:
        section.append(rrset)


def _owned(rrset: RRset, name: bytes) -> RRset:
    """Return the records with the query's name as their owner, in place of a wildcard."""
    return rrset if names.fold(rrset.owner) == name else RRset(name, rrset.rtype, rrset.ttl, rrset.rdatas)


def _refer(zone: Zone, node: Node, reply: Reply) -> None:
    """Make the reply a referral: the name servers of the cut `node`, and their glue."""
    servers = node[message.NS]
    reply.authoritative = bool(reply.answer)
    reply.authority.append(servers)
    reply.additional += glue(zone, (target for (target,) in servers.rdatas))


def _redirect(dname: RRset, name: bytes, qtype: int, reply: Reply) -> bytes | None:
    """Add a DNAME and the CNAME synthesized from it (RFC 6672 section 3.1); return the next name."""
    _append(reply.answer, dname)
    replacement = dname.rdatas[0][0]
    target = name[: len(name) - len(dname.owner)] + replacement
    if len(target) > names.MAX_NAME:
        reply.rcode = message.YXDOMAIN
        return None
    reply.answer.append(RRset(name, message.CNAME, dname.ttl, ((WireName(target),),)))
    # A target at or below its own owner makes every name longer, without end.
    endless = names.is_below(names.fold(replacement), names.fold(dname.owner))
    return None if endless or qtype in (message.CNAME, message.ANY) else names.fold(target)
