"""The DNS server on whole prefixes: real kernel, real dispatch program, the commands of its unit."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.message
import pytest

from support.program import UNMOOR, run
from support.sockets import Bed, activation, make_local
from support.waiting import wait_until
from unmoor.bpf.pins import Pins
from unmoor.dns.server.control import ask

QUERY = dns.message.make_query("host.example.com", "A").to_wire()
DNS = {"label": "dns", "ports": [53], "protocols": ["udp", "tcp"]}
PREFIX4 = ipaddress.ip_network("198.18.4.0/24")
PREFIX6 = ipaddress.ip_network("2001:db8:0:5::/64")
CHANCE = random.Random(1)
ADDRESSES = [
    *map(str, PREFIX4),
    *(str(PREFIX6[CHANCE.getrandbits(64)]) for _ in range(254)),
    str(PREFIX6[0]),
    str(PREFIX6[-1]),
]


RECORDS = "@ 30 IN SOA ns1 h 1 7200 900 1209600 300\n@ 30 IN NS ns1\nns1 30 IN A 198.18.0.53\n"


def document(**changes: Any) -> dict[str, Any]:
    return {
        "pop": "lab",
        "edge": "edge1",
        "listen": ["198.51.100.53"],
        "any_address": True,
        "workers": 2,
        "pools": {"all": {"ipv4": ["198.18.0.0/24"]}},
        "policies": [{"name": "all", "answer": {"pool": "all", "ttl": 30}}],
        "zones": [
            {
                "name": "example.com",
                "records": RECORDS,
                "hostnames": [{"names": ["host"]}],
            }
        ],
        **changes,
    }


class Server:
    def __init__(self, directory: Path, sock_path: Path) -> None:
        self.sock_path = sock_path
        self.config, self.control = directory / "dns.json", directory / "control.sock"
        self.log = directory / "log"
        # As the unit starts a release: the process that serves changes with an upgrade.
        self.programs = []
        for name in ("one", "two"):
            program = directory / name
            program.write_text(f"#!{UNMOOR[0]}\nfrom unmoor.commands import main\nmain()\n")
            program.chmod(0o755)
            self.programs.append(program)
        self.write(document())
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(self.programs[0]), "dns", "serve", "--config", str(self.config), *self.at()], stderr=log
            )
        wait_until(lambda: "serving" in self.log.read_text() or self.process.poll() is not None)

    def at(self) -> tuple[str, str]:
        return ("--control", str(self.control))

    def write(self, data: dict[str, Any]) -> None:
        self.config.write_text(json.dumps(data))

    def pid(self) -> int:
        found: int = ask(self.control, "status").data["pid"]
        return found

    def register(self) -> None:
        """As the unit does after its start, and after each reload."""
        for protocol in ("udp", "tcp"):
            done = run(
                *("sockets", "register", "dns", "--pid", str(self.pid()), "--protocol", protocol),
                *("--listen", "127.0.0.1:53", "--listen", "[::1]:53", "--socket", str(self.sock_path)),
            )
            assert done.returncode == 0, done.stderr


@pytest.fixture
def server(netns: None, pins: Pins, code: bytes, tmp_path: Path) -> Iterator[Server]:
    make_local()
    make_local("198.51.100.53/32")
    Bed(pins, code).load(DNS)
    sock_path = tmp_path / "activation.sock"
    with activation(pins, sock_path, subprocess.DEVNULL):
        running = Server(tmp_path, sock_path)
        try:
            running.register()
            yield running
        finally:
            pid = running.pid()
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not running.control.exists())
            running.process.wait(10)


@contextmanager
def client(address: str, kind: socket.SocketKind) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        sock.settimeout(5)
        sock.connect((address, 53))  # so that a reply from any other address is not heard
        yield sock


def answered_everywhere(addresses: list[str]) -> bool:
    for address in addresses:
        with client(address, socket.SOCK_DGRAM) as sock:
            sock.send(QUERY)
            reply = sock.recv(4096)
        with client(address, socket.SOCK_STREAM) as stream:
            stream.sendall(struct.pack("!H", len(QUERY)) + QUERY)
            (size,) = struct.unpack("!H", stream.recv(2, socket.MSG_WAITALL))
            over_tcp = stream.recv(size, socket.MSG_WAITALL)
        for each in (reply, over_tcp):
            (record,) = dns.message.from_wire(each).answer
            assert ipaddress.ip_address(record[0].address) in ipaddress.ip_network("198.18.0.0/24")
    return True


def test_every_address_answers_over_udp_and_tcp(server: Server) -> None:
    assert len(set(ADDRESSES)) == 512
    assert answered_everywhere(ADDRESSES)
    assert answered_everywhere(["198.51.100.53", "127.0.0.1", "::1"])
    assert ask(server.control, "status").data["events"]["unsent"] == 0


def test_reloads_and_dying_workers_keep_the_prefixes(server: Server) -> None:
    server.write(document(tell_name=True))
    assert ask(server.control, "reload").done
    assert answered_everywhere(ADDRESSES[::20])  # the same sockets: nothing to register
    for worker in ask(server.control, "status").data["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    assert answered_everywhere(ADDRESSES[::20])
    server.write(document(workers=3))
    assert ask(server.control, "reload").done
    server.register()
    assert answered_everywhere(ADDRESSES[::20])


def test_an_upgrade_keeps_the_prefixes(server: Server) -> None:
    before = server.pid()
    done = subprocess.run(
        [str(server.programs[1]), "dns", "upgrade", *server.at()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert server.pid() != before
    assert answered_everywhere(ADDRESSES[::20])
    server.register()  # of the process that serves now
    assert answered_everywhere(ADDRESSES[::20])


def test_without_the_setting_loopback_is_left_alone(server: Server) -> None:
    server.write(document(any_address=False))
    assert ask(server.control, "reload").done
    assert answered_everywhere(["198.51.100.53"])
    with pytest.raises(ConnectionRefusedError), client(ADDRESSES[0], socket.SOCK_STREAM):
        pass
