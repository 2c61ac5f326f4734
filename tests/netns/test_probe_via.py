"""`--via`: two edges on one link, the same prefixes on both, and a probe that is routed to the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.program import UNMOOR, output

MAIN = (*UNMOOR, "probe")
PREFIXES = ("198.18.0.0/28", "2001:db8:100::/60")
PORT = "8080"

# Answers as the lab's listener does; the socket is bound to every address of its namespace.
EDGE = """
import socket, sys, threading

def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            address, port = connection.getsockname()[:2]
            connection.recv(4096)
            connection.sendall((
                "HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n"
                f"Unmoor-Edge: {sys.argv[1]}\\r\\n"
                f"Unmoor-Address: {address}\\r\\nUnmoor-Port: {port}\\r\\n\\r\\n"
            ).encode())

for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    listener = socket.socket(family)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, 8080))
    listener.listen(512)
    threading.Thread(target=serve, args=(listener,)).start()
print("serving", flush=True)
"""

# The gateway's route is removed while the probe runs, as when its link fails.
LOST_GATEWAY = """
import subprocess
from contextlib import closing
from unmoor.probe.clients.engine import Engine, Settings
from unmoor.probe.clients.targets import Target
from unmoor.probe.clients.via import read_gateways, via

found = []
with via(read_gateways(["198.19.1.12", "2001:db8:f001::12"], [])) as mark:
    for family in ("-4", "-6"):
        gateway = "198.19.1.12" if family == "-4" else "2001:db8:f001::12"
        subprocess.run(
            ["ip", family, "route", "del", "default", "via", gateway, "table", str(mark)], check=True
        )
    for address in ("198.18.0.1", "2001:db8:100::1"):
        with closing(Engine(Settings(mark=mark), found.append)) as engine:
            engine.start(Target(address, 8080))
            while len(engine):
                engine.poll(1)
print(*(outcome.fault.cause if outcome.fault else "answered" for outcome in found))
"""


class Network:
    """A switch, the probe and two edges, each in a namespace of its own."""

    def __init__(self, stack: ExitStack) -> None:
        self._name = f"unmoor-via-{os.getpid()}"
        self._stack = stack
        for host in ("switch", "probe", "edge1", "edge2"):
            run("ip", "netns", "add", self.namespace(host))
            stack.callback(run, "ip", "netns", "del", self.namespace(host))
            self.ip(host, "link", "set", "lo", "up")
        self.ip("switch", "link", "add", "lan", "type", "bridge")
        self.ip("switch", "link", "set", "lan", "up")
        for host, number in (("probe", 1), ("edge1", 11), ("edge2", 12)):
            self._attach(host, number)
        for prefix in PREFIXES:
            family = "-6" if ":" in prefix else "-4"
            first = "2001:db8:f001::11" if ":" in prefix else "198.19.1.11"
            self.ip("probe", family, "route", "add", prefix, "via", first)
            for edge in ("edge1", "edge2"):
                self.ip(edge, family, "route", "add", "local", prefix, "dev", "lo")
        for edge in ("edge1", "edge2"):
            self._serve(edge)

    def namespace(self, host: str) -> str:
        return f"{self._name}-{host}"

    def _attach(self, host: str, number: int) -> None:
        namespace, switch = self.namespace(host), self.namespace("switch")
        veth = ("type", "veth", "peer", "name", host, "netns", switch)
        run("ip", "-n", namespace, "link", "add", "eth0", *veth)
        self.ip("switch", "link", "set", host, "master", "lan", "up")
        self.ip(host, "address", "add", f"198.19.1.{number}/24", "dev", "eth0")
        self.ip(host, "address", "add", f"2001:db8:f001::{number}/64", "dev", "eth0", "nodad")
        self.ip(host, "link", "set", "eth0", "up")

    def _serve(self, edge: str) -> None:
        process = self.start(edge, sys.executable, "-c", EDGE, edge)
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"

    def ip(self, host: str, *arguments: str) -> str:
        return run("ip", "-n", self.namespace(host), *arguments)

    def start(self, host: str, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(host), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def probe(self, *arguments: str, status: int = 0) -> str:
        return output(self.start("probe", *MAIN, *arguments), status)

    def routing(self) -> str:
        """Every rule and route of the probe's namespace."""
        shown = []
        for family in ("-4", "-6"):
            shown.append(self.ip("probe", family, "rule", "show"))
            routes = self.ip("probe", family, "route", "show", "table", "all").splitlines()
            # The kernel adds and removes entries for neighbours and addresses.
            shown += sorted(line for line in routes if "proto kernel" not in line and "multicast" not in line)
        return "\n".join(shown)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack)


