"""Policies as ordinary zone files, for any authoritative server: each name with some addresses of its pool.

The addresses of a name follow from the seed, the policy and the name alone, so that a name that comes or
goes changes no other.
"""

from __future__ import annotations

import os
import re
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import dns.rdata
import dns.rdataclass
import dns.rdatatype

from unmoor.dns import https, names, wire, zones
from unmoor.dns.clients import Subnet
from unmoor.dns.pools import Mix
from unmoor.dns.selection import Random, Selector, Sticky, sticky_key
from unmoor.dns.snapshot import Plan, Snapshot, Target
from unmoor.dns.wire import RRset
from unmoor.dns.zones import Zone
from unmoor.errors import UnmoorError

_NOBODY = Subnet(4, 0, 0)
_FAMILIES = {wire.A: ("A", socket.AF_INET), wire.AAAA: ("AAAA", socket.AF_INET6)}
_HINTS = ((wire.A, "ipv4hint"), (wire.AAAA, "ipv6hint"))
#: What separates the static records from those of policies; the check reads both in their own way.
_SEPARATOR = "; answers of policies\n"
_LINE = re.compile(r"(\S*)\t(\d+)\tIN\t(A|AAAA|HTTPS|SVCB)\t(.+)\n")

#: Writes the records of one name: its owner field, and its name in wire form. Returns the lines.
Writer = Callable[[str, bytes], list[str]]


@dataclass(frozen=True, slots=True)
class Exported:
    """One zone file: how many names and records policies gave it, and its size in octets."""

    zone: str
    path: Path
    names: int
    records: int
    size: int


class Export:
    """Writes the zones of `snapshot`, with at most `addresses` of a family for each name.

    `warnings` says what a zone file cannot.
    """

    def __init__(self, snapshot: Snapshot, addresses: int, seed: int, serial: int | None = None) -> None:
        self._snapshot = snapshot
        self._addresses = addresses
        self._seed = seed
        self._serial = serial
        self._writers: dict[int, Writer] = {}
        self.warnings: dict[str, None] = {}

    def write(self, directory: Path) -> Iterator[Exported]:
        """Write one file for each zone, each whole or not at all, and read it again.

        Raises UnmoorError if a file cannot be written, or is not what was to be written.
        """
        for pool_name, pool in self._snapshot.document.pools.items():
            if pool.ptr:
                self._warn(f"pool {pool_name}: the names of its addresses (ptr) are not exported")
        by_zone: dict[bytes, list[bytes]] = defaultdict(list)
        for name in self._snapshot.served():
            zone = self._snapshot.zone_of(name)
            if zone:
                by_zone[zone.apex].append(name)
        taken: set[Path] = set()
        for apex, zone in sorted(self._snapshot.zones.items()):
            if zone.missing:
                self._warn(f"zone {names.to_text(apex)}: left out, there is no copy of its primary's records")
                continue
            path = directory / f"{re.sub('[/ ]', '_', names.to_text(apex)).strip('.') or 'root'}.zone"
            if path in taken:
                raise UnmoorError(f"{path} would hold two zones; rename one of them")
            taken.add(path)
            try:
                yield self._write_zone(zone, by_zone[apex], path)
            except OSError as error:
                raise UnmoorError(f"{path}: cannot be written: {error.strerror}") from None

    def _write_zone(self, zone: Zone, hostnames: list[bytes], path: Path) -> Exported:
        fresh = path.with_name(f".{path.name}.part")
        count = 0
        with fresh.open("w", encoding="ascii") as file:
            apex = names.to_text(zone.apex).rstrip(".") + "."
            file.write(f"; PoP {self._snapshot.document.pop}, seed {self._seed}, ")
            file.write(f"at most {self._addresses} addresses of a family for each name\n$ORIGIN {apex}\n")
            file.writelines(_static(zone, self._serial))
            file.write(_SEPARATOR)
            for name in hostnames:
                owner = _relative(name, zone.apex)
                target = self._snapshot.target_of(name)
                lines = self._writer(target)(owner, name) if target else []
                file.writelines(lines)
                count += len(lines)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        with fresh.open(encoding="ascii") as file:
            _check(file, zone, len(hostnames), count, path)
        fresh.replace(path)
        return Exported(names.to_text(zone.apex), path, len(hostnames), count, size)

    def _warn(self, text: str) -> None:
        self.warnings.setdefault(text)

    def _writer(self, target: Target) -> Writer:
        """What writes the names of a target; made once for all that share it."""
        if id(target) not in self._writers:
            self._writers[id(target)] = self._make_writer(target)
        return self._writers[id(target)]

    def _make_writer(self, target: Target) -> Writer:
        plans = {rtype: plan for rtype in _FAMILIES if (plan := self._plan(target, rtype))}
        selectors = {rtype: self._selector(plan) for rtype, plan in plans.items()}
        services = list(_services(plans))

        def write(owner: str, name: bytes) -> list[str]:
            lines, texts = [], {}
            for rtype, selector in selectors.items():
                kind, family = _FAMILIES[rtype]
                texts[rtype] = [socket.inet_ntop(family, each) for each in selector.addresses(name, _NOBODY)]
                head = f"\t{plans[rtype].ttl}\tIN\t{kind}\t"
                lines += [f"{owner}{head}{text}\n" for text in texts[rtype]]
            for ttl, kind, fixed, with_hints in services:
                hints = [f'{key}="{",".join(texts[rtype])}"' for rtype, key in _HINTS if texts.get(rtype)]
                lines.append(
                    f"{owner}\t{ttl}\tIN\t{kind}\t{' '.join([fixed, *(hints if with_hints else ())])}\n"
                )
            return lines

        return write

    def _plan(self, target: Target, rtype: int) -> Plan | None:
        """How clients that no policy names are answered."""
        for candidate in target.candidates.get(rtype, ()):
            if candidate.matcher.clients is None:
                return candidate.plan
            name = candidate.matcher.policy.name
            self._warn(f"policy {name}: is for some clients only, and left out: all get what the others get")
        return None

    def _selector(self, plan: Plan) -> Selector:
        """What chooses a name's addresses: as many as its pools have, up to those wanted."""
        selector, key = plan.selector, sticky_key(str(self._seed), plan.policy)
        if isinstance(selector, Random):
            mix = selector.drawer if isinstance(selector.drawer, Mix) else Mix([(selector.drawer, 1)])
            return Sticky(mix, self._addresses, key, by_client=False)
        if isinstance(selector, Sticky) and selector.by_client:
            self._warn(f"policy {plan.policy}: is sticky by client; the addresses are drawn for all clients")
            return Sticky(selector.mix, self._addresses, key, by_client=False)
        return selector


