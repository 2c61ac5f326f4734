"""Exports zones as ordinary zone files in which each hostname has some addresses of its policy's pool.

A name's addresses depend on the seed, the policy and the name only, so adding or removing a name changes no
other.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TextIO

import dns.rdata
import dns.rdataclass
import dns.rdatatype

from unmoor.dns.answer.snapshot import Plan, Snapshot, Target
from unmoor.dns.hostnames.registry import INTERIOR
from unmoor.dns.policy.pools import Mix
from unmoor.dns.policy.selection import Random, Selector, Sticky, sticky_key
from unmoor.dns.protocol import message, names, svcb
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.dns.protocol.message import RRset
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_file import ZoneFileError
from unmoor.errors import UnmoorError

_NOBODY = Subnet(4, 0, 0)
_FAMILIES = {message.A: ("A", socket.AF_INET), message.AAAA: ("AAAA", socket.AF_INET6)}
_HINTS = ((message.A, "ipv4hint"), (message.AAAA, "ipv6hint"))
#: Separates static records from those of policies, which `_Part.check` parses differently.
_SEPARATOR = "; answers of policies\n"
#: Zone files open at the same time; a document may have more zones than the limit on open files.
_OPEN_FILES = 200
_LINE = re.compile(r"(\S*)\t(\d+)\tIN\t(A|AAAA|HTTPS|SVCB)\t(.+)\n")

#: Takes a name as an owner field and in wire form; returns the lines of its records.
Writer = Callable[[str, bytes], list[str]]


@dataclass(frozen=True, slots=True)
class Exported:
    """A zone file: its numbers of names and records of policies, and its size in octets."""

    zone: str
    path: Path
    names: int
    records: int
    size: int


class Export:
    """Writes the zones of `snapshot`, with at most `addresses` per family and name.

    `serial` replaces that of each SOA. `warnings` lists what a zone file cannot express.
    """

    def __init__(self, snapshot: Snapshot, addresses: int, seed: int, serial: int | None = None) -> None:
        self._snapshot = snapshot
        self._addresses = addresses
        self._seed = seed
        self._serial = serial
        self._writers: dict[int, Writer] = {}
        self.warnings: dict[str, None] = {}

    def write(self, directory: Path) -> Iterator[Exported]:
        """Write a file for each zone, verify all by parsing them, and rename them into place.

        Files are renamed only after all are verified. Raises UnmoorError if a file cannot be written or
        fails the verification.
        """
        for name, pool in self._snapshot.document.pools.items():
            if pool.ptr:
                self._warn(f"pool {name}: the names of its addresses (ptr) are not exported")
        parts = self._parts(directory)
        opened: dict[bytes, _Part] = {}
        try:
            for part in parts.values():
                part.write([*self._head(part.zone.apex), *_static(part.zone, self._serial), _SEPARATOR])
                part.close()
            for hostname, target in self._hostnames():
                zone = self._snapshot.zone_of(hostname)
                if zone is None or zone.missing:
                    continue
                part = opened.setdefault(zone.apex, parts[zone.apex])
                part.add(self._writer(target)(_relative(hostname, zone.apex), hostname))
                if len(opened) > _OPEN_FILES:
                    opened.pop(next(iter(opened))).close()
            for part in parts.values():
                part.check()
            yield from [part.finish() for part in parts.values()]
        except OSError as error:
            raise UnmoorError(f"{directory}: zone files cannot be written: {error.strerror}") from None
        finally:
            for part in parts.values():
                part.discard()

    def _parts(self, directory: Path) -> dict[bytes, _Part]:
        """Return an unwritten file for each zone. Raises UnmoorError if two would have the same path."""
        parts: dict[bytes, _Part] = {}
        taken: set[Path] = set()
        for apex, zone in sorted(self._snapshot.zones.items()):
            if zone.missing:
                self._warn(f"zone {names.to_text(apex)}: left out, there is no copy of its primary's records")
                continue
            path = directory / f"{re.sub('[/ ]', '_', names.to_text(apex)).strip('.') or 'root'}.zone"
            if path in taken:
                raise UnmoorError(f"{path} would hold two zones; rename one of them")
            taken.add(path)
            parts[apex] = _Part(path, zone)
        return parts

    def _hostnames(self) -> Iterator[tuple[bytes, Target]]:
        """Yield all hostnames of the document and the registry with their targets."""
        own, registry, find = self._snapshot.hostnames, self._snapshot.registry, self._snapshot.registered
        yield from own.items()
        for name, kind in registry.entries() if registry else ():
            target = find(name) if find and kind != INTERIOR and name not in own else None
            if target:
                yield name, target

    def _head(self, apex: bytes) -> Iterator[str]:
        yield f"; PoP {self._snapshot.document.pop}, seed {self._seed}, "
        yield f"at most {self._addresses} addresses of a family for each name\n"
        yield f"$ORIGIN {names.to_text(apex).rstrip('.')}.\n"

    def _warn(self, text: str) -> None:
        self.warnings.setdefault(text)

    def _writer(self, target: Target) -> Writer:
        """Return the writer of a target's names, which all names with this target share."""
        if id(target) not in self._writers:
            self._writers[id(target)] = self._make_writer(target)
        return self._writers[id(target)]

    def _make_writer(self, target: Target) -> Writer:
        plans = {rtype: plan for rtype in _FAMILIES if (plan := self._plan(target, rtype))}
        selectors = {rtype: self._selector(plan, f"{self._seed} {rtype}") for rtype, plan in plans.items()}
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
        """Return the plan for clients in no policy's networks."""
        for candidate in target.candidates.get(rtype, ()):
            if candidate.matcher.clients is None:
                return candidate.plan
            name = candidate.matcher.policy.name
            self._warn(f"policy {name}: is left out, since it is for some clients only")
        return None

    def _selector(self, plan: Plan, seed: str) -> Selector:
        """Return a deterministic selector of a name's addresses."""
        selector, key = plan.selector, sticky_key(seed, plan.policy)
        if isinstance(selector, Random):
            mix = selector.drawer if isinstance(selector.drawer, Mix) else Mix([(selector.drawer, 1)])
            return Sticky(mix, self._addresses, key, by_client=False)
        if isinstance(selector, Sticky) and selector.by_client:
            self._warn(f"policy {plan.policy}: is sticky by client; the addresses are drawn for all clients")
            return Sticky(selector.mix, self._addresses, key, by_client=False)
        return selector


