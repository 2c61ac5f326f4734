"""From the client, through the router: every address, on every port, reaches the right service."""

from __future__ import annotations

from testinfra.host import Host

from conftest import AUTHORITY, PLAIN, PREFIX4, PREFIX6, TLS, probe

SERVICES = ["--service", f"web-http={PLAIN}", "--service", f"web-https={TLS}"]


def test_every_address_and_port(client: Host) -> None:
    ports = ["--tcp", PLAIN, "--tls", TLS, "--sni", "site0001.unmoor.test", "--ca", AUTHORITY]
    result = probe(client, "reach", PREFIX4, *ports, *SERVICES)
    assert result["pairs"] == 4096 * 13 == 53248
    assert (result["answered"], result["failed"]) == (53248, 0), result
    assert set(result["edges"]) == {"edge1", "edge2"}


def test_a_sample_of_the_v6_prefix(client: Host) -> None:
    ports = ["--tcp", PLAIN, "--tls", TLS, "--sni", "site0001.unmoor.test", "--ca", AUTHORITY]
    result = probe(client, "reach", PREFIX6, "--sample", "100", *ports, *SERVICES)
    assert result["pairs"] == 104 * 13
    assert result["failed"] == 0, result
    assert set(result["edges"]) == {"edge1", "edge2"}


def test_the_service_behind_a_systemd_socket(client: Host) -> None:
    arguments = ["--tcp", "7077", "--check", "banner", "--service", "whoami=7077", "--sample6", "50"]
    result = probe(client, "reach", "198.18.15.0/24", "2001:db8:10f::/48", *arguments)
    assert result["pairs"] == 256 + 54
    assert result["failed"] == 0, result


def test_outside_of_its_prefix_a_service_does_not_answer(client: Host) -> None:
    arguments = ["--tcp", "7077", "--check", "connect", "--sample", "20"]
    result = probe(client, "reach", "198.18.0.0/24", *arguments)
    assert result["answered"] == 0
    assert set(result["causes"]) == {"refused"}


def test_a_port_without_a_service_is_refused(client: Host) -> None:
    result = probe(client, "reach", "198.18.0.0/24", "--tcp", "81", "--check", "connect", "--sample", "20")
    assert set(result["causes"]) == {"refused"}
