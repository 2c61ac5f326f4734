"""Debian's resolvers on the client resolve through the edges, cold and warm, for dig, kdig and drill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from testinfra.host import Host

from conftest import EDGE_ADDRESSES, eventually

PORT = 5301
FREE = {"A": "198.18.0.0/20", "AAAA": "2001:db8:100::/44"}
#: The resolvers' queries go through the router, whose ECMP chooses the edge.
ANYCAST = ("198.51.100.53", "2001:db8:53::53")

UNBOUND = """
server:
  interface: 127.0.0.1
  port: {port}
  directory: "/run/{unit}"
  pidfile: "/run/{unit}/pid"
  chroot: ""
  username: ""
  use-syslog: no
  do-daemonize: no
  module-config: "iterator"
  use-caps-for-id: yes
  local-zone: "test." nodefault
  tcp-upstream: {tcp}
remote-control:
  control-enable: no
stub-zone:
  name: unmoor.test
  stub-addr: 198.51.100.53
  stub-addr: 2001:db8:53::53
"""

# Nothing but questions below unmoor.test leaves it.
KRESD = """
for _, name in ipairs({{'priming', 'ta_update', 'ta_signal_query', 'ta_sentinel', 'detect_time_skew'}}) do
  modules.unload(name)
end
trust_anchors.remove('.')
net.listen('127.0.0.1', {port}, {{ kind = 'dns' }})
cache.open(10 * MB, 'lmdb:///run/{unit}/cache')
if '{tcp}' == 'yes' then policy.add(policy.all(policy.FLAGS('TCP'))) end
policy.add(policy.suffix(policy.STUB({{'198.51.100.53', '2001:db8:53::53'}}), {{ todname('unmoor.test') }}))
policy.add(policy.all(policy.DENY))
"""

#: Configuration and command.
RESOLVERS = {
    "unbound": (UNBOUND, "unbound -d -c /run/{unit}/conf"),
    "kresd": (KRESD, "kresd -n -c /run/{unit}/conf /run/{unit}"),
}


@pytest.fixture(params=RESOLVERS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["udp", "tcp"])
def over(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def resolver(client: Host, program: str, over: str) -> Iterator[Host]:
    """The client with a resolver on its loopback whose cache is empty."""
    unit = f"test-{program}-{over}"
    text, command = (
        part.format(unit=unit, port=PORT, tcp="yes" if over == "tcp" else "no") for part in RESOLVERS[program]
    )
    client.check_output(f"mkdir -p /run/{unit} && cat > /run/{unit}/conf <<'END'\n{text}\nEND")
    client.check_output(f"systemd-run --quiet --collect --unit={unit} {command}")
    try:
        started = eventually(lambda: "status: NOERROR" in ask(client, "unmoor.test", "SOA"))
        assert started, client.run(f"journalctl --no-pager -n 30 -u {unit}").stdout
        yield client
    finally:
        client.run(f"systemctl stop {unit}; rm -rf /run/{unit}")


def ask(client: Host, name: str, qtype: str = "A") -> str:
    return client.run(f"dig @127.0.0.1 -p {PORT} +tries=1 +time=3 {name} {qtype}").stdout


def answers(client: Host, name: str, qtype: str = "A") -> list[list[str]]:
    """The answer section, record by record: name, TTL, class, type, data."""
    shown = client.check_output(f"dig @127.0.0.1 -p {PORT} +tries=1 +time=20 +noall +answer {name} {qtype}")
    return [line.split() for line in shown.splitlines()]


def asked(hosts: dict[str, Host]) -> tuple[int, int]:
    """How many queries both edges have answered, and how many of them came over TCP."""
    found = [json.loads(hosts[name].check_output("unmoor dns status --json")) for name in EDGE_ADDRESSES]
    return (
        sum(sum(status["rcodes"].values()) for status in found),
        sum(status["events"]["tcp_queries"] for status in found),
    )


def everything(client: Host) -> list[str]:
    """Resolve names of each kind; returns the addresses that were drawn."""
    drawn = []
    for name in ("site0001.unmoor.test", "status.unmoor.test", "SITE0011.unmoor.test"):
        for qtype, pool in FREE.items():
            record = answers(client, name, qtype)[-1]
            assert record[3] == qtype
            assert ip_address(record[4]) in ip_network(pool)
            assert int(record[1]) <= 30  # the policy's TTL, or the rest of it
            drawn.append(record[4])
    assert "status: NXDOMAIN" in ask(client, "nothing.unmoor.test")
    nodata = ask(client, "site0001.unmoor.test", "HTTPS")
    assert "status: NOERROR" in nodata
    assert "ANSWER: 0" in nodata
    assert answers(client, "unmoor.test", "MX")[0][4:] == ["10", "mail.unmoor.test."]
    return drawn


def test_a_resolver_resolves(resolver: Host, hosts: dict[str, Host], over: str) -> None:
    before = asked(hosts)
    cold = everything(resolver)
    between = asked(hosts)
    warm = everything(resolver)
    after = asked(hosts)
    everything_asked, over_tcp = (now - then for now, then in zip(between, before, strict=True))
    assert everything_asked >= 8
    assert over_tcp == (everything_asked if over == "tcp" else 0)
    # Cached answers are repeated, drawn addresses too, without a query to an edge.
    assert warm == cold
    assert after == between


@pytest.mark.parametrize("server", ANYCAST)
@pytest.mark.parametrize(
    "command",
    [
        "dig +short @{server} site0001.unmoor.test",
        "dig +short +tcp @{server} site0001.unmoor.test",
        "dig +short +norec +subnet=198.51.100.0/24 @{server} site0001.unmoor.test",
        "kdig +short @{server} site0001.unmoor.test",
        "kdig +short +tcp +keepopen +cookie @{server} site0001.unmoor.test",
        "drill -Q -o rd site0001.unmoor.test @{server}",
        "drill -Q -t -o rd site0001.unmoor.test @{server}",
    ],
)
def test_a_client_asks(client: Host, server: str, command: str) -> None:
    shown = client.check_output(command.format(server=server))
    assert ip_address(shown.strip()) in ip_network(FREE["A"])
