"""What the tests of the DNS half share: a document, queries, and a server on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype

from unmoor.dns.answer.fast_path import answerer
from unmoor.dns.answer.snapshot import Snapshot, build
from unmoor.dns.counters.counters import Counts
from unmoor.dns.protocol.edns import Options
from unmoor.dns.server.control import Reply, ask
from unmoor.model import DnsDocument, validate

ZONE = r"""
$TTL 3600
@         IN SOA   ns1 hostmaster 7 7200 900 1209600 300
@         IN NS    ns1
@         IN NS    ns2.example.net.
@         IN MX    10 mail
ns1       IN A     198.18.0.53
ns1       IN AAAA  2001:db8::53
mail      IN A     198.18.1.1
txt       IN TXT   "hello"
short 20  IN TXT   "a lower TTL than the negative one"
www       IN CNAME alias
alias     IN CNAME host0
out       IN CNAME elsewhere.example.org.
dangling  IN CNAME nothing
loop1     IN CNAME loop2
loop2     IN CNAME loop1
a.b.ent   IN TXT   "below empty non-terminals"
*.wild    IN TXT   "wild"
*.wild    IN MX    10 host.wild
x.wild    IN A     198.18.1.2
_sip.wild IN SRV   1 1 5060 host
sub       IN NS    ns.sub
sub       IN NS    ns3.example.net.
sub       IN DS    1 8 2 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff
ns.sub    IN A     198.18.1.3
ns.sub    IN AAAA  2001:db8::3
old       IN DNAME new
host.new  IN A     198.18.1.4
to-sub    IN CNAME deep.sub
big       IN TXT   "BIG"
odd       IN TYPE65280 \# 3 010203
host0     IN CAA   0 issue "ca.example.net"
""".replace('"BIG"', " ".join('"' + "x" * 250 + '"' for _ in range(6)))


def document(**changes: Any) -> dict[str, Any]:
    """A small document that is correct."""
    return {
        "version": 1,
        "pop": "lab",
        "edge": "edge1",
        "listen": ["127.0.0.1", "::1"],
        "port": 5300,
        "workers": 2,
        "pools": {
            "free": {"ipv4": ["198.18.0.0/20"], "ipv6": ["2001:db8::/44"]},
            "business": {"ipv4": ["198.51.100.0/25", "198.51.100.128/26"]},
        },
        "policies": [
            {
                "name": "free",
                "match": {"tags": {"account_type": "free"}},
                "answer": {"pool": "free", "ttl": 30},
            },
            {"name": "business", "answer": {"pool": "business", "ttl": 60}},
        ],
        "zones": [
            {
                "name": "example.com",
                "records": ZONE,
                "source": "example.com.zone",
                "hostnames": [
                    {"tags": {"account_type": "free"}, "names": [f"host{n}" for n in range(50)]},
                    {"tags": {"account_type": "business"}, "names": ["biz", "deep.in.the.wood"]},
                ],
            }
        ],
        **changes,
    }


def model(data: dict[str, Any]) -> DnsDocument:
    return validate(DnsDocument, data, "dns.json")


def snapshot(data: dict[str, Any] | None = None) -> Snapshot:
    doc = model(data or document())
    return build(doc, "dns.json", {policy.name: at for at, policy in enumerate(doc.policies)})


class Local:
    """The answering half, without sockets."""

    def __init__(self, data: dict[str, Any] | None = None, secret: bytes = b"") -> None:
        """With `secret`, that of cookies in a document without one."""
        self.counts = Counts.private()
        self.snapshot = snapshot(data)
        self.answer = answerer(self.snapshot, self.counts, Options(self.snapshot.document, secret))

    def ask(
        self, name: str, rtype: str = "A", limit: int = 1232, address: str = "127.0.0.1", **options: Any
    ) -> dns.message.Message:
        """Ask as a client would; the reply has gone through dnspython's own checks."""
        query = dns.message.make_query(name, rtype, **options)
        query.flags &= ~dns.flags.RD
        wire = self.answer(query.to_wire(), limit, address)
        assert wire is not None
        reply = dns.message.from_wire(wire)
        assert reply.id == query.id
        return reply


def records(section: list[Any]) -> list[str]:
    """A section as text, one line for each record."""
    return sorted(line for rrset in section for line in rrset.to_text().splitlines())


def free_port() -> int:
    """A port that is free for UDP and TCP on 127.0.0.1 and ::1."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET6, kind) as other:
                        other.bind(("::1", port))
            except OSError:
                continue
            return port


class Running:
    """A server in a process of its own."""

    def __init__(self, directory: Path, data: dict[str, Any], program: str = "") -> None:
        """With `program`, the path of a release's `unmoor`, that one serves."""
        command = [program] if program else [sys.executable, "-c", "from unmoor.commands import main; main()"]
        self.data = data
        self.port: int = data["port"]
        self.config = directory / "dns.json"
        self.control = directory / "control.sock"
        self.state = directory
        self.log = directory / "log"
        self.write(data)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(*command, "dns", "serve"),
                    *("--config", str(self.config), "--control", str(self.control)),
                    *("--state", str(self.state)),
                ],
                stderr=log,
            )

    def write(self, data: dict[str, Any]) -> None:
        self.data = data
        fresh = self.config.with_suffix(".new")
        fresh.write_text(json.dumps(data))
        fresh.rename(self.config)

    def wait(self) -> Running:
        """Until it serves."""
        deadline = time.monotonic() + 60
        while "serving" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self

    def until(self, said: str) -> str:
        """Wait until the log says it; gives the log."""
        deadline = time.monotonic() + 60
        while said not in (log := self.log.read_text()):
            assert time.monotonic() < deadline, log
            time.sleep(0.02)
        return log

    def reload(self) -> Reply:
        return ask(self.control, "reload")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.control, "status").data
        return found

    def workers(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    def stop(self) -> int:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def running(directory: Path, **changes: Any) -> Iterator[Running]:
    """A server that serves the small document on a free port, and is gone afterwards."""
    server = Running(directory, document(**{"port": free_port(), **changes}))
    try:
        yield server.wait()
    finally:
        server.stop()
