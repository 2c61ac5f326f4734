"""DNS messages (RFC 1035 section 4): parse and validate a query, write a reply within a size limit.

This is the slow path, for every packet that `answer.fast_path` does not recognise. It trusts nothing in a
packet.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from unmoor.dns.protocol import names
from unmoor.dns.protocol.names import WireName

HEADER_SIZE = 12
#: Octets of an OPT record without options.
OPT_SIZE = 11
#: UDP payload size that replies advertise, and the largest UDP reply: avoids fragments (dnsflagday.net/2020).
EDNS_SIZE = 1232
#: Largest UDP message for a client without EDNS(0) (RFC 1035 section 2.3.4).
CLASSIC_SIZE = 512
TCP_SIZE = 65535
#: Records of a query beside the question, and options of its OPT record, that are read; a query with more
#: gets FORMERR. An honest query has OPT and TSIG records, and a handful of options.
MAX_RECORDS = 16
MAX_OPTIONS = 32
#: Octets of a record without its owner and data: type, class, TTL, data length.
_RECORD_SIZE = 10

# Header flags (RFC 1035 section 4.1.1).
QR, AA, TC, RD = 0x8000, 0x0400, 0x0200, 0x0100
OPCODE_MASK, NOTIFY = 0x7800, 0x2000
#: The cookie option's code (RFC 7873 section 4).
COOKIE = 10
# EDNS(0) flag 'DNSSEC OK', copied to the reply (RFC 3225 section 3).
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
    """The packet gets no reply: it is a response, or shorter than a header."""


class QueryError(Exception):
    """The packet gets an error reply that consists of a header with response code `rcode`."""

    def __init__(self, rcode: int) -> None:
        super().__init__(RCODE_NAMES[rcode])
        self.rcode = rcode


@dataclass(frozen=True, slots=True)
class Edns:
    """A query's OPT record (RFC 6891 section 6.1): UDP payload size in octets, version, DO flag, options."""

    size: int
    version: int
    dnssec_ok: bool
    options: tuple[tuple[int, bytes], ...] = ()

    def option(self, code: int) -> bytes | None:
        """Return an option's data, None if it is absent. Raises QueryError (FORMERR) if it is repeated."""
        found = [data for each, data in self.options if each == code]
        if len(found) > 1:
            raise QueryError(FORMERR)
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Query:
    """A query with one question, or none if it only requests a cookie (RFC 7873 section 5.4).

    `question` holds the question section's octets as sent; the reply repeats them with their letter case
    (draft-vixie-dnsext-dns0x20). `name` is lower case. `tsig` is the offset of the TSIG record, 0 if the
    query is unsigned. `opcode` is masked from the header's flags, not shifted.
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
    """Records of one owner, type and class. Each record's data is a tuple of WireName and plain bytes."""

    owner: bytes
    rtype: int
    ttl: int
    rdatas: tuple[tuple[bytes, ...], ...]
    rclass: int = 1


