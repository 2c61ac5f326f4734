"""One transfer of a zone: its serial, then the differences (RFC 1995) or the whole (RFC 5936)."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.serial
import dns.transaction
import dns.tsig
import dns.xfr
import dns.zone

from unmoor.dns.protocol.message import RRset
from unmoor.dns.protocol.tsig import shared_key
from unmoor.dns.zones import static_zone, zone_file
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_file import ZoneFileError
from unmoor.model.dns import Primary, TsigKey

#: Seconds: for the reply to one question, for one message of a transfer, for the whole of it.
QUESTION_TIMEOUT = 5.0
MESSAGE_TIMEOUT = 15.0
TRANSFER_TIMEOUT = 600.0
#: Octets of a transfer that are received at once, and how many such pieces may wait to be read.
_CHUNK, _CHUNKS_AHEAD = 65536, 1024


class TransferError(Exception):
    """A query to a primary failed, or its reply cannot be used; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Source:
    """A primary, and the TSIG key shared with it."""

    address: IPv4Address | IPv6Address
    port: int
    key: dns.tsig.Key | None

    def __str__(self) -> str:
        """Address and port as operators write them."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}" if self.port != 53 else str(self.address)


def sources(primaries: Iterable[Primary], keys: dict[str, TsigKey]) -> tuple[Source, ...]:
    """Prepare primaries, whose keys are among `keys`."""
    made = []
    for each in primaries:
        key = None
        if each.tsig_key:
            key = shared_key(each.tsig_key, keys[each.tsig_key])
        made.append(Source(each.address, each.port, key))
    return tuple(made)


def is_newer(serial: int, than: int) -> bool:
    """Compare serial numbers (RFC 1982)."""
    return bool(dns.serial.Serial(serial) > than)


def ask_serial(source: Source, apex: bytes, over_tcp: bool = False) -> int:
    """Ask a primary for its zone's serial. Raises TransferError.

    Catalogs are queried `over_tcp`: some servers reveal them only to clients that may transfer them.
    """
    query = dns.message.make_query(dns.name.from_wire(apex, 0)[0], dns.rdatatype.SOA)
    query.flags &= ~dns.flags.RD
    _sign(query, source)
    try:
        where = (str(source.address), QUESTION_TIMEOUT, source.port)
        if over_tcp:
            reply = dns.query.tcp(query, *where)
        else:
            reply, _ = dns.query.udp_with_fallback(query, *where, ignore_unexpected=True)
    except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
        raise TransferError(_why(error)) from None
    _check_signed(reply, source)
    if reply.rcode() != dns.rcode.NOERROR:
        raise TransferError(f"replies {dns.rcode.to_text(reply.rcode())}")
    if not reply.flags & dns.flags.AA:
        raise TransferError("is not authoritative for the zone (no AA flag)")
    found = reply.get_rrset(dns.message.ANSWER, query.question[0].name, dns.rdataclass.IN, dns.rdatatype.SOA)
    if not found:
        raise TransferError("gives no SOA record")
    serial: int = found[0].serial
    return serial


def fetch(source: Source, apex: bytes, base: Zone | None, limit: int) -> Zone:
    """Transfer a zone: the differences to `base`, or all of it if that fails.

    `limit` is the maximum of its records. Raises TransferError.
    """
    if base is not None:
        try:
            return _fetch(source, apex, base, limit)
        except _UnusableDifferencesError:
            pass
    return _fetch(source, apex, None, limit)


class _UnusableDifferencesError(Exception):
    """The primary has no differences, or they do not apply to the copy."""


class _Incoming(dns.zone.Zone):
    """A zone that refuses more records than `limit`, and records that contradict each other."""

    limit = 0

    def writer(self, replacement: bool = False) -> dns.zone.Transaction:
        transaction = super().writer(replacement)
        left = iter(range(self.limit))

        def check(
            transaction: dns.transaction.Transaction, name: dns.name.Name, rdataset: dns.rdataset.Rdataset
        ) -> None:
            if next(left, None) is None:
                raise ZoneFileError(0, f"has more than {self.limit} records", "raise transfer_limit")
            zone_file.refuse_contradictions(transaction, name, rdataset)

        transaction.check_put_rdataset(check)
        return transaction


#: Errors caused by a primary that has no usable differences.
_MISFITS = (dns.xfr.TransferError, dns.exception.FormError, dns.transaction.DeleteNotExact, KeyError)


def _fetch(source: Source, apex: bytes, base: Zone | None, limit: int) -> Zone:
    origin = dns.name.from_wire(apex, 0)[0]
    zone = _Incoming(origin, relativize=False)
    zone.limit = limit
    if base is not None:
        _fill(zone, base)
    query, serial = dns.xfr.make_query(zone)
    _sign(query, source)
    try:
        _receive(source, query, dns.xfr.Inbound(zone, query.question[0].rdtype, serial))
        found = static_zone.of(apex, _sendable(static_zone.rrsets(zone.nodes.items())))
    except ZoneFileError as error:
        if base is not None:
            raise _UnusableDifferencesError from None
        raise TransferError(error.why) from None
    except dns.xfr.SerialWentBackwards:
        raise TransferError("has an older serial than our copy") from None
    except _MISFITS as error:
        if base is not None:  # RFC 1995 section 4: fall back to a full transfer
            raise _UnusableDifferencesError from None
        raise TransferError(_why(error)) from None
    except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
        raise TransferError(_why(error)) from None
    if found.records > limit:
        raise TransferError(f"has more than {limit} records")
    return found


def _sendable(records: Iterable[RRset]) -> Iterator[RRset]:
    """Yield the records. Raises ZoneFileError for an RRset that no message can hold."""
    for rrset in records:
        if why := static_zone.too_large(rrset):
            raise ZoneFileError(0, why, "spread them over several names")
        yield rrset


def _fill(zone: dns.zone.Zone, base: Zone) -> None:
    with zone.writer(replacement=True) as transaction:
        for node in base.nodes.values():
            for rrset in node.values():
                made = dns.rdataset.Rdataset(
                    dns.rdataclass.IN, dns.rdatatype.RdataType.make(rrset.rtype), ttl=rrset.ttl
                )
                for rdata in rrset.rdatas:
                    data = b"".join(rdata)
                    made.add(dns.rdata.from_wire(made.rdclass, made.rdtype, data, 0, len(data)))
                transaction.replace(dns.name.from_wire(rrset.owner, 0)[0], made)


def _receive(source: Source, query: dns.message.Message, inbound: dns.xfr.Inbound) -> None:
    """Send the query over TCP and process messages until the zone is complete; each one is checked."""
    end = time.monotonic() + TRANSFER_TIMEOUT
    origin = query.question[0].name
    family = socket.AF_INET if source.address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as sock, inbound:
        sock.settimeout(QUESTION_TIMEOUT)
        sock.connect((str(source.address), source.port))
        packet = query.to_wire()
        sock.sendall(struct.pack("!H", len(packet)) + packet)
        with _Ahead(sock) as stream:
            context: Any = None
            done, first = False, True
            while not done:
                until = min(end, time.monotonic() + MESSAGE_TIMEOUT)
                message = dns.message.from_wire(
                    stream.read(int.from_bytes(stream.read(2, until), "big"), until),
                    keyring=query.keyring,
                    request_mac=query.mac,
                    xfr=True,
                    tsig_ctx=context,
                    multi=True,
                    one_rr_per_rrset=query.question[0].rdtype == dns.rdatatype.IXFR,
                )
                if message.id != query.id or not message.flags & dns.flags.QR:
                    raise TransferError("sends what is no reply to what was asked")
                if first and not message.question:
                    raise TransferError("sends a reply without a question")
                for rrset in message.answer:
                    if not rrset.name.is_subdomain(origin):
                        outside = rrset.name.to_text(omit_final_dot=True)
                        raise TransferError(f"sends a record outside the zone, of {outside}")
                done, first, context = inbound.process_message(message), False, message.tsig_ctx


class _Ahead:
    """Reads a connection ahead in a thread, so that slow processing does not block the primary.

    A primary whose sending is blocked for half a second (Knot, by default) closes the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._chunks: queue.Queue[bytes] = queue.Queue(_CHUNKS_AHEAD)
        self._rest = bytearray()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with suppress(OSError):  # wakes the thread if it is receiving
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        chunk = b"?"
        while chunk and not self._over:
            try:
                chunk = self._sock.recv(_CHUNK)
            except OSError:
                chunk = b""
            while not self._over:
                with suppress(queue.Full):
                    self._chunks.put(chunk, timeout=0.1)
                    break

    def read(self, size: int, until: float) -> bytes:
        """Read `size` octets. Raises TimeoutError, or EOFError at the end of the stream."""
        while len(self._rest) < size:
            try:
                chunk = self._chunks.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if not chunk:
                raise EOFError
            self._rest += chunk
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data


def _sign(query: dns.message.Message, source: Source) -> None:
    if source.key:
        query.use_tsig(source.key, algorithm=source.key.algorithm)


def _check_signed(reply: dns.message.Message, source: Source) -> None:
    """Raise TransferError for an unsigned reply of a primary with a key; wrong signatures fail earlier."""
    if source.key and not reply.had_tsig:
        raise TransferError("sends a reply that is not signed with our key")


def _why(error: Exception) -> str:
    """Describe an error for operators; the text follows the name of the primary."""
    if isinstance(error, dns.xfr.TransferError):
        return f"replies {dns.rcode.to_text(error.rcode)} to the transfer"
    if isinstance(error, TimeoutError | dns.exception.Timeout):
        return "does not answer in time"
    if isinstance(error, EOFError):
        return "ends the connection in the middle of the transfer"
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or error}"
    if isinstance(error, dns.tsig.PeerError | dns.tsig.BadSignature | dns.tsig.BadKey | dns.tsig.BadTime):
        return f"and we do not agree on the TSIG key: {_text(error)}"
    return f"sends what cannot be used: {_text(error)}"


def _text(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
