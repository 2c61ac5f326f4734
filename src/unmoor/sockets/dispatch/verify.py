"""Verification of a new generation before the switch: its program must choose what the document defines.

Each binding is checked at its first and last port and at the ports next to them. There, all addresses are
divided into stretches where any prefix begins or ends, and the first, the middle and the last address of each
stretch are looked up. These include the first, the last and a middle address of each prefix, and the
addresses next to it. `precedence` computes the expected result without the table.

Look-ups run in the kernel as test runs of the program `prove`: it reads questions from a map and chooses by
the same source lines as `dispatch`. Then some packets are looked up by a copy of `dispatch` itself, with the
new table but with its own sockets and counters, since `dispatch` counts.
"""

from __future__ import annotations

import mmap
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from unmoor.bpf import libbpf
from unmoor.bpf.layout import BATCH, COUNTERS_STRUCT, KEY, PROTOCOLS, QUESTION, group
from unmoor.errors import UnmoorError
from unmoor.model import Protocol
from unmoor.sockets.dispatch.lookup import context
from unmoor.sockets.table.precedence import Stretch, stretches
from unmoor.sockets.table.record import Record
from unmoor.sockets.table.rules import Rule

#: Capacity of the map of questions.
ROOM = 1 << 18
_PORTS = 1 << 16
_HALF = (1 << 64) - 1
_WORDS = QUESTION.size // 8
# A test run needs a packet; `prove` ignores it.
_PACKET = context("tcp", IPv4Address("127.0.0.1"), 1)


#: Approximate number of look-ups by `dispatch` itself, spread over all claims.
REHEARSED = 128
_DROP, _PASS = 0, 1


class Claim(NamedTuple):
    """The expected result at some ports, for packets of one protocol and family from one interface."""

    protocol: Protocol
    family: int
    interface: str
    ports: Sequence[int]
    stretches: Sequence[Stretch]


def prove(program: int, batches: int, questions: int, record: Record, proof: Iterable[Claim]) -> int:
    """Check all claims by the program `prove`; returns the number of look-ups.

    `program`, `batches` and `questions` are descriptors of the program and its maps. Raises UnmoorError about
    the first look-up with another result than expected.
    """
    asked = 0
    room = ROOM * QUESTION.size
    with mmap.mmap(questions, room) as memory, mmap.mmap(batches, mmap.PAGESIZE) as batch:
        wanted: dict[str | None, int] = {label: number + 1 for label, number in record.services.items()}
        wanted[None] = 0
        for claim in proof:
            data = _questions(claim, wanted)
            for start in range(0, len(data), room):
                part = data[start : start + room]
                memory[: len(part)] = part
                for port in claim.ports:
                    _ask(program, batch, claim, port, part, record)
                    asked += len(part) // QUESTION.size
    return asked


def _ask(program: int, batch: mmap.mmap, claim: Claim, port: int, questions: bytes, record: Record) -> None:
    count = len(questions) // QUESTION.size
    place = PROTOCOLS.index(claim.protocol) << 16 | port
    ifindex = record.interfaces.get(claim.interface, 0)
    BATCH.pack_into(batch, 0, place, claim.family == 6, ifindex, 0, count, 0, 0, 0)
    asked = 0
    while asked < count:
        with suppress(InterruptedError):  # by a signal; `batch` has the progress
            libbpf.run_test(program, _PACKET, count - asked)
        asked, _, wrong, first, found = BATCH.unpack_from(batch)[3:]
    if wrong:
        raise UnmoorError(_complaint(claim, port, questions, (wrong, first, found), record))


def rehearse(dispatch: int, counters: int, record: Record, proof: Iterable[Claim]) -> int:
    """Run some look-ups by a copy of `dispatch` without sockets.

    Packets that are bound must be refused and counted for their service, others must pass. Returns the number
    of look-ups. Raises UnmoorError about the first with another result than expected.
    """
    questions = list(_rehearsal(proof))
    for claim, port, number, taker in questions:
        address = IPv4Address(number) if claim.family == 4 else IPv6Address(number)
        at = None if taker is None else group(record.services[taker], claim.protocol, claim.family)
        before = 0 if at is None else _lookups(counters, at)
        verdict = libbpf.run_test(dispatch, context(claim.protocol, address, port)).verdict
        counted = 0 if at is None else _lookups(counters, at) - before
        if (verdict, counted) != ((_PASS, 0) if at is None else (_DROP, 1)):
            raise UnmoorError(
                f"the new program is wrong, nothing was switched: {claim.protocol} {address} port {port} "
                f"must reach {'no service' if taker is None else repr(taker)}; please report this"
            )
    return len(questions)


