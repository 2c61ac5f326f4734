"""The state of each edge after a rollout: units, privileges, pins, routes."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

from conftest import sockets_status

ENABLED = [
    "unmoor-anyip.service",
    "unmoor-sockets.service",
    "unmoor-sockets-metrics.service",
    "unmoor-activation.socket",
    "unmoor-dns.service",
    "unmoor-dns-metrics.service",
    "nginx.service",
    "unmoor-whoami.socket",
]


def properties(edge: Host, unit: str) -> dict[str, str]:
    shown = edge.check_output("systemctl show %s", unit)
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def test_no_unit_has_failed(edge: Host) -> None:
    assert edge.check_output("systemctl --failed --no-legend --plain") == ""


@pytest.mark.parametrize("unit", ENABLED)
def test_units_run_now_and_after_a_reboot(edge: Host, unit: str) -> None:
    assert edge.run("systemctl is-active %s", unit).stdout.strip() == "active", edge.run(
        "journalctl --no-pager -n 30 -u %s", unit
    ).stdout
    assert edge.check_output("systemctl is-enabled %s", unit) == "enabled"


@pytest.mark.parametrize(
    ("unit", "user", "capabilities"),
    [
        ("unmoor-activation.service", "unmoor", "cap_net_admin cap_bpf"),
        ("unmoor-dns.service", "unmoor-dns", "cap_net_bind_service"),
        ("unmoor-sockets-metrics.service", "unmoor", "cap_bpf"),
        ("unmoor-dns-metrics.service", "unmoor-dns", ""),
    ],
)
def test_services_are_unprivileged_and_hardened(edge: Host, unit: str, user: str, capabilities: str) -> None:
    shown = properties(edge, unit)
    assert shown["User"] == user
    assert set(shown.get("CapabilityBoundingSet", "").split()) == set(capabilities.split())
    assert shown["NoNewPrivileges"] == "yes"
    assert shown["ProtectSystem"] == "strict"
    assert shown["MemoryDenyWriteExecute"] == "yes"
    assert shown["SystemCallFilter"]


def test_the_dns_server_runs_as_its_user_with_one_worker_for_each_core(edge: Host) -> None:
    server = edge.check_output("systemctl show -P MainPID unmoor-dns")
    processes = edge.check_output("ps -o user:20= -p %s --ppid %s", server, server).split()
    assert processes == ["unmoor-dns"] * (1 + int(edge.check_output("nproc")))


def test_the_dns_servers_sockets_have_large_buffers(edge: Host) -> None:
    sockets = edge.check_output("ss --no-header --udp --all --numeric --memory sport = :53")
    sizes = re.findall(r"\b(rb|tb)(\d+)", sockets)
    # The kernel shows twice the requested size.
    assert set(sizes) == {("rb", str(8 << 20)), ("tb", str(8 << 20))}, sockets
    assert json.loads(edge.check_output("unmoor dns status --json"))["shortage"] == ""


def test_pins_are_for_root_and_the_group_alone(edge: Host) -> None:
    pins = edge.file("/sys/fs/bpf/unmoor")
    assert (pins.user, pins.group) == ("root", "unmoor")
    assert pins.mode & 0o007 == 0
    listed = edge.check_output("find /sys/fs/bpf/unmoor -mindepth 1 -perm /007")
    assert listed == ""


def test_the_prefixes_are_local(edge: Host) -> None:
    for version, prefix in (("-4", "198.18.0.0/20"), ("-6", "2001:db8:100::/44")):
        routes = edge.check_output("ip %s route show table local", version)
        assert f"local {prefix} dev lo" in routes


def test_every_service_has_its_sockets(edge: Host) -> None:
    services = {service["label"]: service for service in sockets_status(edge)["services"]}
    assert set(services) == {"web-http", "web-https", "whoami", "dns"}
    for service in services.values():
        filled = {each["family"] for each in service["destinations"] if each["sockets"]}
        assert filled == {4, 6}, service


def test_documents_are_valid_and_not_for_others_to_write(edge: Host) -> None:
    edge.check_output("unmoor validate edge /etc/unmoor/edge.json")
    edge.check_output("unmoor dns check /etc/unmoor/dns.json")
    modes = {"edge": ("root", 0o644), "dns": ("unmoor-dns", 0o640)}
    for name, expected in modes.items():
        file = edge.file(f"/etc/unmoor/{name}.json")
        assert (file.user, file.group, file.mode) == ("root", *expected)


def scraped(edge: Host, port: int) -> str:
    fetch = f'urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=10).read().decode()'
    return edge.check_output(f"python3 -c 'import urllib.request; print({fetch})'")


def test_prometheus_finds_the_counters_of_the_sockets_half(edge: Host) -> None:
    found = scraped(edge, 9109)
    assert 'unmoor_sockets_registered{family="ipv4",protocol="tcp",service="web-http"}' in found
    assert "unmoor_sockets_foreign_programs" not in found  # it has no permission to query them


def test_prometheus_finds_the_counters_of_the_dns_half(edge: Host) -> None:
    found = scraped(edge, 9153)
    assert 'unmoor_dns_answers_total{policy="free",transport="udp",type="A"}' in found
    assert "unmoor_dns_journal_failing 0.0" in found


def test_the_journal_lists_the_policies_of_an_address(edge: Host) -> None:
    found = json.loads(edge.check_output("unmoor dns journal 198.18.9.9 --json"))
    assert {each["policy"] for each in found["intervals"] if each["to"] is None} == {"business", "free"}
    directory = edge.file("/var/lib/unmoor-dns")
    assert (directory.user, directory.mode) == ("unmoor-dns", 0o750)


# 2000 queries from the edge itself, of which one in a hundred is logged.
ASK = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
sock.connect((sys.argv[1], 53))
for _ in range(2000):
    sock.send(bytes.fromhex("000000000001000000000000") + b"\\x08site0001\\x06unmoor\\x04test\\0\\0\\1\\0\\1")
    sock.recv(4096)
"""


def test_the_query_log_reaches_the_machines_journal(edge: Host) -> None:
    address = json.loads(edge.file("/etc/unmoor/dns.json").content_string)["listen"][0]
    edge.check_output("python3 -c %s %s", ASK, address)
    entries = edge.check_output(
        "journalctl --sync; journalctl -t unmoor-dns-query -o json -n 1 UNMOOR_NAME=site0001.unmoor.test"
    )
    last = json.loads(entries)
    assert (last["UNMOOR_TYPE"], last["UNMOOR_RCODE"], last["UNMOOR_TRANSPORT"]) == ("A", "NOERROR", "udp")
    assert last["UNMOOR_POLICY"] in ("free", "business")
    assert last["UNMOOR_CLIENT"].endswith("/24")
