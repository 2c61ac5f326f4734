"""The lab's hosts for tests of all scenarios. With UNMOOR_LAB set, tests also run under plain pytest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

LAB = os.environ.get("UNMOOR_LAB", "pop")
PREFIX4, PREFIX6 = "198.18.0.0/20", "2001:db8:100::/44"
PLAIN = "80,8080,8880,2052,2082,2086,2095"
TLS = "443,2053,2083,2087,2096,8443"
EDGE_ADDRESSES = {
    "edge1": ("198.19.1.11", "2001:db8:f001::11"),
    "edge2": ("198.19.1.12", "2001:db8:f001::12"),
}
AUTHORITY = "/etc/unmoor/authority.crt"


def lab_host(name: str) -> Host:
    """A lab host over ssh, as Ansible reaches it."""
    return testinfra.get_host(f"ssh://{name}", ssh_config=f"/run/unmoor-lab/{LAB}/ssh_config")


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    return {name: lab_host(name) for name in ("client", "router", "edge1", "edge2")}


@pytest.fixture(scope="session")
def client(hosts: dict[str, Host]) -> Host:
    return hosts["client"]


@pytest.fixture(scope="session")
def router(hosts: dict[str, Host]) -> Host:
    return hosts["router"]


@pytest.fixture(params=["edge1", "edge2"], scope="session")
def edge(request: pytest.FixtureRequest, hosts: dict[str, Host]) -> Host:
    return hosts[request.param]


def probe(host: Host, *arguments: str) -> dict[str, Any]:
    """Run the probe on `host` and return its JSON; the caller checks whether anything failed."""
    done = host.run(" ".join(["unmoor", "probe", *arguments, "--json"]))
    assert done.rc in (0, 1), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def reach_edge(router: Host, edge: str, *arguments: str, sample: int = 10) -> dict[str, Any]:
    """Connect to one edge alone, from its neighbour."""
    via = [word for gateway in EDGE_ADDRESSES[edge] for word in ("--via", gateway)]
    chosen = arguments or ("--tcp", PLAIN, "--service", f"web-http={PLAIN}")
    return probe(router, "reach", PREFIX4, PREFIX6, "--sample", str(sample), "--edge", edge, *via, *chosen)


def sockets_status(edge: Host) -> dict[str, Any]:
    """Output of `unmoor sockets status --json` on `edge`."""
    status: dict[str, Any] = json.loads(edge.check_output("unmoor sockets status --json"))
    return status


def eventually(what: Callable[[], bool], seconds: float = 300) -> bool:
    """Report whether `what` becomes true within `seconds`, far longer than it takes on a busy computer.

    A host that ssh cannot reach, or whose connection breaks off, counts as not yet true.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(RuntimeError):  # testinfra: ssh ended with status 255
            if what():
                return True
        time.sleep(0.2)
    return what()


SERVERS = ["198.51.100.53", *EDGE_ADDRESSES["edge1"], *EDGE_ADDRESSES["edge2"]]


def answered_only_from(client: Host, server: str, qtype: str, pool: str) -> None:
    """Hostnames of every account type are answered with addresses of `pool` alone, and nothing is lost."""
    for name in ("site0001.unmoor.test", "site0005.unmoor.test"):
        arguments = ["--server", server, "--type", qtype, "--queries", "1500", "--pool", pool]
        result = probe(client, "uniformity", name, *arguments)
        assert (result["lost"], result["outside"]) == (0, 0), result


def every_address_reaches(client: Host) -> None:
    """Each address of the bound /20 and a sample of the /44 reaches the service, in use by DNS or not."""
    ports = ["--tcp", "80,2095", "--service", "web-http=80,2095"]
    result = probe(client, "reach", PREFIX4, PREFIX6, *ports)
    assert result["pairs"] > 4096 * 2
    assert result["failed"] == 0, result
