"""Attacks of unprivileged users on the activation service do not block registrations of root."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.fuse import unanswered_file
from support.sockets import Bed, activation, ask, listener, open_descriptors
from support.waiting import wait_until
from unmoor.bpf import libbpf
from unmoor.bpf.layout import KEY
from unmoor.sockets.activation import client, protocol
from unmoor.sockets.activation.protocol import Request, parse_reply

NOBODY = 65534


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load({"label": "web", "ports": [80]}, {"label": "user", "ports": [81], "users": ["nobody"]})
    return bed


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def service(bed: Bed, tmp_path: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    tmp_path.chmod(0o711)
    with log.open("w") as file, activation(bed.pins, tmp_path / "a.sock", log=file) as process:
        yield process


def register(tmp_path: Path, label: str = "web") -> protocol.Reply:
    """Root registers a socket of its own."""
    with listener(says="root") as sock:
        return client.send(tmp_path / "a.sock", Request("register", label), [sock.fileno()])


@contextmanager
def nobody(directory: Path, act: Callable[[], None]) -> Iterator[int]:
    """A process of user nobody whose working directory it cannot reach by a path; killed at the end."""
    directory.chmod(0o711)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            act()
            status = 0
        finally:
            os._exit(status)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def connect() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect("a.sock")
    return sock


def lingering(port: int) -> socket.socket:
    """A TCP socket whose last close(2) takes an hour: its peer does not read what it has sent."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sock


REQUESTS = {
    "not authorised": Request("register", "web").encode(),
    "authorised": Request("register", "user").encode(),
    "to unregister": Request("unregister", "user").encode(),
    "unknown service": Request("register", "nope").encode(),
    "no request": b"nonsense\n",
    "half a line": b'{"verb"',
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_socket_that_lingers_does_not_block_others(
    service: subprocess.Popen[str], tmp_path: Path, case: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reader:

        def send() -> None:
            sock = lingering(reader.getsockname()[1])
            for _ in range(4):
                client = connect()
                socket.send_fds(client, [REQUESTS[case]], [sock.fileno()])
            # Ends here, and so leaves the last copy to the service.

        with nobody(tmp_path, send) as pid:
            assert os.waitpid(pid, 0)[1] == 0
            for _ in range(3):
                assert register(tmp_path).ok
    assert service.poll() is None


@pytest.mark.parametrize("case", ["not authorised", "authorised"])
def test_a_fuse_file_does_not_block_others(
    service: subprocess.Popen[str], tmp_path: Path, log: Path, case: str
) -> None:
    mount = tmp_path / "fuse"
    mount.mkdir()
    with unanswered_file(mount):

        def send() -> None:
            file = os.open("fuse/file", os.O_RDONLY)
            for _ in range(4):
                client = connect()
                socket.send_fds(client, [REQUESTS[case]], [file])
                with suppress(TimeoutError):
                    client.settimeout(1)
                    client.recv(4096)

        with nobody(tmp_path, send):
            wait_until(lambda: "user id 65534" in log.read_text())
            for _ in range(3):
                assert register(tmp_path).ok
            assert "not a socket" in log.read_text() or case == "not authorised"
    assert service.poll() is None


def test_root_registers_while_others_fill_the_service(service: subprocess.Popen[str], tmp_path: Path) -> None:
    """Many connections, each with as many descriptors as a request may have, one by one."""
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (1024, 1024))

    def fill() -> None:
        held: list[socket.socket] = []
        number = 0
        file = os.open("/dev/null", os.O_RDONLY)
        while True:
            with suppress(OSError):
                held.append(connect())
                for _ in range(protocol.MAX_DESCRIPTORS):
                    socket.send_fds(held[-1], [b" "], [file])
            del held[:-200]
            number += 1
            if number == 100:
                os.write(begun, b"x")

    assert register(tmp_path).ok
    before = open_descriptors(service.pid)
    ready, begun = os.pipe()
    with nobody(tmp_path, fill), nobody(tmp_path, fill):
        os.read(ready, 1)
        os.read(ready, 1)
        assert [register(tmp_path).why for _ in range(20)] == [""] * 20
    os.close(ready)
    os.close(begun)
    wait_until(lambda: open_descriptors(service.pid) <= before)
    assert register(tmp_path).ok


def test_an_internal_error_costs_one_request(
    bed: Bed, service: subprocess.Popen[str], tmp_path: Path, log: Path
) -> None:
    path = bed.pins.current / "record"
    with libbpf.opened(path) as record:
        size = libbpf.map_info(record).value_size
        good = libbpf.lookup(record, KEY.pack(0), size) or b""
    for damaged in damages(good):
        _replace_record(path, damaged)
        reply = register(tmp_path)
        assert not reply.ok
        assert "Traceback" not in log.read_text()
    assert "internal error" in log.read_text()
    _replace_record(path, good)
    assert register(tmp_path).ok
    assert service.poll() is None


def damages(good: bytes) -> Iterator[bytes]:
    """Records that are not compressed or truncated, and one with a damaged document."""
    yield good[:4] + bytes(len(good) - 4)
    yield good[: len(good) // 2]
    plain = zlib.decompress(good[4:])
    at = plain.index(b'"label"')
    data = zlib.compress(plain[:at] + b"\xff" + plain[at + 1 :])
    yield len(data).to_bytes(4, "little") + data


def _replace_record(path: Path, data: bytes) -> None:
    path.unlink()
    with libbpf.closing(libbpf.create_map(libbpf.MAP_ARRAY, "record", KEY.size, len(data), 1)) as record:
        libbpf.update(record, KEY.pack(0), data)
        libbpf.pin(record, path)


def test_the_watchdog_hears_of_a_service_that_is_attacked(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        with activation(bed.pins, tmp_path / "a.sock"), socket.create_server(("127.0.0.1", 0)) as reader:

            def send() -> None:
                client, sock = connect(), lingering(reader.getsockname()[1])
                socket.send_fds(client, [REQUESTS["not authorised"]], [sock.fileno()])
                os._exit(0)  # leaves the last copy to the service

            with nobody(tmp_path, send) as pid:
                os.waitpid(pid, 0)
                heard = [systemd.recv(4096) for _ in range(6)]
    assert heard[0].startswith(b"READY=1")
    assert heard[1:] == [b"WATCHDOG=1"] * 5


def test_a_refused_peer_reads_why(service: subprocess.Popen[str], tmp_path: Path) -> None:
    def send() -> None:
        with connect() as client, socket.create_server(("127.0.0.1", 0)) as sock:
            socket.send_fds(client, [REQUESTS["not authorised"]], [sock.fileno()])
            reply = parse_reply(client.recv(4096))
            assert "user id 65534 may not register 'web'" in reply.why
            with suppress(ConnectionResetError):
                assert client.recv(4096) == b""

    with nobody(tmp_path, send) as pid:
        assert os.waitpid(pid, 0)[1] == 0


def test_an_authorised_user_registers(bed: Bed, service: subprocess.Popen[str], tmp_path: Path) -> None:
    with listener(says="nobody's") as sock:

        def send() -> None:
            with connect() as client:
                socket.send_fds(client, [REQUESTS["authorised"]], [sock.fileno()])
                assert json.loads(client.recv(4096))["ok"]

        with nobody(tmp_path, send) as pid:
            assert os.waitpid(pid, 0)[1] == 0
        assert ask("198.18.1.1", 81).startswith("nobody's")