def _rehearsal(proof: Iterable[Claim]) -> Iterator[tuple[Claim, int, int, str | None]]:
    """Choose some stretches of each claim and a port; yields claim, port, address and expected service."""
    # The packet of a test run has no interface.
    asked = [(claim, port) for claim in proof if not claim.interface for port in claim.ports]
    asked = asked[:: 1 + len(asked) // REHEARSED]
    for number, (claim, port) in enumerate(asked):
        share = max(1, REHEARSED // len(asked))
        step = 1 + len(claim.stretches) // share
        for first, last, taker in claim.stretches[number % step :: step]:
            yield claim, port, (first + last) // 2, taker


def _lookups(counters: int, number: int) -> int:
    value = libbpf.lookup(counters, KEY.pack(number), COUNTERS_STRUCT.size * libbpf.possible_cpus()) or b""
    return sum(each[0] for each in COUNTERS_STRUCT.iter_unpack(value))


def _complaint(
    claim: Claim, port: int, questions: bytes, mistake: tuple[int, int, int], record: Record
) -> str:
    wrong, first, found = mistake
    high, low, expected = QUESTION.unpack_from(questions, first * QUESTION.size)
    address = IPv4Address(high >> 32) if claim.family == 4 else IPv6Address(high << 64 | low)
    names: dict[int, str] = {0: "no service"} | {
        number + 1: repr(label) for label, number in record.services.items()
    }
    at = f" from {claim.interface}" if claim.interface else ""
    return (
        f"the new table is wrong, nothing was switched: {claim.protocol} {address} port {port}{at} "
        f"must reach {names[expected]}, not {names.get(found, found)} ({wrong} wrong of "
        f"{len(questions) // QUESTION.size}); please report this"
    )


def claims(rules: Sequence[Rule]) -> Iterator[Claim]:
    """Compute the claims for these rules; ports with the same bindings share one."""
    by_kind: dict[tuple[Protocol, int], list[Rule]] = defaultdict(list)
    for rule in rules:
        by_kind[rule.protocol, rule.family].append(rule)
    for (protocol, family), found in by_kind.items():
        same: dict[tuple[str, tuple[_Role, ...]], list[int]] = defaultdict(list)
        near: dict[tuple[str, tuple[_Role, ...]], list[Rule]] = {}
        for port, rules_near in _neighbourhoods(found):
            for interface in {"", *(rule.interface for rule in rules_near)}:
                name = interface, tuple(sorted(_role(rule, port) for rule in rules_near))
                same[name].append(port)
                near.setdefault(name, rules_near)  # of the first of the ports
        for name, ports in same.items():
            cut = stretches(near[name], family, ports[0], name[0])
            yield Claim(protocol, family, name[0], ports, cut)


_Role = tuple[bool, int, int, str, str]


def _role(rule: Rule, port: int) -> _Role:
    """Return what matters of a rule at a port. Its keys live as long as the rule, so id() is unique."""
    return rule.first <= port <= rule.last, rule.width, id(rule.keys), rule.service, rule.interface


def _neighbourhoods(rules: Sequence[Rule]) -> Iterator[tuple[int, list[Rule]]]:
    """Yield the first and last ports of rules and the ports next to them, each with the rules near it."""
    ports = {
        port
        for rule in rules
        for port in (rule.first - 1, max(rule.first, 1), rule.last, rule.last + 1)
        if 0 < port < _PORTS
    }
    waiting = sorted(rules, key=lambda rule: rule.first, reverse=True)
    touching: list[Rule] = []
    for port in sorted(ports):
        while waiting and waiting[-1].first - 1 <= port:
            touching.append(waiting.pop())
        touching = [rule for rule in touching if rule.last + 1 >= port]
        yield port, touching


def _questions(claim: Claim, wanted: Mapping[str | None, int]) -> bytes:
    """Encode `struct question` for the first, the middle and the last address of each stretch."""
    firsts, _, takers = zip(*claim.stretches, strict=True)
    longer = [
        each for each in claim.stretches if each[0] < each[1]
    ]  # a single address is first, middle and last
    middles = [(first + last) // 2 for first, last, _ in longer]
    addresses = [*firsts, *middles, *(last for _, last, _ in longer)]
    expected = [wanted[taker] for taker in takers]
    expected += [wanted[taker] for _, _, taker in longer] * 2
    questions = array("Q", bytes(QUESTION.size * len(addresses)))
    if claim.family == 4:
        halves = array("I", questions.tobytes())
        halves[1 :: 2 * _WORDS] = array(
            "I", addresses
        )  # the upper half of `high`, on a little-endian machine
        halves[4 :: 2 * _WORDS] = array("I", expected)
        return halves.tobytes()
    questions[0::_WORDS] = array("Q", [address >> 64 for address in addresses])
    questions[1::_WORDS] = array("Q", [address & _HALF for address in addresses])
    questions[2::_WORDS] = array("Q", expected)
    return questions.tobytes()
