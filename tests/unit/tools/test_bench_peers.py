"""Every server of the comparison starts from its own files and answers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from support.checkout import load
from support.dns_server import free_port
from support.other_servers import OtherServer

SERVERS = {name: (program, prepare) for name, program, prepare in load("bench/dns/peers.py").OTHERS}


@pytest.mark.parametrize("name", SERVERS)
def test_it_needs_only_its_own_directory(name: str, tmp_path: Path) -> None:
    program, prepare = SERVERS[name]
    port = free_port()
    server = OtherServer(tmp_path / "log", program, *prepare(tmp_path, port, 10))
    try:
        server.wait(lambda: answers(port))
    finally:
        server.stop()


def answers(port: int) -> bool:
    query = dns.message.make_query("host3.example.com", "A")
    with suppress(OSError, dns.exception.DNSException):
        reply = dns.query.udp(query, "127.0.0.1", timeout=2, port=port)
        return reply.rcode() == dns.rcode.NOERROR and bool(reply.answer)
    return False
