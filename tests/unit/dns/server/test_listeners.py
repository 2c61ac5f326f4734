"""The server's sockets: the size of their buffers, and that they outlive the server."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.message
import pytest

from support.dns_document import document
from support.dns_release import Release, Upgradable, alive
from support.dns_server import Running, free_port, running
from support.program import UNMOOR
from support.waiting import wait_until
from unmoor.dns.server.control import borrow
from unmoor.udp import BUFFER, enlarge_buffers

QUERY = dns.message.make_query("host0.example.com", "A").to_wire()
#: Queries that wait at once: a sixth of them fill a buffer of 212,992 octets, Debian's limit.
WAITING = 3_000
DEBIAN_LIMIT = 212_992


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start servers as the unit does, without CAP_NET_ADMIN."""
    bounds = ("--bounding-set=-net_admin", "--inh-caps=-net_admin")
    monkeypatch.setattr("support.dns_server.UNMOOR", ("setpriv", *bounds, *UNMOOR))


def command(server: Running, *words: str) -> subprocess.CompletedProcess[str]:
    """`unmoor dns`, as root."""
    return subprocess.run(
        [shutil.which("unmoor") or "unmoor", "dns", *words, "--control", str(server.control)],
        capture_output=True,
        text=True,
        check=False,
    )


def shrink(server: Running) -> None:
    """Shrink buffers of the server's sockets to Debian's defaults; this computer's may be larger."""
    for sock in borrow(server.control):
        with sock:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, DEBIAN_LIMIT)


def answered_after_a_pause(server: Running) -> int:
    """Send queries while no worker runs, as between two of them; returns the number of answers afterwards."""
    workers = server.workers()
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        enlarge_buffers(client)
        client.connect(("127.0.0.1", server.port))
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        for _ in range(WAITING):
            client.send(QUERY)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        return _count(client, WAITING)


def _count(client: socket.socket, wanted: int) -> int:
    """Count replies until all have arrived, or none does for a while."""
    count = 0
    while count < wanted and select.select([client], (), (), 3)[0]:
        client.recv(4096)
        count += 1
    return count


