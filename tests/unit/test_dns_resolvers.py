"""Real resolvers and clients, as Debian ships them, resolve through the server: cold, warm, UDP and TCP."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest
from dns_support import Running, free_port, running

CONFIG = """
server:
  interface: 127.0.0.1
  port: {port}
  directory: "{directory}"
  pidfile: "{directory}/pid"
  chroot: ""
  username: ""
  use-syslog: no
  do-daemonize: no
  do-not-query-localhost: no
  do-ip6: no
  module-config: "iterator"
  use-caps-for-id: yes
  tcp-upstream: {tcp}
remote-control:
  control-enable: no
stub-zone:
  name: example.com
  stub-addr: 127.0.0.1@{upstream}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("dns"), listen=["127.0.0.1"]) as started:
        yield started


class Resolver:
    """Unbound, which asks our server for example.com."""

    def __init__(self, directory: Path, upstream: int, tcp: bool) -> None:
        self.port = free_port()
        config = directory / "resolver.conf"
        config.write_text(
            CONFIG.format(directory=directory, port=self.port, upstream=upstream, tcp="yes" if tcp else "no")
        )
        self._log = directory / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(["unbound", "-d", "-c", config], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self._serves():
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def _serves(self) -> bool:
        with suppress(OSError, dns.exception.DNSException):
            return self.ask("txt.example.com", "TXT").rcode() == dns.rcode.NOERROR
        return False

    def ask(self, name: str, rtype: str = "A") -> dns.message.Message:
        query = dns.message.make_query(name, rtype)
        return dns.query.udp_with_fallback(query, "127.0.0.1", timeout=5, port=self.port)[0]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(params=["UDP", "TCP"])
def resolver(request: pytest.FixtureRequest, server: Running, tmp_path: Path) -> Iterator[Resolver]:
    if not shutil.which("unbound"):
        pytest.skip("unbound is not installed (apt-get install unbound)")
    started = Resolver(tmp_path, server.port, request.param == "TCP")
    yield started
    started.stop()


def test_a_resolver_resolves(resolver: Resolver) -> None:
    for _ in ("cold", "warm"):
        for name in ("host1.example.com", "www.example.com", "HOST2.example.com"):
            reply = resolver.ask(name)
            assert ip_address(reply.answer[-1][0].address) in ip_network("198.18.0.0/20")
        assert ip_address(resolver.ask("host1.example.com", "AAAA").answer[0][0].address) in ip_network(
            "2001:db8::/44"
        )
        assert resolver.ask("nothing.example.com").rcode() == dns.rcode.NXDOMAIN
        assert not resolver.ask("host1.example.com", "HTTPS").answer
        assert resolver.ask("any.wild.example.com", "TXT").answer
        assert resolver.ask("host.old.example.com").answer
        # Truncated over UDP: the resolver comes back over TCP.
        assert len(resolver.ask("big.example.com", "TXT").answer) == 1


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("dig", ["+noall", "+answer", "@127.0.0.1", "-p", "{port}", "host1.example.com"]),
        ("dig", ["+tcp", "+noall", "+answer", "@127.0.0.1", "-p", "{port}", "host1.example.com"]),
        ("dig", ["+norec", "+subnet=198.51.100.0/24", "@127.0.0.1", "-p", "{port}", "host1.example.com"]),
        ("kdig", ["+norec", "+keepopen", "+cookie", "@127.0.0.1", "-p", "{port}", "host1.example.com"]),
        ("drill", ["-o", "rd", "-p", "{port}", "host1.example.com", "@127.0.0.1"]),
    ],
)
def test_clients(server: Running, program: str, arguments: list[str]) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed (apt-get install dnsutils knot-dnsutils ldnsutils)")
    command = [program, *(argument.format(port=server.port) for argument in arguments)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "198.18." in shown.stdout
    said = shown.stdout.lower().replace("noerror", "")
    assert not any(word in said for word in ("warning", "malformed", "error"))