def _services(plans: dict[int, Plan]) -> Iterator[tuple[int, str, str, bool]]:
    """What HTTPS and SVCB queries get: TTL, type, the data but for hints, and whether these follow."""
    for rtype in https.TYPES:
        offering = next((plan for plan in plans.values() if rtype in plan.services), None)
        if offering:
            binding = offering.services[rtype]
            ttl = min(plan.ttl for plan in plans.values())
            kind = dns.rdatatype.RdataType.make(rtype)
            yield ttl, kind.name, _rdata_text(kind, https.rdata(binding, {})), binding.hints


def _rdata_text(kind: dns.rdatatype.RdataType, data: bytes) -> str:
    return dns.rdata.from_wire(dns.rdataclass.IN, kind, data, 0, len(data)).to_text()


def _relative(name: bytes, apex: bytes) -> str:
    """A name as an owner below $ORIGIN."""
    return names.to_text(name[: len(name) - len(apex)] + names.ROOT) if name != apex else "@"


def _static(zone: Zone, serial: int | None) -> Iterator[str]:
    """The zone's own records, SOA first."""
    soa = zone.soa
    if serial is not None:
        primary, mailbox, numbers = soa.rdatas[0]
        soa = RRset(
            soa.owner, soa.rtype, soa.ttl, ((primary, mailbox, serial.to_bytes(4, "big") + numbers[4:]),)
        )
    others = (each for node in zone.nodes.values() for each in node.values() if each.rtype != wire.SOA)
    for rrset in (soa, *others):
        kind = dns.rdatatype.RdataType.make(rrset.rtype)
        owner = _relative(names.fold(rrset.owner), zone.apex)
        for rdata in rrset.rdatas:
            text = _rdata_text(kind, b"".join(rdata))
            yield f"{owner}\t{rrset.ttl}\tIN\t{dns.rdatatype.to_text(kind)}\t{text}\n"


def _check(file: TextIO, zone: Zone, hostnames: int, records: int, path: Path) -> None:
    """Read a file again: the static records by dnspython, the others line by line. Raises UnmoorError."""
    static = []
    for line in file:
        if line == _SEPARATOR:
            break
        static.append(line)
    try:
        again = zones.read("".join(static), zone.apex)
        owners, count = _read_lines(file, zone.apex)
    except (zones.ZoneFileError, ValueError, OSError) as error:
        raise UnmoorError(f"{path}: was not written as it should be: {error}") from None
    if (again.records, count) != (zone.records, records) or owners > hostnames:
        raise UnmoorError(f"{path}: was not written as it should be: it lacks records")


def _read_lines(lines: Iterable[str], apex: bytes) -> tuple[int, int]:
    """Count the owners and records in lines of policies. Raises ValueError for what is none."""
    owners, count, before = 0, 0, None
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{line!r} is no record")
        owner, _, kind, data = found.groups()
        if owner != before:
            names.from_text(owner, apex)
            owners, before = owners + 1, owner
        if kind in ("A", "AAAA"):
            socket.inet_pton(socket.AF_INET if kind == "A" else socket.AF_INET6, data)
        count += 1
    return owners, count
