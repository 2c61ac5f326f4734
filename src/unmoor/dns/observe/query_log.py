"""The query log: a sample of the queries with their answers, sent to a receiver that never blocks."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

import dns.rdataclass
import dns.rdatatype

from unmoor.dns.answer.fast_path import Answerer
from unmoor.dns.answer.snapshot import Snapshot
from unmoor.dns.counters.counters import MAX_POLICIES, Event, RecordingCounts, Transport
from unmoor.dns.protocol import client_subnet, message, names
from unmoor.dns.protocol.client_subnet import Subnet


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the query log.

    `time` is when the query was read, nanoseconds since 1970; `took` is its latency, nanoseconds; `client` is
    cut to its network unless the document wants whole addresses; `reply` is None if there was none.
    """

    time: int
    took: int
    client: Subnet
    transport: Transport
    packet: bytes
    reply: bytes | None
    policy: str
    generation: int
    whole: bool

    def fields(self) -> dict[str, str]:
        """Return the fields as text; those without a value are left out."""
        found = {
            "time": _iso(self.time),
            "took_us": f"{self.took / 1000:.1f}",
            "client": _shown(self.client),
            "transport": self.transport.name.lower(),
            **_question(self.packet, self.whole),
            **_answer(self.reply),
            "policy": self.policy,
            "generation": str(self.generation),
        }
        return {name: value for name, value in found.items() if value}


class Receiver(Protocol):
    """Receives entries."""

    def send(self, entry: Entry) -> bool:
        """Accept an entry without blocking; False if there is no room for it."""

    def close(self) -> None:
        """Accept no more."""


class QueryLogger:
    """Answers the queries that are sampled for the log, and sends them to `receiver`.

    `answer` must count into `counts`, which records the policy that answered.
    """

    def __init__(
        self,
        answer: Answerer,
        counts: RecordingCounts,
        receiver: Receiver,
        snapshot: Snapshot,
        generation: int,
    ) -> None:
        self.sample = snapshot.document.query_log.sample
        self._answer = answer
        self._counts = counts
        self._receiver = receiver
        self._policies = {slot: name for name, slot in snapshot.slots.items()}
        self._generation = generation
        self._whole = snapshot.document.query_log.whole_addresses

    def answer(self, packet: bytes, limit: int, address: str) -> bytes | None:
        """Answer a query that is to be logged."""
        self._counts.recorder.last = None
        return self._answer(packet, limit, address)

    def policy(self) -> str:
        """Return the policy that answered the last query; empty if none did."""
        last = self._counts.recorder.last
        return "" if last is None else self._policies.get(last % MAX_POLICIES, "")

    def record(self, packet: bytes, reply: bytes | None, address: str, policy: str, took: int) -> None:
        """Send the entry of a query that was answered `took` nanoseconds after it was read."""
        subnet = Subnet.of_address(address)
        entry = Entry(
            time.time_ns() - took,
            took,
            subnet if self._whole else subnet.as_sticky(),
            self._counts.transport,
            packet,
            reply,
            policy,
            self._generation,
            self._whole,
        )
        self._counts.add(Event.LOGGED if self._receiver.send(entry) else Event.UNLOGGED)


def _iso(nanoseconds: int) -> str:
    whole, rest = divmod(nanoseconds, 10**9)
    moment = datetime.fromtimestamp(whole, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _shown(subnet: Subnet) -> str:
    """An address, or a network."""
    address, _, length = str(subnet).partition("/")
    return address if int(length) in (32, 128) else str(subnet)


@lru_cache(maxsize=256)
def _type(number: int) -> str:
    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(number))


@lru_cache(maxsize=256)
def _class(number: int) -> str:
    return dns.rdataclass.to_text(dns.rdataclass.RdataClass.make(number))


def _question(packet: bytes, whole: bool) -> dict[str, str]:
    """Return the fields of the question; none for a malformed packet."""
    try:
        query = message.parse(packet)
        option = query.edns.option(client_subnet.OPTION) if query.edns else None
        subnet = client_subnet.parse(option) if option is not None else None
    except (message.NoReplyError, message.QueryError):
        return {}
    found = {
        "name": names.to_text(query.name),
        "type": _type(query.qtype),
        "class": _class(query.qclass),
    }
    if subnet:
        found["ecs"] = str(subnet if whole else subnet.as_sticky())
    return found if query.question else {}


def _answer(reply: bytes | None) -> dict[str, str]:
    """Return the fields of the reply: the code, the size, and the first address of the answer."""
    if reply is None:
        return {"rcode": "none"}
    (answers,) = struct.unpack_from("!H", reply, 6)
    code, address = reply[3] & 0xF, ""
    for number, (rtype, ttl, data) in enumerate(message.records(reply)):
        if rtype == message.OPT:
            code |= ttl >> 24 << 4  # RFC 6891 section 6.1.3
        elif number < answers and rtype in (message.A, message.AAAA) and not address:
            address = socket.inet_ntop(socket.AF_INET if rtype == message.A else socket.AF_INET6, data)
    rcode = message.RCODE_NAMES.get(code, str(code))
    return {"rcode": rcode, "size": str(len(reply)), "address": address}