@pytest.fixture(autouse=True)
def _leaves_nothing(network: Network) -> Iterator[None]:
    before = network.routing()
    yield
    assert network.routing() == before


REACH = ("reach", *PREFIXES, "--tcp", PORT, "--sample6", "20", "--json", "--quiet")
VIA = {
    "edge1": ("--via", "198.19.1.11", "--via", "2001:db8:f001::11"),
    "edge2": ("--via", "198.19.1.12", "--via", "2001:db8:f001::12"),
}


def test_without_it_the_routing_table_decides(network: Network) -> None:
    assert json.loads(network.probe(*REACH))["edges"] == {"edge1": 40}


@pytest.mark.parametrize("edge", ["edge1", "edge2"])
def test_every_packet_goes_through_the_gateway(network: Network, edge: str) -> None:
    found = json.loads(network.probe(*REACH, *VIA[edge], "--edge", edge))
    assert found["edges"] == {edge: 40}
    assert found["families"]["ipv6"] == {"pairs": 24, "answered": 24}


def test_the_wrong_edge_is_noticed(network: Network) -> None:
    found = json.loads(network.probe(*REACH, *VIA["edge2"], "--edge", "edge1", status=1))
    assert found["causes"] == {"wrong edge": 40}


def test_two_probes_at_once_do_not_meet(network: Network) -> None:
    processes = {edge: network.start("probe", *MAIN, *REACH, *VIA[edge], "--sample6", "500") for edge in VIA}
    found = {edge: json.loads(process.communicate(timeout=60)[0]) for edge, process in processes.items()}
    assert {edge: counted["edges"] for edge, counted in found.items()} == {edge: {edge: 520} for edge in VIA}


def hanging(network: Network) -> subprocess.Popen[str]:
    """A probe through edge2 that is still running: it waits for a line that never comes."""
    options = ("--check", "banner", "--timeout", "600", *VIA["edge2"])
    before = network.routing()
    process = network.start("probe", *MAIN, *REACH, *options)
    limit = time.monotonic() + 60
    while network.routing().count("0x554d") < before.count("0x554d") + 2:
        assert time.monotonic() < limit, "no rules were added"
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(network: Network, number: signal.Signals) -> None:
    process = hanging(network)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(out)["interrupted"]


def test_the_next_probe_cleans_up_after_one_that_was_killed(network: Network) -> None:
    before = network.routing()
    process = hanging(network)
    process.kill()
    process.communicate(timeout=60)
    assert network.routing() != before
    found = json.loads(network.probe(*REACH, *VIA["edge1"]))
    assert found["edges"] == {"edge1": 40}


def test_a_probe_does_not_clean_up_after_one_that_lives(network: Network) -> None:
    process = hanging(network)
    during = network.routing()
    network.probe(*REACH, *VIA["edge1"])
    assert network.routing() == during
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_a_lost_gateway_does_not_fall_through_to_other_routes(network: Network) -> None:
    with network.start("probe", sys.executable, "-c", LOST_GATEWAY) as process:
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("unreachable unreachable\n", "")


def test_a_gateway_behind_another_one_is_refused(network: Network) -> None:
    said = network.probe("reach", PREFIXES[0], "--tcp", PORT, "--via", "198.18.0.1", status=2)
    assert "is not on a link of this machine but behind 198.19.1.11" in said
