"""How far systemd confines our units and nginx, and that nginx works there."""

from __future__ import annotations

import re

from testinfra.host import Host

from conftest import eventually, reach_edge

#: Of 10, as `systemd-analyze security` rates. nginx needs its users, logs, low ports and Lua's JIT.
MAX_EXPOSURE = 2.0
MAX_NGINX_EXPOSURE = 2.7


def exposure(edge: Host, unit: str) -> float:
    shown = edge.check_output("systemd-analyze security --no-pager %s", unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown)
    assert found, shown
    return float(found[1])


def test_our_units_are_confined(edge: Host) -> None:
    listed = edge.check_output("systemctl list-unit-files --no-legend --plain 'unmoor-*.service'")
    units = [line.split()[0] for line in listed.splitlines()]
    assert "unmoor-sockets.service" in units
    exposures = {unit: exposure(edge, unit) for unit in units}
    assert {unit: found for unit, found in exposures.items() if found > MAX_EXPOSURE} == {}


def test_nginx_is_confined(edge: Host) -> None:
    assert exposure(edge, "nginx.service") <= MAX_NGINX_EXPOSURE


def test_nginx_reopens_its_logs(edge: Host) -> None:
    """As on logrotate's signal. Debian's logs have another owner, so this needs a capability."""
    log = "/var/log/nginx/error.log"
    edge.check_output(f"mv {log} {log}.1 && systemctl kill --signal=USR1 --kill-who=main nginx")
    assert eventually(lambda: edge.run("stat -c %%U %s", log).stdout.strip() == "www-data")
    edge.check_output(f"rm {log} && install -o www-data -g adm -m 0640 /dev/null {log}")
    edge.check_output("systemctl kill --signal=USR1 --kill-who=main nginx")
    master = edge.check_output("systemctl show -P MainPID nginx")
    assert eventually(lambda: f"{log}\n" in edge.check_output(f"readlink /proc/{master}/fd/*") + "\n")


def test_nginx_reloads_with_new_workers(edge: Host, router: Host) -> None:
    def workers() -> set[str]:
        master = edge.check_output("systemctl show -P MainPID nginx")
        return set(edge.check_output("ps -o pid= --ppid %s", master).split())

    before = workers()
    assert before
    edge.check_output("systemctl reload nginx")
    assert eventually(lambda: not before & workers())
    assert reach_edge(router, edge.check_output("hostname"))["failed"] == 0