@dataclass(slots=True)
class Reply:
    """A reply before it is encoded: response code, sections and EDNS options.

    `extra` holds records of the additional section that are omitted if they do not fit. `counter` is the
    index of the counter of the policy that answers, `scope` the number of bits of the client's address
    that the answer depends on, and `source` the owner of the records that answer: the query's name, or the
    wildcard or DNAME above it.
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
    """Report whether the packet is a NOTIFY request (RFC 1996)."""
    if len(packet) < HEADER_SIZE:
        return False
    return bool(struct.unpack_from("!H", packet, 2)[0] & (QR | OPCODE_MASK) == NOTIFY)


def parse(packet: bytes) -> Query:
    """Parse a query. Raises NoReplyError, or QueryError with FORMERR or NOTIMP."""
    if len(packet) < HEADER_SIZE or packet[2] & 0x80:
        raise NoReplyError
    _, flags, questions, *counts = struct.unpack_from("!6H", packet)
    if flags & OPCODE_MASK:
        raise QueryError(NOTIMP)
    # One question (RFC 9619), or none if the query only requests a cookie (RFC 7873 section 5.4).
    if questions > 1 or counts[0]:
        raise QueryError(FORMERR)
    query = _read(packet, flags, questions, *counts)
    if not questions and not (query.edns and query.edns.option(COOKIE)):
        raise QueryError(FORMERR)
    return query


def parse_notify(packet: bytes) -> Query:
    """Parse a packet for which `is_notify` is true. Raises QueryError (FORMERR)."""
    _, flags, questions, *counts = struct.unpack_from("!6H", packet)
    if questions != 1:
        raise QueryError(FORMERR)
    return replace(_read(packet, flags, questions, *counts), opcode=NOTIFY, recursion_desired=False)


def _read(
    packet: bytes, flags: int, questions: int, answers: int, authorities: int, additionals: int
) -> Query:
    """Parse a whole message; records other than OPT and TSIG are skipped. Raises QueryError (FORMERR)."""
    if answers + authorities + additionals > MAX_RECORDS:
        raise QueryError(FORMERR)
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
            if tsig:  # TSIG must be the last record (RFC 8945 section 5.1)
                raise QueryError(FORMERR)
            start, at = at, _skip_record(packet, at)
            rtype = _type(packet, start)
            if rtype == TSIG:
                tsig = start
            elif rtype == OPT:
                if edns or packet[start]:  # at most one, owned by the root (RFC 6891 section 6.1.1)
                    raise QueryError(FORMERR)
                edns = read_opt(packet, start, at)
    except (IndexError, struct.error):
        raise QueryError(FORMERR) from None
    # No trailing octets; OPT is not a valid query type (RFC 6891 section 6.1.1).
    if at != len(packet) or qtype == OPT:
        raise QueryError(FORMERR)
    question = packet[HEADER_SIZE:question_end]
    return Query(packet[:2], bool(flags & RD), question, name, qtype, qclass, edns, tsig)


def question_name(packet: bytes) -> tuple[bytes, int]:
    """Parse the name after the header: its wire form in lower case, and the offset after it.

    Compression is refused, since no name precedes it. Raises QueryError (FORMERR), or IndexError if the
    packet is cut short.
    """
    end = _labels_end(packet, HEADER_SIZE)
    if packet[end]:
        raise QueryError(FORMERR)
    return names.fold(packet[HEADER_SIZE : end + 1]), end + 1


def _labels_end(packet: bytes, at: int) -> int:
    """Return the offset after the labels of the name at `at`: that of the root, or of a pointer.

    Raises QueryError (FORMERR) for a label or a name that is too long, or IndexError if it is cut short.
    """
    stop = at + names.MAX_NAME
    while (length := packet[at]) and length <= names.MAX_LABEL:
        at += 1 + length
        if at >= stop:
            raise QueryError(FORMERR)
    if 0 < length < 0xC0:
        raise QueryError(FORMERR)
    return at


def _skip_record(packet: bytes, at: int) -> int:
    """Return the offset after the record at `at`, without parsing its data."""
    at = _labels_end(packet, at)
    at += 2 if packet[at] else 1
    (size,) = struct.unpack_from("!H", packet, at + 8)
    end: int = at + _RECORD_SIZE + size
    if end > len(packet):
        raise QueryError(FORMERR)
    return end


def _owner_end(packet: bytes, at: int) -> int:
    """Return the offset after the owner of the record at `at`, which `_skip_record` has validated."""
    while packet[at] and packet[at] < 0xC0:
        at += 1 + packet[at]
    return at + (2 if packet[at] else 1)


def _type(packet: bytes, at: int) -> int:
    """Return the type of the record at `at`."""
    end = _owner_end(packet, at)
    return int.from_bytes(packet[end : end + 2], "big")


def read_opt(packet: bytes, start: int, end: int) -> Edns:
    """Parse the OPT record between two offsets. Raises QueryError (FORMERR) or struct.error."""
    size, _, version, flags = struct.unpack_from("!HBBH", packet, start + 3)
    at = start + 11
    options: list[tuple[int, bytes]] = []
    while at < end and not version:  # the options of other versions are unknown (RFC 6891 section 6.1.3)
        if len(options) == MAX_OPTIONS:
            raise QueryError(FORMERR)
        code, length = struct.unpack_from("!2H", packet, at)
        options.append((code, packet[at + 4 : at + 4 + length]))
        at += 4 + length
    if at != end and not version:
        raise QueryError(FORMERR)
    return Edns(max(size, CLASSIC_SIZE), version, bool(flags & DO), tuple(options))


def records(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type, TTL, data) of each record of a well-formed message, section by section."""
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
    """Encode a reply's OPT record (RFC 6891 section 6.1.2).

    `extended_rcode` holds the upper eight of the response code's twelve bits.
    """
    data = b"".join(struct.pack("!2H", code, len(value)) + value for code, value in options)
    return struct.pack("!BHHBBHH", 0, OPT, EDNS_SIZE, extended_rcode, 0, DO * dnssec_ok, len(data)) + data


