"""On hosts that had nothing: the PoP works, and only the edge that compiles has a compiler."""

from __future__ import annotations

from testinfra.host import Host

from conftest import AUTHORITY, PLAIN, PREFIX4, PREFIX6, TLS, probe


def test_the_pop_works(client: Host) -> None:
    ports = ["--tcp", PLAIN, "--tls", TLS, "--sni", "site0001.unmoor.test", "--ca", AUTHORITY]
    services = ["--service", f"web-http={PLAIN}", "--service", f"web-https={TLS}"]
    result = probe(client, "reach", PREFIX4, PREFIX6, *ports, *services, "--sample", "60")
    assert result["failed"] == 0, result
    assert set(result["edges"]) == {"edge1", "edge2"}


def test_dns_answers(client: Host) -> None:
    arguments = ["--server", "198.51.100.53", "--queries", "500", "--pool", PREFIX4]
    assert probe(client, "uniformity", "site0001.unmoor.test", *arguments)["lost"] == 0


def test_only_the_edge_that_compiles_has_a_compiler(hosts: dict[str, Host]) -> None:
    assert hosts["edge1"].package("clang").is_installed
    assert not hosts["edge2"].package("clang").is_installed
