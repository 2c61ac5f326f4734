"""DNS messages (RFC 1035 section 4): reading a query with every check, writing a reply within its limit.

This is the careful path, for everything that the hot path (answering.py) does not recognise; it trusts
nothing in a packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from unmoor.dns.protocol import names
from unmoor.dns.protocol.names import WireName

HEADER_SIZE = 12
#: An OPT record without options.
OPT_SIZE = 11
#: What we say that we can receive, and the most we send by UDP: no fragments (dnsflagday.net/2020).
EDNS_SIZE = 1232
#: The most a client without EDNS(0) takes by UDP (RFC 1035 section 2.3.4).
CLASSIC_SIZE = 512
TCP_SIZE = 65535

# Header flags (RFC 1035 section 4.1.1).
QR, AA, TC, RD = 0x8000, 0x0400, 0x0200, 0x0100
OPCODE_MASK, NOTIFY = 0x7800, 0x2000
#: The cookie option's code (RFC 7873 section 4).
COOKIE = 10
# EDNS(0) flag: DNSSEC records wanted; echoed (RFC 3225 section 3).
DO = 0x8000

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN, NOTAUTH, BADVERS = 0, 1, 2, 3, 4, 5, 6, 9, 16
RCODE_NAMES = {
    NOERROR: "NOERROR",
    FORMERR: "FORMERR",
    SERVFAIL: "SERVFAIL",
    NXDOMAIN: "NXDOMAIN",
    NOTIMP: "NOTIMP",
    REFUSED: "REFUSED",
    YXDOMAIN: "YXDOMAIN",
    NOTAUTH: "NOTAUTH",
    BADVERS: "BADVERS",
}

A, NS, CNAME, SOA, PTR, HINFO, MX, AAAA, DNAME, OPT, DS = 1, 2, 5, 6, 12, 13, 15, 28, 39, 41, 43
TXT, SVCB, HTTPS = 16, 64, 65
TSIG, IXFR, AXFR, ANY = 250, 251, 252, 255
IN, CH, ANY_CLASS = 1, 3, 255


class NoReplyError(Exception):
    """The packet must not be answered: a response, or shorter than a header."""


class QueryError(Exception):
    """The packet gets a bare error reply; `rcode` says which."""

    def __init__(self, rcode: int) -> None:
        super().__init__(RCODE_NAMES[rcode])
        self.rcode = rcode


@dataclass(frozen=True, slots=True)
class Edns:
    """What a query's OPT record says (RFC 6891 section 6.1)."""

    size: int
    version: int
    dnssec_ok: bool
    options: tuple[tuple[int, bytes], ...] = ()

    def option(self, code: int) -> bytes | None:
        """Give the data of an option. Raises QueryError (FORMERR) if it stands there more than once."""
        found = [data for each, data in self.options if each == code]
        if len(found) > 1:
            raise QueryError(FORMERR)
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `question` holds its bytes as sent, to be echoed with the case kept (0x20).

    It is empty in a query that only wants a cookie. `tsig` is the offset of the signature; 0 if unsigned.
    `opcode` is as in the header's flags.
    """

    ident: bytes
    recursion_desired: bool
    question: bytes
    name: bytes
    qtype: int
    qclass: int
    edns: Edns | None
    tsig: int = 0
    opcode: int = 0


@dataclass(frozen=True, slots=True)
class RRset:
    """Records of one owner and type. Each record's data is a row of pieces: names and plain bytes."""

    owner: bytes
    rtype: int
    ttl: int
    rdatas: tuple[tuple[bytes, ...], ...]
    rclass: int = 1


@dataclass(slots=True)
class Reply:
    """What will be said: the code, the three sections, EDNS options.

    `extra` are records of the additional section that may be left out where there is no room for them.
    `counter` is that of the policy that chose; `scope` how many bits of the client's address it went by;
    `source` the name whose records answer: the name asked for, or the wildcard or DNAME above it.
    """

    rcode: int = NOERROR
    authoritative: bool = True
    answer: list[RRset] = field(default_factory=list)
    authority: list[RRset] = field(default_factory=list)
    additional: list[RRset] = field(default_factory=list)
    extra: list[RRset] = field(default_factory=list)
    options: list[tuple[int, bytes]] = field(default_factory=list)
    counter: int | None = None
    scope: int = 0
    source: bytes = b""


def is_notify(packet: bytes) -> bool:
    """Whether the packet says that a zone has changed (RFC 1996)."""
    if len(packet) < HEADER_SIZE:
        return False
    return bool(struct.unpack_from("!H", packet, 2)[0] & (QR | OPCODE_MASK) == NOTIFY)


