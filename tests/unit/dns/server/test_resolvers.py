"""Real resolvers and clients, as Debian ships them, resolve through the server: cold, warm, UDP and TCP."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from support.dns_server import Running, free_port, running
from support.other_servers import OtherServer

UNBOUND = """
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

# Nothing but questions below example.com leaves it, and these for our server alone.
KRESD = """
for _, name in ipairs({{'priming', 'ta_update', 'ta_signal_query', 'ta_sentinel', 'detect_time_skew'}}) do
  modules.unload(name)
end
trust_anchors.remove('.')
net.ipv6 = false
net.listen('127.0.0.1', {port}, {{ kind = 'dns' }})
cache.open(10 * MB, 'lmdb://{directory}/cache')
if '{tcp}' == 'yes' then policy.add(policy.all(policy.FLAGS('TCP'))) end
policy.add(policy.suffix(policy.STUB('127.0.0.1@{upstream}'), {{ todname('example.com') }}))
policy.add(policy.all(policy.DENY))
"""

#: Program, configuration, and how it is started.
RESOLVERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unbound": (UNBOUND, ("-d", "-c", "{config}")),
    "kresd": (KRESD, ("-n", "-c", "{config}", "{directory}")),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("dns"), listen=["127.0.0.1"]) as started:
        yield started


class Resolver(OtherServer):
    """Unbound or Knot Resolver, which resolves example.com through our server."""

    def __init__(self, program: str, directory: Path, upstream: int, tcp: bool) -> None:
        self.port = free_port()
        config = directory / "resolver.conf"
        text, arguments = RESOLVERS[program]
        config.write_text(
            text.format(directory=directory, port=self.port, upstream=upstream, tcp="yes" if tcp else "no")
        )
        options = [each.format(config=config, directory=directory) for each in arguments]
        super().__init__(directory / "log", program, *options)
        self.wait(self._serves)

    def _serves(self) -> bool:
        with suppress(OSError, dns.exception.DNSException):
            return self.ask("txt.example.com", "TXT", timeout=0.3).rcode() == dns.rcode.NOERROR
        return False

    def ask(self, name: str, rtype: str = "A", timeout: float = 5) -> dns.message.Message:
        query = dns.message.make_query(name, rtype)
        return dns.query.udp_with_fallback(query, "127.0.0.1", timeout=timeout, port=self.port)[0]


def asked(server: Running) -> tuple[int, int]:
    """Numbers of queries that the server has answered: in total, and over TCP."""
    status = server.status()
    return sum(status["rcodes"].values()), status["events"]["tcp_queries"]


@pytest.mark.parametrize("over", ["UDP", "TCP"])
@pytest.mark.parametrize("program", RESOLVERS)
def test_a_resolver_resolves(program: str, over: str, server: Running, tmp_path: Path) -> None:
    resolver = Resolver(program, tmp_path, server.port, over == "TCP")
    try:
        before = asked(server)
        cold = resolve_everything(resolver)
        between = asked(server)
        warm = resolve_everything(resolver)
        after = asked(server)
    finally:
        resolver.stop()
    everything, over_tcp = (now - then for now, then in zip(between, before, strict=True))
    assert everything >= 8
    # Over UDP, only the reply that does not fit has the resolver come back over TCP.
    assert over_tcp == everything if over == "TCP" else 0 < over_tcp < everything / 2
    # Cached answers are repeated, drawn addresses too, without a query to us.
    assert warm == cold
    assert after == between


def resolve_everything(resolver: Resolver) -> list[str]:
    """Resolve a name of each kind; returns the addresses."""
    addresses = []
    for name in ("host1.example.com", "www.example.com", "HOST2.example.com"):
        addresses.append(resolver.ask(name).answer[-1][0].address)
        assert ip_address(addresses[-1]) in ip_network("198.18.0.0/20")
    addresses.append(resolver.ask("host1.example.com", "AAAA").answer[0][0].address)
    assert ip_address(addresses[-1]) in ip_network("2001:db8::/44")
    assert resolver.ask("nothing.example.com").rcode() == dns.rcode.NXDOMAIN
    assert not resolver.ask("host1.example.com", "HTTPS").answer
    assert resolver.ask("any.wild.example.com", "TXT").answer
    assert resolver.ask("host.old.example.com").answer
    assert len(resolver.ask("big.example.com", "TXT").answer) == 1
    return addresses


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
    command = [program, *(argument.format(port=server.port) for argument in arguments)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "198.18." in shown.stdout
    said = shown.stdout.lower().replace("noerror", "")
    assert not any(word in said for word in ("warning", "malformed", "error"))
