"""A DNS server on loopback, and its clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode

from support.dns_document import document
from support.program import UNMOOR
from unmoor.dns.server import control


def free_port() -> int:
    """A port that is free for UDP and TCP on 127.0.0.1 and ::1."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET6, kind) as other:
                        other.bind(("::1", port))
            except OSError:
                continue
            return port


class Running:
    """A server as a separate process."""

    def __init__(self, directory: Path, data: dict[str, Any], program: str = "") -> None:
        """`program` is the path of a release's `unmoor`; by default this checkout's code runs."""
        command = [program] if program else UNMOOR
        self.data = data
        self.port: int = data["port"]
        self.config = directory / "dns.json"
        self.control = directory / "control.sock"
        self.state = directory
        self.log = directory / "log"
        self.write(data)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(*command, "dns", "serve"),
                    *("--config", str(self.config), "--control", str(self.control)),
                    *("--state", str(self.state)),
                ],
                stderr=log,
            )

    def write(self, data: dict[str, Any]) -> None:
        self.data = data
        fresh = self.config.with_suffix(".new")
        fresh.write_text(json.dumps(data))
        fresh.rename(self.config)

    def wait(self) -> Running:
        """Return once the server serves."""
        deadline = time.monotonic() + 60
        while "serving" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self

    def until(self, said: str) -> str:
        """Wait until the log contains `said`; returns the log."""
        deadline = time.monotonic() + 60
        while said not in (log := self.log.read_text()):
            assert time.monotonic() < deadline, log
            time.sleep(0.02)
        return log

    def reload(self) -> control.Reply:
        return control.ask(self.control, "reload")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = control.ask(self.control, "status").data
        return found

    def workers(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    def stop(self) -> int:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def running(directory: Path, **changes: Any) -> Iterator[Running]:
    """Run a server of the small document on a free port; it is gone afterwards."""
    server = Running(directory, document(**{"port": free_port(), **changes}))
    try:
        yield server.wait()
    finally:
        server.stop()


def ask(server: Running, name: str, rtype: str = "TXT", **options: Any) -> dns.message.Message:
    query = dns.message.make_query(name, rtype, use_edns=0, **options)
    return dns.query.udp(query, "127.0.0.1", 5, server.port)


def answer(server: Running, name: str, rtype: str = "TXT") -> str:
    """The data of the answer's first record, or the response code."""
    reply = ask(server, name, rtype)
    return reply.answer[0][0].to_text() if reply.answer else dns.rcode.to_text(reply.rcode())


def connect(server: Running, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, server.port), timeout=10)


def framed(packet: bytes) -> bytes:
    return struct.pack("!H", len(packet)) + packet


def read_framed(stream: socket.socket) -> bytes:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = stream.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    return exactly(struct.unpack("!H", exactly(2))[0])


def address_in(reply: bytes) -> object:
    return ip_address(dns.message.from_wire(reply).answer[0][0].address)
