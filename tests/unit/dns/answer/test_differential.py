"""The same zone and queries for Knot, NSD and this server; each intended difference is listed here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rdatatype
import dns.zone
import pytest

from support.dns_document import ZONE, document
from support.dns_local import Local
from support.dns_server import free_port
from support.other_servers import OtherServer
from support.peers import KNOT, NSD, OPTIONS

# The others have no policies, so only the zone file's records are compared.
STATIC = document()["zones"][0] | {"hostnames": [{"names": ["registered"]}], "records": ZONE}
OURS = Local(document(zones=[STATIC], policies=[{"name": "all", "answer": {"pool": "free", "ttl": 30}}]))

TYPES = ("A", "AAAA", "NS", "SOA", "MX", "TXT", "CNAME", "DNAME", "DS", "CAA", "SRV", "HTTPS", "TYPE65280")


def names() -> list[str]:
    """Every name of the zone, one and two labels below each, and its siblings."""
    zone = dns.zone.from_text(ZONE, "example.com", relativize=False, check_origin=False)
    own = sorted(name.to_text(omit_final_dot=True) for name in zone)
    below = [f"{label}.{name}" for label, name in product(("new", "a.b", "*", "HOST"), own)]
    between = ["ent.example.com", "b.ent.example.com", "c.ent.example.com", "_tcp.wild.example.com"]
    return [name for name in (*own, *below, *between) if not name.startswith("registered")]


class Peer(OtherServer):
    """A server of another make on a port of loopback."""

    def __init__(self, directory: Path, program: str) -> None:
        self.program = program
        self.port = free_port()
        (directory / "example.com.zone").write_text("$ORIGIN example.com.\n" + ZONE)
        config = directory / f"{program}.conf"
        config.write_text(CONFIGS[program].format(directory=directory, port=self.port))
        super().__init__(directory / f"{program}.log", program, *OPTIONS[program], config)
        self.wait(self._serves)

    def _serves(self) -> bool:
        with suppress(OSError, dns.exception.DNSException):
            return bool(self.ask(dns.message.make_query("example.com", "SOA")).answer)
        return False

    def ask(self, query: dns.message.Message) -> dns.message.Message:
        return dns.query.tcp(query, "127.0.0.1", timeout=5, port=self.port)


CONFIGS = {
    "knotd": KNOT
    + """
zone:
  - domain: example.com
    storage: {directory}
    file: example.com.zone
""",
    "nsd": NSD
    + """
  minimal-responses: yes
  refuse-any: yes
zone:
  name: example.com
  zonefile: example.com.zone
""",
}


@pytest.fixture(scope="module", params=["knotd", "nsd"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    started = Peer(tmp_path_factory.mktemp("peer"), request.param)
    yield started
    started.stop()


def said(message: dns.message.Message) -> dict[str, object]:
    """The relevant parts of a reply, with sorted records and names in lower case."""
    sections = {
        name: sorted(
            f"{rrset.name.canonicalize()} {rrset.ttl} {rrset.rdtype:d} {rdata.to_text().lower()}"
            for rrset in section
            for rdata in rrset
        )
        for name, section in zip(("answer", "authority", "additional"), message.sections[1:], strict=True)
    }
    flags = dns.flags.to_text(message.flags & (dns.flags.AA | dns.flags.TC | dns.flags.QR | dns.flags.RD))
    return {"rcode": message.rcode(), "flags": flags, "edns": message.edns, **sections}


def accepted(query: dns.message.Message, ours: dict[str, object], theirs: dict[str, object]) -> str | None:
    """The reason why a difference is right, if it is."""
    rtype = query.question[0].rdtype
    if ours | {"additional": []} == theirs | {"additional": []} and rtype in (
        dns.rdatatype.NS,
        dns.rdatatype.MX,
        dns.rdatatype.SRV,
    ):
        return "addresses of the targets in the additional section are optional (RFC 2181 leaves them out)"
    if "loop1" in query.question[0].name.to_text() or "loop2" in query.question[0].name.to_text():
        return "where to stop in a CNAME loop is nobody's rule"
    return None


def test_same_answers(peer: Peer) -> None:
    differences = []
    asked = 0
    for name, rtype in product(names(), TYPES):
        query = dns.message.make_query(name, rtype, use_edns=0)
        query.flags = 0
        wire = OURS.answer(query.to_wire(), 65535, "127.0.0.1")
        assert wire is not None
        ours, theirs = said(dns.message.from_wire(wire)), said(peer.ask(query))
        asked += 1
        if ours != theirs and accepted(query, ours, theirs) is None:
            differs = {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}
            differences.append(f"{name} {rtype}: {differs}")
    assert asked > 1000
    assert not differences, f"{len(differences)} of {asked} differ:\n" + "\n".join(differences[:40])


ODD = {
    "update": b"\0\1\x28\0\0\1\0\0\0\0\0\0\7example\3com\0\0\6\0\1",
    "two questions": b"\0\1\0\0\0\2\0\0\0\0\0\0\7example\3com\0\0\1\0\1\7example\3com\0\0\1\0\1",
    "cut off": b"\0\1\0\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1",
    "loop": b"\0\1\0\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
    "version 1": b"\0\1\0\0\0\1\0\0\0\0\0\1\7example\3com\0\0\1\0\1\0\0\x29\4\xd0\0\1\0\0\0\0",
    "response": b"\0\1\x80\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1",
}


#: (peer, case) to its different reply, and the reason why both are valid.
CHOICES: dict[tuple[str, str], tuple[int | None, str]] = {
    ("knotd", "update"): (9, "it takes updates (RFC 2136), and refuses this one as NOTAUTH; we take none"),
    ("knotd", "two questions"): (None, "it keeps silent about malformed packets; RFC 9619 says FORMERR"),
    ("knotd", "cut off"): (None, "it keeps silent about malformed packets"),
    ("knotd", "loop"): (None, "it keeps silent about malformed packets"),
}


@pytest.mark.parametrize("case", ODD)
def test_same_codes_for_odd_packets(peer: Peer, case: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.sendto(ODD[case], ("127.0.0.1", peer.port))
        theirs = None
        with suppress(TimeoutError):
            theirs = sock.recv(4096)
    ours = OURS.answer(ODD[case], 1232, "127.0.0.1")
    their_code = theirs[3] & 0xF if theirs else None
    our_code = ours[3] & 0xF if ours else None
    choice = CHOICES.get((peer.program, case))
    assert their_code == (choice[0] if choice else our_code)