@dataclass(slots=True)
class _Part:
    """A zone file that is being written beside the one that is there."""

    path: Path
    zone: Zone
    names: int = 0
    records: int = 0
    file: TextIO | None = None
    begun: bool = False

    @property
    def fresh(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    def add(self, lines: list[str]) -> None:
        """Write the records of one name."""
        self.write(lines)
        self.names += 1
        self.records += len(lines)

    def write(self, lines: Iterable[str]) -> None:
        if self.file is None:
            self.file = self.fresh.open("a" if self.begun else "w", encoding="ascii")
            self.begun = True
        self.file.writelines(lines)

    def close(self) -> None:
        if self.file:
            file, self.file = self.file, None
            with file:
                file.flush()
                os.fsync(file.fileno())

    def check(self) -> None:
        """Verify the file: static records by dnspython, the others line by line. Raises UnmoorError."""
        self.close()
        try:
            with self.fresh.open(encoding="ascii") as file:
                static = "".join(takewhile(lambda line: line != _SEPARATOR, file))
                again = static_zone.read(static, self.zone.apex)
                owners, count = _read_lines(file, self.zone.apex)
        except (ZoneFileError, ValueError) as error:
            raise UnmoorError(f"{self.path}: verification failed: {error}") from None
        if (again.records, count) != (self.zone.records, self.records) or owners > self.names:
            raise UnmoorError(f"{self.path}: verification failed: records are missing")

    def finish(self) -> Exported:
        """Rename the file into place."""
        size = self.fresh.stat().st_size
        self.fresh.replace(self.path)
        self.begun = False
        return Exported(names.to_text(self.zone.apex), self.path, self.names, self.records, size)

    def discard(self) -> None:
        """Remove the temporary file, if it was not renamed."""
        if self.begun:
            with suppress(OSError):
                self.close()
            self.fresh.unlink(missing_ok=True)


def _services(plans: dict[int, Plan]) -> Iterator[tuple[int, str, str, bool]]:
    """Yield the HTTPS and SVCB records: TTL, type, data without hints, and whether hints are added."""
    for rtype in svcb.TYPES:
        offering = next((plan for plan in plans.values() if rtype in plan.services), None)
        if offering:
            binding = offering.services[rtype]
            ttl = min(plan.ttl for plan in plans.values())
            kind = dns.rdatatype.RdataType.make(rtype)
            yield ttl, kind.name, _rdata_text(kind, svcb.rdata(binding, {})), binding.hints


def _rdata_text(kind: dns.rdatatype.RdataType, data: bytes) -> str:
    return dns.rdata.from_wire(dns.rdataclass.IN, kind, data, 0, len(data)).to_text()


def _relative(name: bytes, apex: bytes) -> str:
    """Convert a name to text relative to $ORIGIN."""
    return names.to_text(name[: len(name) - len(apex)] + names.ROOT) if name != apex else "@"


def _static(zone: Zone, serial: int | None) -> Iterator[str]:
    """Yield the lines of the zone's static records, SOA first."""
    soa = zone.soa
    if serial is not None:
        primary, mailbox, numbers = soa.rdatas[0]
        soa = RRset(
            soa.owner, soa.rtype, soa.ttl, ((primary, mailbox, serial.to_bytes(4, "big") + numbers[4:]),)
        )
    others = (each for node in zone.nodes.values() for each in node.values() if each.rtype != message.SOA)
    for rrset in (soa, *others):
        kind = dns.rdatatype.RdataType.make(rrset.rtype)
        owner = _relative(names.fold(rrset.owner), zone.apex)
        for rdata in rrset.rdatas:
            text = _rdata_text(kind, b"".join(rdata))
            yield f"{owner}\t{rrset.ttl}\tIN\t{dns.rdatatype.to_text(kind)}\t{text}\n"


def _read_lines(lines: Iterable[str], apex: bytes) -> tuple[int, int]:
    """Count the owners and records in lines of policies. Raises ValueError for an invalid line."""
    owners, count, before = 0, 0, None
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{line!r} is not a record")
        owner, _, kind, data = found.groups()
        if owner != before:
            names.from_text(owner, apex)
            owners, before = owners + 1, owner
        if kind in ("A", "AAAA"):
            socket.inet_pton(socket.AF_INET if kind == "A" else socket.AF_INET6, data)
        count += 1
    return owners, count
