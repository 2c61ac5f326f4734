"""Helpers for the sockets half: a loaded table, listeners, clients."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.program import UNMOOR
from support.waiting import wait_until
from unmoor.bpf.pins import Pins
from unmoor.model import EdgeDocument
from unmoor.sockets.activation.descriptors import SocketInfo
from unmoor.sockets.activation.protocol import Request
from unmoor.sockets.activation.registrar import Peer, Registrar
from unmoor.sockets.dispatch import generation
from unmoor.sockets.dispatch.generation import Change
from unmoor.sockets.observe.status import Destination, read_status

PREFIXES = ("198.18.0.0/20", "2001:db8::/44")
ROOT_PEER = Peer(0, 0, frozenset())


def make_local(*prefixes: str) -> None:
    for prefix in prefixes or PREFIXES:
        family = "-6" if ":" in prefix else "-4"
        subprocess.run(["ip", family, "route", "replace", "local", prefix, "dev", "lo"], check=True)


def document(*services: dict[str, Any], prefixes: Sequence[str] = PREFIXES) -> EdgeDocument:
    return EdgeDocument.model_validate(
        {"pop": "ams", "edge": "edge1", "prefixes": prefixes, "services": services}
    )


@dataclass
class Bed:
    """A directory of pins and a program, with methods to load documents and register sockets."""

    pins: Pins
    code: bytes

    def load(self, *services: dict[str, Any], prefixes: Sequence[str] = PREFIXES) -> Change:
        return generation.load(document(*services, prefixes=prefixes), self.code, self.pins)

    def register(self, service: str, *sockets: socket.socket) -> tuple[SocketInfo, ...]:
        registry = Registrar(self.pins)
        return registry.handle(Request("register", service), [each.fileno() for each in sockets], ROOT_PEER)

    def unregister(self, service: str) -> None:
        Registrar(self.pins).handle(Request("unregister", service), [], ROOT_PEER)

    def count(self, service: str, protocol: str = "tcp", family: int = 4) -> Destination:
        destinations = read_status(self.pins).destinations
        wanted = (service, protocol, family)
        return next(each for each in destinations if (each.service, each.protocol, each.family) == wanted)


@contextmanager
def listener(
    address: str = "127.0.0.1", says: str = "", port: int = 0, **options: Any
) -> Iterator[socket.socket]:
    """A TCP server that sends `says`, and the address and port that the client dialled."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family, **options) as server:
        threading.Thread(target=_serve, args=(server, says), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown(socket.SHUT_RDWR)


def _serve(server: socket.socket, says: str) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            host, port, *_ = client.getsockname()
            client.sendall(f"{says} {host} {port}".encode())


def ask(address: str, port: int) -> str:
    """Return what the server at this address sends. Raises ConnectionRefusedError."""
    with socket.create_connection((address, port), timeout=5) as client:
        text = b""
        while more := client.recv(4096):
            text += more
        return text.decode()


def refuses(address: str, port: int) -> bool:
    try:
        ask(address, port)
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def activation(pins: Pins, path: Path, log: Any = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Run `unmoor sockets serve` as a separate process."""
    process = subprocess.Popen(
        [*UNMOOR, "sockets", "serve", "--pins", str(pins.root), "--socket", str(path)],
        stderr=log,
        text=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or _listens(process.pid, path))
        yield process
    finally:
        process.kill()
        process.communicate()


def _listens(pid: int, path: Path) -> bool:
    """Report whether the socket at `path` is ready; its path exists a moment earlier."""
    lines = Path(f"/proc/{pid}/net/unix").read_text(encoding="utf-8").splitlines()
    return any(
        line.split()[3] == "00010000" and line.endswith(f" {path}") for line in lines[1:]
    )  # SO_ACCEPTCON


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