@pytest.mark.usefixtures("ordinary")
def test_what_arrives_during_a_reload_waits(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as server:
        shrink(server)
        assert server.status()["buffers"] == {"receive": DEBIAN_LIMIT, "send": DEBIAN_LIMIT}
        assert "fix: systemctl reload" in command(server, "status").stdout
        before = answered_after_a_pause(server)
        done = command(server, "buffers")
        assert (done.returncode, done.stdout) == (0, "UDP buffers: receive 4,194,304, send 4,194,304\n")
        after = answered_after_a_pause(server)
        print(f"of {WAITING} that arrived in a pause, answered: {before}, with large buffers {after}")
        assert before < WAITING
        assert after == WAITING
        assert "net.core" not in command(server, "status").stdout
        assert (
            'unmoor_dns_socket_buffer_bytes{direction="receive"} 4.194304e+06'
            in command(server, "status", "--metrics").stdout.splitlines()
        )


@pytest.mark.usefixtures("ordinary")
def test_a_reload_by_root_enlarges_the_sockets_that_it_adds(tmp_path: Path) -> None:
    with running(tmp_path, listen=["127.0.0.1"]) as server:
        assert command(server, "reload").returncode == 0
        server.write({**server.data, "listen": ["127.0.0.1", "127.0.0.2", "::1"], "workers": 3})
        assert server.reload().done
        shrink(server)
        assert command(server, "reload").returncode == 0
        assert server.status()["buffers"] == {"receive": BUFFER, "send": BUFFER}
        assert not server.status()["shortage"]


def test_more_sockets_than_one_message_carries(tmp_path: Path) -> None:
    addresses = [f"127.0.0.{last}" for last in range(1, 121)]
    with running(tmp_path, listen=addresses, workers=2) as server:
        assert command(server, "buffers").returncode == 0


class Systemd(threading.Thread):
    """Systemd's side of a service with a file descriptor store."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.path = directory / "notify"
        self.socket.bind(str(self.path))
        self.store: dict[str, int] = {}

    def run(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 4)
            if message == b"end":
                return
            fields = dict(line.split("=", 1) for line in message.decode().splitlines())
            if "FDSTORE" in fields and fields["FDPOLL"] == "0":
                if fields["FDNAME"] in self.store:  # the same file, of which it keeps one
                    os.close(descriptors[0])
                else:
                    self.store[fields["FDNAME"]] = descriptors[0]
            elif "FDSTOREREMOVE" in fields:
                os.close(self.store.pop(fields["FDNAME"]))

    def addresses(self) -> set[str]:
        """Addresses of the stored sockets."""
        return {name.rsplit("-", 1)[1].replace("_", ":") for name in list(self.store)}

    def launcher(self, path: Path) -> str:
        """Write a program that passes the stored descriptors; returns its path."""
        moves = " ".join(f"{at}<&{100 + at}" for at in range(3, 3 + len(self.store)))
        path.write_text(
            f"#!/bin/bash\nexec {moves}\nexport LISTEN_PID=$$ LISTEN_FDS={len(self.store)} "
            f"LISTEN_FDNAMES={':'.join(self.store)}\n"
            f'exec {sys.executable} -c "from unmoor.commands import main; main()" "$@"\n'
        )
        path.chmod(0o755)
        for at, descriptor in enumerate(self.store.values()):
            os.dup2(descriptor, 103 + at)
        return str(path)

    def close(self) -> None:
        self.socket.connect(str(self.path))
        self.socket.send(b"end")
        self.join()
        for descriptor in self.store.values():
            os.close(descriptor)
        self.socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    found = Systemd(tmp_path)
    found.start()
    monkeypatch.setenv("NOTIFY_SOCKET", str(found.path))
    yield found
    found.close()


@contextmanager
def started_anew(directory: Path, data: dict[str, Any], program: str, count: int) -> Iterator[Running]:
    """Start a server with descriptors 103 and so on, as the launcher expects."""
    passed = tuple(range(103, 103 + count))
    original = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, pass_fds=passed, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.dns_server.subprocess.Popen", popen)
        server = Running(directory, data, program)
    for descriptor in passed:
        os.close(descriptor)
    try:
        yield server.wait()
    finally:
        server.stop()


def test_what_arrives_while_the_server_is_dead_waits(tmp_path: Path, systemd: Systemd) -> None:
    data = document(port=free_port())
    server = Running(tmp_path, data)
    server.wait()
    # A UDP and a TCP socket for each of two addresses and two workers.
    wait_until(lambda: len(systemd.store) == 8)
    workers = server.workers()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(alive(pid) for pid in workers))
    with socket.socket(type=socket.SOCK_DGRAM) as client, socket.socket() as stream:
        client.connect(("127.0.0.1", server.port))
        for _ in range(100):
            client.send(QUERY)
        stream.connect(("127.0.0.1", server.port))  # refused unless a server listens
        # The document changes meanwhile: one address is removed, another is added.
        changed = {**data, "listen": ["127.0.0.1", "127.0.0.2"]}
        program = systemd.launcher(tmp_path / "again")
        with started_anew(tmp_path, changed, program, len(systemd.store)):
            answers = _count(client, 100)
            print(f"of 100 that arrived while the server was dead, answered: {answers}")
            assert answers == 100
            stream.sendall(len(QUERY).to_bytes(2, "big") + QUERY)
            assert stream.recv(4096)
            wait_until(lambda: systemd.addresses() == {"127.0.0.1", "127.0.0.2"})


def test_reloads_update_the_sockets_that_systemd_keeps(tmp_path: Path, systemd: Systemd) -> None:
    with running(tmp_path) as server:
        wait_until(lambda: systemd.addresses() == {"127.0.0.1", "::1"})
        server.write({**server.data, "listen": ["::1", "127.0.0.2"]})
        assert server.reload().done
        wait_until(lambda: systemd.addresses() == {"127.0.0.2", "::1"})


def test_an_upgrade_keeps_the_store(tmp_path: Path, systemd: Systemd) -> None:
    server = Upgradable(tmp_path, document(port=free_port()), str(Release(tmp_path, "1.0").program)).wait()
    try:
        wait_until(lambda: systemd.addresses() == {"127.0.0.1", "::1"})
        server.write({**server.data, "listen": ["::1", "127.0.0.2"]})
        done = Release(tmp_path, "2.0").upgrade(server)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: systemd.addresses() == {"127.0.0.2", "::1"})
    finally:
        server.stop()