def bare_error(packet: bytes, rcode: int) -> bytes:
    """Encode the error reply to a packet whose header is all that is known to be valid.

    RD is copied for queries only: other opcodes do not define it (RFC 1035 section 4.1.1).
    """
    asked = struct.unpack_from("!H", packet, 2)[0]
    flags = QR | asked & (OPCODE_MASK if asked & OPCODE_MASK else RD) | rcode
    return struct.pack("!2s5H", packet[:2], flags, 0, 0, 0, 0)


def write(query: Query, reply: Reply, limit: int) -> bytes:
    """Encode the reply. If it exceeds `limit` octets, it is cut to the question and has TC set.

    RRsets of `extra` are added in order until one does not fit (RFC 2181 section 9).
    """
    opt = b""
    if query.edns:
        opt = opt_record(query.edns.dnssec_ok, reply.rcode >> 4, reply.options)
    writer = _Writer(query.question, limit - HEADER_SIZE - len(opt))
    body = writer.body
    flags = QR | query.opcode | AA * reply.authoritative | RD * query.recursion_desired | reply.rcode & 0xF
    try:
        counts = [writer.add(section) for section in (reply.answer, reply.authority, reply.additional)]
    except _FullError:
        flags |= TC
        counts = [0, 0, 0]
        del body[len(query.question) :]
    else:
        for rrset in reply.extra:
            end = len(body)
            try:
                counts[2] += writer.add([rrset])
            except _FullError:
                del body[end:]  # later names could point into what is deleted: stop writing here
                break
    counts[2] += bool(opt)
    return struct.pack("!2s5H", query.ident, flags, bool(query.question), *counts) + body + opt


def size(rrset: RRset) -> int:
    """Return the octets of a reply that has these records, a question with their owner, and nothing else."""
    writer = _Writer(rrset.owner + bytes(4), sys.maxsize)
    writer.add([rrset])
    return HEADER_SIZE + len(writer.body)


class _FullError(Exception):
    """The records exceed the size limit."""


class _Writer:
    """Encodes sections with compressed names (RFC 1035 section 4.1.4), up to `room` octets."""

    def __init__(self, question: bytes, room: int) -> None:
        self.body = bytearray(question)
        self._room = room
        self._offsets: dict[bytes, int] = {}
        # The question's name, and the offset of its first suffix that is remembered: as many as are needed.
        self._asked = names.fold(question[:-4])
        self._labels = names.offsets(self._asked) if question else [0]

    def add(self, rrsets: Iterable[RRset]) -> int:
        """Append records; return their number. Raises _FullError if there is no room, as soon as possible."""
        count = 0
        if len(self.body) > self._room:
            raise _FullError
        for rrset in rrsets:
            # Each record takes a pointer as its owner, or a root, and its fields.
            if len(self.body) + len(rrset.rdatas) * (1 + _RECORD_SIZE) > self._room:
                raise _FullError
            for rdata in rrset.rdatas:
                self._name(rrset.owner)
                self.body += struct.pack("!HHIH", rrset.rtype, rrset.rclass, rrset.ttl, 0)
                start = len(self.body)
                for piece in rdata:
                    if isinstance(piece, WireName):
                        self._name(piece)
                    else:
                        self.body += piece
                if len(self.body) > self._room:
                    raise _FullError
                struct.pack_into("!H", self.body, start - 2, len(self.body) - start)
                count += 1
        return count

    def _remember_asked(self, size: int) -> None:
        """Remember the suffixes of the question's name that have at most `size` octets."""
        asked, labels = self._asked, self._labels
        while len(labels) > 1 and len(asked) - labels[-2] <= size:
            labels.pop()
            self._offsets[asked[labels[-1] :]] = HEADER_SIZE + labels[-1]

    def _name(self, wire: bytes) -> None:
        self._remember_asked(len(wire))
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
        """Remember the offset of each suffix that begins before `stop` and that a pointer can reach."""
        at = 0
        while wire[at] and at < stop and offset + at < 0x4000:
            self._offsets[wire[at:]] = offset + at
            at += 1 + wire[at]
