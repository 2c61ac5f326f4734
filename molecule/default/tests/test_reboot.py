"""After a reboot, an edge serves again without any intervention."""

from __future__ import annotations

from contextlib import suppress

from testinfra.host import Host

from conftest import AUTHORITY, EDGE_ADDRESSES, TLS, eventually, lab_host, probe, reach_edge


def test_a_reboot_brings_everything_back(hosts: dict[str, Host], router: Host) -> None:
    started = hosts["edge2"].check_output("stat -c %Y /proc/1")
    with suppress(RuntimeError):  # ssh may break off before it gets the exit status
        hosts["edge2"].run("systemctl reboot")

    def rebooted() -> bool:
        shown = lab_host("edge2").run("stat -c %Y /proc/1 && systemctl is-system-running").stdout.split()
        return shown[1:] == ["running"] and shown[0] != started

    assert eventually(rebooted)
    assert reach_edge(router, "edge2")["failed"] == 0
    secure = (
        "--tls",
        TLS,
        "--sni",
        "site0001.unmoor.test",
        "--ca",
        AUTHORITY,
        "--service",
        f"web-https={TLS}",
    )
    assert reach_edge(router, "edge2", *secure)["failed"] == 0
    for server in EDGE_ADDRESSES["edge2"]:
        arguments = ["--server", server, "--queries", "100", "--pool", "198.18.0.0/20"]
        assert probe(router, "uniformity", "site0001.unmoor.test", *arguments)["lost"] == 0
