"""Answers of the DNS servers to the client, on anycast addresses and on each edge's own."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from testinfra.host import Host

from conftest import EDGE_ADDRESSES, probe

ANYCAST = ("198.51.100.53", "2001:db8:53::53")
#: Addresses of the prefixes of service dns, which the dispatch program delivers to the server.
DIALLED = ("198.18.14.0", "198.18.14.77", "198.18.14.255", "2001:db8:10e::", "2001:db8:10e:7::77")
SERVERS = [*ANYCAST, *EDGE_ADDRESSES["edge1"], *EDGE_ADDRESSES["edge2"], *DIALLED]
FREE = {"A": "198.18.0.0/20", "AAAA": "2001:db8:100::/44"}
BUSINESS = {"A": "198.18.8.0/21", "AAAA": "2001:db8:108::/45"}


def dig(client: Host, *words: str) -> str:
    return client.check_output("dig +tries=1 +time=20 " + " ".join(words))


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("qtype", ["A", "AAAA"])
def test_each_server_answers_from_the_policys_pool(
    client: Host, server: str, transport: str, qtype: str
) -> None:
    for name, pools, ttl in (("site0001", FREE, "30"), ("site0005", BUSINESS, "60")):
        answer = dig(
            client, f"@{server}", transport, "+noall", "+answer", f"{name}.unmoor.test", qtype
        ).split()
        assert answer[:4] == [f"{name}.unmoor.test.", ttl, "IN", qtype]
        assert ip_address(answer[4]) in ip_network(pools[qtype])


@pytest.mark.parametrize("qtype", ["A", "AAAA"])
def test_answers_are_spread_evenly_over_the_whole_pool(client: Host, qtype: str) -> None:
    arguments = ["--server", ANYCAST[0], "--type", qtype, "--queries", "21000", "--pool", BUSINESS[qtype]]
    result = probe(client, "uniformity", "site0005.unmoor.test", *arguments)
    assert result["lost"] == 0
    assert result["outside"] == 0
    assert 1e-6 < result["p"] <= 1
    if qtype == "A":
        assert result["distinct"] > 0.999 * 2048


def status(answer: str) -> str:
    return next(line for line in answer.splitlines() if "status:" in line).split("status: ")[1].split(",")[0]


@pytest.mark.parametrize(
    ("question", "rcode", "expected"),
    [
        ("unmoor.test SOA", "NOERROR", "ns1.unmoor.test. hostmaster.unmoor.test."),
        ("unmoor.test NS", "NOERROR", "ns2.unmoor.test."),
        ("ns1.unmoor.test A", "NOERROR", "198.51.100.53"),
        ("mail.unmoor.test AAAA", "NOERROR", "ANSWER: 0"),
        ("site0001.unmoor.test TXT", "NOERROR", "ANSWER: 0"),
        ("nothing.unmoor.test A", "NXDOMAIN", "SOA"),
        ("example.org A", "REFUSED", "ANSWER: 0"),
    ],
)
def test_static_records_and_refusals(client: Host, question: str, rcode: str, expected: str) -> None:
    answer = dig(client, f"@{ANYCAST[0]}", "+norecurse", question)
    assert status(answer) == rcode
    assert expected in answer
    if rcode != "REFUSED":
        assert "flags: qr aa" in answer


def test_an_alias_leads_into_the_pool(client: Host) -> None:
    lines = dig(client, f"@{ANYCAST[0]}", "+short", "status.unmoor.test", "A").splitlines()
    assert lines[0] == "site0001.unmoor.test."
    assert ip_address(lines[1]) in ip_network(FREE["A"])
