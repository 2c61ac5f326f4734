"""NOTIFY (RFC 1996): a primary says that a zone has changed. Workers hear it, and pass it on."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.TSIG
import dns.rrset
import dns.tsig

from unmoor.dns import names, wire
from unmoor.dns.counters import Counts
from unmoor.dns.transfer import Source

#: NOTIFYs from primaries that one worker reads in a second; more get no reply, and come again.
_RATE = 50


class Notices:
    """Answers NOTIFYs. `sources` are the primaries of each zone; `outbox` leads to who transfers."""

    def __init__(self, sources: Mapping[bytes, Sequence[Source]], outbox: socket.socket | None) -> None:
        self._sources = sources
        self._outbox = outbox
        self._second = 0
        self._heard = 0

    def answer(self, packet: bytes, address: str, counts: Counts) -> bytes | None:
        """Answer a packet that is a NOTIFY. Raises wire.QueryError."""
        apex, question = _question(packet)
        address = address.partition("%")[0]
        source = next((each for each in self._sources.get(apex, ()) if str(each.address) == address), None)
        if source is None:
            counts.add_rcode(wire.REFUSED)
            return _reply(packet, question, wire.REFUSED)
        if not self._has_time():
            return None
        rcode, reply = _verified(packet, question, source)
        counts.add_rcode(rcode)
        if rcode == wire.NOERROR and self._outbox:
            with suppress(OSError):  # full: as many are on their way, and zones are refreshed anyway
                self._outbox.send(address.encode() + b"\n" + apex)
        return reply

    def _has_time(self) -> bool:
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._heard = now, 0
        self._heard += 1
        return self._heard <= _RATE


def _question(packet: bytes) -> tuple[bytes, bytes]:
    """Give the zone's name, and the question as it stands. Raises wire.QueryError."""
    try:
        name, end = wire.question_name(packet)
        rtype, rclass = struct.unpack_from("!2H", packet, end)
    except (IndexError, struct.error):
        raise wire.QueryError(wire.FORMERR) from None
    if packet[4:6] != b"\0\1":
        raise wire.QueryError(wire.FORMERR)
    if (rtype, rclass) != (wire.SOA, wire.IN):
        raise wire.QueryError(wire.NOTIMP)
    return name, packet[wire.HEADER_SIZE : end + 4]


def _reply(packet: bytes, question: bytes, rcode: int, additional: bytes = b"") -> bytes:
    """Write a reply without records: the same opcode, AA, the question (RFC 1996 section 3.7)."""
    flags = wire.QR | wire.NOTIFY | (wire.AA if rcode == wire.NOERROR else 0) | rcode
    counts = struct.pack("!4H", 1, 0, 0, bool(additional))
    return packet[:2] + flags.to_bytes(2, "big") + counts + question + additional


def _verified(packet: bytes, question: bytes, source: Source) -> tuple[int, bytes]:
    """Check the signature where there is a key; gives the code and the reply, signed as the query was."""
    try:
        keyring = {source.key.name: source.key} if source.key else False
        message = dns.message.from_wire(packet, keyring)
    except dns.message.UnknownTSIGKey:
        return wire.NOTAUTH, _reply(packet, question, wire.NOTAUTH, _tsig_error(packet, dns.rcode.BADKEY))
    except dns.tsig.BadTime:
        return wire.NOTAUTH, _reply(packet, question, wire.NOTAUTH, _tsig_error(packet, dns.rcode.BADTIME))
    except (dns.tsig.BadSignature, dns.tsig.BadKey, dns.tsig.BadAlgorithm):
        return wire.NOTAUTH, _reply(packet, question, wire.NOTAUTH, _tsig_error(packet, dns.rcode.BADSIG))
    except (dns.exception.DNSException, ValueError):
        raise wire.QueryError(wire.FORMERR) from None
    if source.key and not message.had_tsig:
        return wire.REFUSED, _reply(packet, question, wire.REFUSED)
    reply = dns.message.make_response(message)
    reply.flags |= dns.flags.AA
    return wire.NOERROR, reply.to_wire()


def _tsig_error(packet: bytes, error: dns.rcode.Rcode) -> bytes:
    """The TSIG record of a reply that cannot be signed (RFC 8945 section 5.3.2): no MAC, and why.

    Raises wire.QueryError for a packet that is malformed behind its signature.
    """
    try:
        message = dns.message.from_wire(packet, keyring=False)
    except (dns.exception.DNSException, ValueError):
        raise wire.QueryError(wire.FORMERR) from None
    if message.tsig is None:
        return b""
    asked = message.tsig[0]
    other = int(time.time()).to_bytes(6, "big") if error == dns.rcode.BADTIME else b""
    said = dns.rdtypes.ANY.TSIG.TSIG(  # type: ignore[no-untyped-call]
        dns.rdataclass.ANY,
        dns.rdatatype.TSIG,
        asked.algorithm,
        asked.time_signed,
        asked.fudge,
        b"",
        message.id,
        error,
        other,
    )
    data = said.to_wire() or b""
    owner = message.tsig.name.to_wire() or names.ROOT
    return owner + struct.pack("!HHIH", dns.rdatatype.TSIG, dns.rdataclass.ANY, 0, len(data)) + data