def parse(packet: bytes) -> Query:
    """Read a query. Raises NoReplyError, or QueryError with FORMERR or NOTIMP."""
    if len(packet) < HEADER_SIZE or packet[2] & 0x80:
        raise NoReplyError
    _, flags, questions, *counts = struct.unpack_from("!6H", packet)
    if flags & OPCODE_MASK:
        raise QueryError(NOTIMP)
    # One question (RFC 9619), or none from who only wants a cookie (RFC 7873 section 5.4).
    if questions > 1 or counts[0]:
        raise QueryError(FORMERR)
    query = _read(packet, flags, questions, *counts)
    if not questions and not (query.edns and query.edns.option(COOKIE)):
        raise QueryError(FORMERR)
    return query


def parse_notify(packet: bytes) -> Query:
    """Read a packet that `is_notify`. Raises QueryError (FORMERR)."""
    _, flags, questions, *counts = struct.unpack_from("!6H", packet)
    if questions != 1:
        raise QueryError(FORMERR)
    return replace(_read(packet, flags, questions, *counts), opcode=NOTIFY, recursion_desired=False)


def _read(
    packet: bytes, flags: int, questions: int, answers: int, authorities: int, additionals: int
) -> Query:
    """Read all of a message; no record is looked at but OPT and TSIG. Raises QueryError (FORMERR)."""
    try:
        name, at, qtype, qclass = names.ROOT, HEADER_SIZE, 0, IN
        if questions:
            name, at = question_name(packet)
            qtype, qclass = struct.unpack_from("!2H", packet, at)
            at += 4
        question_end = at
        for _ in range(answers + authorities):
            at = _skip_record(packet, at)
        edns, tsig = None, 0
        for _ in range(additionals):
            if tsig:  # it is the last record (RFC 8945 section 5.1)
                raise QueryError(FORMERR)
            start, at = at, _skip_record(packet, at)
            rtype = _type(packet, start)
            if rtype == TSIG:
                tsig = start
            elif rtype == OPT:
                if edns or packet[start]:  # one at the most, of the root (RFC 6891 section 6.1.1)
                    raise QueryError(FORMERR)
                edns = read_opt(packet, start, at)
    except (IndexError, struct.error):
        raise QueryError(FORMERR) from None
    # Nothing may follow; nor is OPT a type to ask for (RFC 6891 section 6.1.1).
    if at != len(packet) or qtype == OPT:
        raise QueryError(FORMERR)
    question = packet[HEADER_SIZE:question_end]
    return Query(packet[:2], bool(flags & RD), question, name, qtype, qclass, edns, tsig)


def question_name(packet: bytes) -> tuple[bytes, int]:
    """Read the name after the header. There is nothing before it that it could point to."""
    at = HEADER_SIZE
    while length := packet[at]:
        if length > names.MAX_LABEL:
            raise QueryError(FORMERR)
        at += 1 + length
    name = packet[HEADER_SIZE : at + 1]
    if len(name) > names.MAX_NAME:
        raise QueryError(FORMERR)
    return names.fold(name), at + 1


def _skip_record(packet: bytes, at: int) -> int:
    """Give the offset after the record at `at`; its data is not looked at."""
    while length := packet[at]:
        if length >= 0xC0:
            at += 1
            break
        if length > names.MAX_LABEL:
            raise QueryError(FORMERR)
        at += 1 + length
    (size,) = struct.unpack_from("!H", packet, at + 9)
    end: int = at + 11 + size
    if end > len(packet):
        raise QueryError(FORMERR)
    return end


def _owner_end(packet: bytes, at: int) -> int:
    """Give the offset after the owner of the record at `at`, which `_skip_record` found to be whole."""
    while packet[at] and packet[at] < 0xC0:
        at += 1 + packet[at]
    return at + (2 if packet[at] else 1)


def _type(packet: bytes, at: int) -> int:
    """Give the type of the record at `at`."""
    end = _owner_end(packet, at)
    return int.from_bytes(packet[end : end + 2], "big")


def read_opt(packet: bytes, start: int, end: int) -> Edns:
    """Read the OPT record that stands from `start` to `end`. Raises QueryError."""
    size, _, version, flags = struct.unpack_from("!HBBH", packet, start + 3)
    at = start + 11
    options = []
    while at < end and not version:  # options are well formed, or the message is not (RFC 6891 section 6.1.2)
        code, length = struct.unpack_from("!2H", packet, at)
        options.append((code, packet[at + 4 : at + 4 + length]))
        at += 4 + length
    if at != end and not version:
        raise QueryError(FORMERR)
    return Edns(max(size, CLASSIC_SIZE), version, bool(flags & DO), tuple(options))


