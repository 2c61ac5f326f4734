"""When a part stops, the data plane keeps working; a service without sockets refuses and counts."""

from __future__ import annotations

import json
import re

from testinfra.host import Host

from conftest import EDGE_ADDRESSES, eventually, probe, reach_edge, sockets_status


def misses(edge: Host, label: str) -> int:
    services = {service["label"]: service for service in sockets_status(edge)["services"]}
    return sum(destination["misses"] for destination in services[label]["destinations"])


def test_a_stopped_service_refuses_and_counts_until_it_starts(hosts: dict[str, Host], router: Host) -> None:
    edge = hosts["edge1"]
    before = misses(edge, "web-http")
    edge.check_output("systemctl stop nginx")
    try:
        result = reach_edge(router, "edge1")
        assert result["answered"] == 0
        assert set(result["causes"]) == {"refused"}, result["causes"]
        assert misses(edge, "web-http") - before >= result["pairs"]
    finally:
        edge.check_output("systemctl start nginx")
    assert reach_edge(router, "edge1")["failed"] == 0


def test_a_killed_listener_comes_back(hosts: dict[str, Host], router: Host) -> None:
    edge = hosts["edge1"]
    edge.check_output("systemctl kill --signal=KILL nginx")
    assert eventually(lambda: reach_edge(router, "edge1")["failed"] == 0)


def test_the_data_plane_does_not_need_the_activation_service(hosts: dict[str, Host], router: Host) -> None:
    edge = hosts["edge1"]
    edge.check_output("systemctl stop unmoor-activation.socket unmoor-activation.service")
    try:
        assert reach_edge(router, "edge1", sample=50)["failed"] == 0
    finally:
        edge.check_output("systemctl start unmoor-activation.socket")
    edge.check_output("systemctl kill --signal=KILL unmoor-activation.service || true")
    edge.check_output("systemctl restart nginx")
    assert reach_edge(router, "edge1")["failed"] == 0


def test_a_reload_of_nginx_loses_nothing(hosts: dict[str, Host], router: Host) -> None:
    edge = hosts["edge1"]
    for _ in range(5):
        edge.check_output("systemctl reload nginx")
        assert reach_edge(router, "edge1")["failed"] == 0


def test_reloads_of_the_dns_server_lose_no_query(hosts: dict[str, Host], client: Host) -> None:
    edge = hosts["edge1"]
    files = "--property=StandardOutput=truncate:/run/watch.json --property=StandardError=journal"
    unit = f"systemd-run --quiet --collect --unit=watch {files}"
    watch = "unmoor probe watch 198.18.0.0/20 --tcp 80 --name site0001.unmoor.test --seconds 8 --json"
    client.check_output(f"{unit} {watch} --server {EDGE_ADDRESSES['edge1'][0]}")
    for _ in range(10):
        edge.check_output("systemctl reload unmoor-dns")
    assert eventually(lambda: client.run("systemctl is-active watch").rc != 0)
    result = json.loads(client.check_output("cat /run/watch.json"))
    assert (result["failed"], result["lost"]) == (0, 0), result
    assert result["answered"] > 100


def dns_sockets(edge: Host) -> set[str]:
    """The inodes of the DNS server's own UDP and TCP sockets."""
    shown = edge.check_output("ss --no-header -u -t -a -n -e state unconnected state listening sport = :53")
    return set(re.findall(r"ino:(\d+)", shown))


def test_sockets_outlive_a_killed_dns_server(hosts: dict[str, Host], client: Host) -> None:
    edge = hosts["edge1"]
    before, server = dns_sockets(edge), edge.check_output("systemctl show -P MainPID unmoor-dns")
    assert before
    edge.check_output("systemctl kill --kill-who=all --signal=KILL unmoor-dns")
    arguments = ["--server", EDGE_ADDRESSES["edge1"][0], "--queries", "2000", "--pool", "198.18.0.0/20"]
    assert eventually(lambda: probe(client, "uniformity", "site0001.unmoor.test", *arguments)["lost"] == 0)
    assert edge.check_output("systemctl show -P MainPID unmoor-dns") != server
    assert dns_sockets(edge) == before


def test_a_killed_dns_worker_comes_back(hosts: dict[str, Host], client: Host) -> None:
    edge = hosts["edge1"]
    worker = edge.check_output("pgrep -u unmoor-dns -P $(systemctl show -P MainPID unmoor-dns)").split()[0]
    edge.check_output("kill -9 %s", worker)
    arguments = ["--server", EDGE_ADDRESSES["edge1"][0], "--queries", "2000", "--pool", "198.18.0.0/20"]
    assert eventually(lambda: probe(client, "uniformity", "site0001.unmoor.test", *arguments)["lost"] == 0)
    workers = edge.check_output("pgrep -u unmoor-dns -P $(systemctl show -P MainPID unmoor-dns)").split()
    assert worker not in workers
    assert len(workers) == int(edge.check_output("nproc"))
