"""A primary for tests: SOA, AXFR, IXFR and TSIG over real sockets; it can misbehave on request."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.zone

Records = list[dns.rrset.RRset]
SECRET = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="  # noqa: S105 - of tests
#: The zone of tests, and the keys of a document for a primary that signs.
NAME = "example.org"
KEYS = {"transfer.key": {"algorithm": "hmac-sha256", "secret": SECRET}}


def zone_text(serial: int, *lines: str, refresh: int = 3600, retry: int = 3600, expire: int = 86400) -> str:
    """A small zone file."""
    head = f"$TTL 300\n@ SOA ns h {serial} {refresh} {retry} {expire} 60\n@ NS ns\nns A 198.18.0.53\n"
    return head + "".join(f"{line}\n" for line in lines)


class Primary:
    """Serves all versions of each zone; the last is the current one."""

    def __init__(self, address: str = "127.0.0.1", key: str = "", secret: str = SECRET) -> None:
        self.address = address
        self.keyring = {}
        if key:
            name = dns.name.from_text(key)
            self.keyring = {name: dns.tsig.Key(name, secret, "hmac-sha256")}
        self.versions: dict[dns.name.Name, list[dns.zone.Zone]] = {}
        self.asked: list[str] = []
        #: Applied to the records of a transfer, and to each message's octets, before they are sent.
        self.tamper: Callable[[Records], Records] = list
        self.mangle: Callable[[bytes], bytes] = bytes
        self.rcode = dns.rcode.NOERROR
        self.ixfr = True
        self.silent = False
        self.records_per_message = 50
        while True:
            self._tcp = socket.create_server((address, 0))
            self.port: int = self._tcp.getsockname()[1]
            self._udp = socket.socket(type=socket.SOCK_DGRAM)
            with suppress(OSError):
                self._udp.bind((address, self.port))
                break
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._serve_udp, self._serve_tcp)
        ]
        for thread in self._threads:
            thread.start()

    def set(self, name: str, text: str) -> None:
        """Set the next version of a zone."""
        origin = dns.name.from_text(name)
        zone = dns.zone.from_text(text, origin, relativize=False, check_origin=False)
        self.versions.setdefault(origin, []).append(zone)

    def entry(self, **more: object) -> dict[str, object]:
        """This primary's entry in a document."""
        return {"address": self.address, "port": self.port, **more}

    def close(self) -> None:
        for sock in (self._tcp, self._udp):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def notify(self, name: str, port: int, to: str = "127.0.0.1", sign: bool = True) -> dns.message.Message:
        """Send NOTIFY to a secondary from this primary's address; returns the reply."""
        message = dns.message.make_query(name, "SOA")
        message.set_opcode(dns.opcode.NOTIFY)
        message.flags = (message.flags & ~dns.flags.RD) | dns.flags.AA
        if self.keyring and sign:
            message.use_tsig(next(iter(self.keyring.values())))
        return dns.query.udp(message, to, 5, port, source=self.address)

    def _serve_udp(self) -> None:
        with suppress(OSError):
            while True:
                packet, client = self._udp.recvfrom(4096)
                for reply in self._answer(packet):
                    self._udp.sendto(reply, client)

    def _serve_tcp(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._tcp.accept()
                threading.Thread(target=self._converse, args=(sock,), daemon=True).start()

    def _converse(self, sock: socket.socket) -> None:
        with sock, suppress(OSError, struct.error):
            size = struct.unpack("!H", sock.recv(2, socket.MSG_WAITALL))[0]
            for reply in self._answer(sock.recv(size, socket.MSG_WAITALL)):
                sock.sendall(struct.pack("!H", len(reply)) + reply)

    def _answer(self, packet: bytes) -> Iterator[bytes]:
        if len(packet) < 12:  # the socket was shut down
            return
        try:
            query = dns.message.from_wire(packet, keyring=self.keyring)
        except dns.exception.DNSException:
            refusal = dns.message.make_response(dns.message.from_wire(packet, keyring=False))
            refusal.set_rcode(dns.rcode.NOTAUTH)
            yield refusal.to_wire()
            return
        question = query.question[0]
        self.asked.append(f"{dns.rdatatype.to_text(question.rdtype)} {question.name.to_text(True)}")
        if self.silent:
            return
        versions = self.versions.get(question.name, [])
        unsigned = bool(self.keyring) and not query.had_tsig
        if self.rcode or unsigned or not versions:
            reply = dns.message.make_response(query)
            reply.set_rcode(self.rcode or dns.rcode.REFUSED)
            yield reply.to_wire()
        elif question.rdtype == dns.rdatatype.SOA:
            reply = dns.message.make_response(query)
            reply.flags |= dns.flags.AA
            reply.answer = [soa(versions[-1])]
            yield reply.to_wire()
        elif question.rdtype == dns.rdatatype.IXFR and not self.ixfr:
            reply = dns.message.make_response(query)
            reply.set_rcode(dns.rcode.NOTIMP)
            yield reply.to_wire()
        else:
            yield from self._transfer(query, versions)

    def _transfer(self, query: dns.message.Message, versions: list[dns.zone.Zone]) -> Iterator[bytes]:
        records = whole(versions[-1])
        if query.question[0].rdtype == dns.rdatatype.IXFR:
            records = differences(versions, query.authority[0][0].serial) or records
        records = self.tamper(records)
        context = None
        for at in range(0, len(records), self.records_per_message):
            reply = dns.message.make_response(query)
            reply.flags |= dns.flags.AA
            reply.answer = records[at : at + self.records_per_message]
            wire = reply.to_wire(multi=True, tsig_ctx=context, max_size=65535)
            context = reply.tsig_ctx
            yield self.mangle(wire)


def soa(zone: dns.zone.Zone) -> dns.rrset.RRset:
    return dns.rrset.from_rdata(zone.origin, 300, zone.get_soa())


def whole(zone: dns.zone.Zone) -> Records:
    """The records of an AXFR (RFC 5936 section 2.2)."""
    others = [each for each in _single(zone) if each.rdtype != dns.rdatatype.SOA]
    return [soa(zone), *others, soa(zone)]


def _single(zone: dns.zone.Zone) -> Records:
    return [dns.rrset.from_rdata(name, ttl, rdata) for name, ttl, rdata in zone.iterate_rdatas()]


def differences(versions: list[dns.zone.Zone], serial: int) -> Records:
    """The records of an IXFR (RFC 1995 section 4); none if the version is unknown."""
    serials = [zone.get_soa().serial for zone in versions]
    if serial not in serials:
        return []
    if serial == serials[-1]:
        return [soa(versions[-1])]
    found = [soa(versions[-1])]
    for old, new in zip(
        versions[serials.index(serial) :], versions[serials.index(serial) + 1 :], strict=False
    ):
        one = {each.to_text(): each for each in _single(old) if each.rdtype != dns.rdatatype.SOA}
        two = {each.to_text(): each for each in _single(new) if each.rdtype != dns.rdatatype.SOA}
        found += [soa(old), *(one[text] for text in one if text not in two)]
        found += [soa(new), *(two[text] for text in two if text not in one)]
    return [*found, soa(versions[-1])]