def records(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give type, TTL and data of every record of a reply of ours, section by section."""
    questions, *counts = struct.unpack_from("!4H", message, 4)
    at = HEADER_SIZE
    if questions:
        at = question_name(message)[1] + 4
    for _ in range(sum(counts)):
        end = _skip_record(message, at)
        start = _owner_end(message, at)
        rtype, _, ttl, size = struct.unpack_from("!HHIH", message, start)
        yield rtype, ttl, message[end - size : end]
        at = end


def opt_record(dnssec_ok: bool, extended_rcode: int = 0, options: Iterable[tuple[int, bytes]] = ()) -> bytes:
    """Our OPT record (RFC 6891 section 6.1.2); `extended_rcode` is the upper eight of twelve bits."""
    data = b"".join(struct.pack("!2H", code, len(value)) + value for code, value in options)
    return struct.pack("!BHHBBHH", 0, OPT, EDNS_SIZE, extended_rcode, 0, DO * dnssec_ok, len(data)) + data


def bare_error(packet: bytes, rcode: int) -> bytes:
    """Write the reply to a packet of which nothing but the header can be trusted.

    RD is a flag of queries (RFC 1035 section 4.1.1); what it means in other operations is not known.
    """
    asked = struct.unpack_from("!H", packet, 2)[0]
    flags = QR | asked & (OPCODE_MASK if asked & OPCODE_MASK else RD) | rcode
    return struct.pack("!2s5H", packet[:2], flags, 0, 0, 0, 0)


def write(query: Query, reply: Reply, limit: int) -> bytes:
    """Write the reply; longer than `limit` octets, it is truncated to the question, with TC set.

    Extra records are added as long as the next set of them fits (RFC 2181 section 9).
    """
    opt = b""
    if query.edns:
        opt = opt_record(query.edns.dnssec_ok, reply.rcode >> 4, reply.options)
    writer = _Writer(query.question)
    sections = (reply.answer, reply.authority, reply.additional)
    counts = [writer.add(section) for section in sections]
    body = writer.body
    flags = QR | query.opcode | AA * reply.authoritative | RD * query.recursion_desired | reply.rcode & 0xF
    if HEADER_SIZE + len(body) + len(opt) > limit:
        flags |= TC
        body, counts = bytearray(query.question), [0, 0, 0]
    else:
        for rrset in reply.extra:
            end, count = len(body), writer.add([rrset])
            if HEADER_SIZE + len(body) + len(opt) > limit:
                del body[end:]  # names may point there now: nothing is written after it
                break
            counts[2] += count
    counts[2] += bool(opt)
    return struct.pack("!2s5H", query.ident, flags, bool(query.question), *counts) + body + opt


def size(rrset: RRset) -> int:
    """Octets of a message that answers a question of the owner with these records, and nothing else."""
    writer = _Writer(rrset.owner + bytes(4))
    writer.add([rrset])
    return HEADER_SIZE + len(writer.body)


class _Writer:
    """The sections, with names compressed (RFC 1035 section 4.1.4)."""

    def __init__(self, question: bytes) -> None:
        self.body = bytearray(question)
        self._offsets: dict[bytes, int] = {}
        if question:
            self._remember(names.fold(question[:-4]), HEADER_SIZE)

    def add(self, rrsets: Iterable[RRset]) -> int:
        """Append records; returns how many."""
        count = 0
        for rrset in rrsets:
            for rdata in rrset.rdatas:
                self._name(rrset.owner)
                self.body += struct.pack("!HHIH", rrset.rtype, rrset.rclass, rrset.ttl, 0)
                start = len(self.body)
                for piece in rdata:
                    if isinstance(piece, WireName):
                        self._name(piece)
                    else:
                        self.body += piece
                struct.pack_into("!H", self.body, start - 2, len(self.body) - start)
                count += 1
        return count

    def _name(self, wire: bytes) -> None:
        at, end = 0, len(wire) - 1
        while at < end:
            offset = self._offsets.get(names.fold(wire[at:]))
            if offset is not None:
                break
            at += 1 + wire[at]
        start = HEADER_SIZE + len(self.body)
        self._remember(names.fold(wire), start, at)
        self.body += wire[:at]
        self.body += struct.pack("!H", 0xC000 | offset) if at < end and offset is not None else b"\0"

    def _remember(self, wire: bytes, offset: int, stop: int = names.MAX_NAME) -> None:
        """Note where each suffix that begins before `stop` stands, as far as a pointer reaches."""
        at = 0
        while wire[at] and at < stop and offset + at < 0x4000:
            self._offsets[wire[at:]] = offset + at
            at += 1 + wire[at]
