"""`unmoor sockets register --follow`: a server that reloads by new sockets stays registered."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import control_group
from support.program import UNMOOR, run
from support.sockets import Bed, activation, ask, refuses
from support.waiting import wait_until

WEB = {"label": "web", "ports": [80], "protocols": ["tcp", "udp"]}
ADDRESS = "198.18.1.1"

# At SIGHUP it opens a new socket of each kind, then closes the old one, and writes the number of reloads. At
# SIGUSR1 it opens a new one and closes that, as if the reload had failed.
SERVER = """
import os, signal, socket, sys
def opened(kind):
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 8000))
    return sock
def reload():
    global tcp, udp, count
    new = opened(socket.SOCK_STREAM)
    new.listen(1024)
    new.settimeout(0.02)
    tcp, old = new, tcp
    if old:
        old.close()
    if "udp" in sys.argv:
        udp = opened(socket.SOCK_DGRAM)
    count += 1
    open(sys.argv[1] + ".new", "w").write(str(count))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
def fail(*_):
    new = opened(socket.SOCK_STREAM)
    new.listen(1024)
    new.close()
    open(sys.argv[1] + ".failed", "w").close()
signal.signal(signal.SIGUSR1, fail)
tcp = udp = None
count, wanted = -1, 0
def more(*_):
    global wanted
    wanted += 1
signal.signal(signal.SIGHUP, more)
while True:
    while count < wanted:
        reload()
    try:
        client, _ = tcp.accept()
        client.sendall(b"%d" % count)
        client.close()
    except TimeoutError:
        pass
"""


class Server:
    """The server in a control group of its own."""

    def __init__(self, directory: Path, group: Path, *options: str) -> None:
        self._count = directory / "count"
        self.process = subprocess.Popen(
            [*control_group.entering(group), sys.executable, "-c", SERVER, str(self._count), *options]
        )
        wait_until(lambda: self.reloads() == 0)

    def reloads(self) -> int:
        return int(self._count.read_text()) if self._count.exists() else -1

    def reload(self) -> None:
        before = self.reloads()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.reloads() == before + 1)


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(WEB)
    return bed


@pytest.fixture
def sock_path(tmp_path: Path, bed: Bed) -> Iterator[Path]:
    path = tmp_path / "activation.sock"
    with activation(bed.pins, path):
        yield path


@pytest.fixture
def server(tmp_path: Path, group: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(tmp_path, group, *options))
        return servers[-1]

    yield start
    for each in servers:
        each.process.kill()
        each.process.wait()


LISTEN = ("--listen", "127.0.0.1:8000")


@contextmanager
def follower(bed: Bed, sock_path: Path, pid: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [*UNMOOR, "sockets", "register", "web", "--follow", "--pid", str(pid), *LISTEN, *options]
    command += ["--socket", str(sock_path), "--pins", str(bed.pins.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline(), process.communicate()[1]
            yield process
        finally:
            process.kill()


def sockets(bed: Bed, protocol: str = "tcp") -> tuple[int, ...]:
    return bed.count("web", protocol).sockets


def idle(bed: Bed, follower: int) -> bool:
    """Whether the follower has filled its slots and waits. While it does, it holds a copy of the listener.

    Stopped then, it keeps the listener open, and the kernel gives connections to any of a SO_REUSEPORT group.
    """
    filled = len(sockets(bed)) > 1
    return filled and "poll" in Path(f"/proc/{follower}/wchan").read_text()


def test_without_following_a_reload_ends_a_registration(
    bed: Bed, sock_path: Path, server: Callable[..., Server]
) -> None:
    started = server()
    done = run(
        "sockets", "register", "web", "--pid", str(started.process.pid), *LISTEN, "--socket", str(sock_path)
    )
    assert done.returncode == 0, done.stderr
    assert ask(ADDRESS, 80) == "0"
    started.reload()
    assert refuses(ADDRESS, 80)


def test_a_new_listener_is_registered_before_the_old_one_closes(
    bed: Bed, sock_path: Path, server: Callable[..., Server]
) -> None:
    started = server()
    with follower(bed, sock_path, started.process.pid) as process:
        wait_until(lambda: idle(bed, process.pid))
        process.send_signal(signal.SIGSTOP)  # the kernel does it, not this process
        for number in range(1, 20):  # more often than there are slots
            started.reload()
            assert ask(ADDRESS, 80) == str(number)
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(set(sockets(bed))) == 1)  # perhaps in several slots
        assert ask(ADDRESS, 80) == "19"


def test_a_reload_that_fails_leaves_the_old_listener(
    bed: Bed, sock_path: Path, server: Callable[..., Server], tmp_path: Path
) -> None:
    started = server()
    with follower(bed, sock_path, started.process.pid):
        started.reload()
        started.process.send_signal(signal.SIGUSR1)
        wait_until((tmp_path / "count.failed").exists)
        wait_until(lambda: not refuses(ADDRESS, 80))
        assert ask(ADDRESS, 80) == "1"


def test_no_connection_is_refused_while_a_server_reloads(
    bed: Bed, sock_path: Path, server: Callable[..., Server]
) -> None:
    started = server()
    answered, refused = [], []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                answered.append(ask(ADDRESS, 80))
            except ConnectionRefusedError as error:
                refused.append(error)
            except OSError:  # it was in the queue of the socket that the server has closed
                pass

    with follower(bed, sock_path, started.process.pid):
        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        for number in range(1, 11):
            started.reload()
            wait_until(lambda number=number: answered[-1:] == [str(number)])
        done.set()
        for client in clients:
            client.join()
    assert not refused
    assert set(answered) | {"0"} == {str(number) for number in range(11)}  # 0: if it was fast enough


def test_tcp_and_udp_of_one_process(bed: Bed, sock_path: Path, server: Callable[..., Server]) -> None:
    started = server("udp")
    with follower(bed, sock_path, started.process.pid, "--protocol", "tcp", "--protocol", "udp"):
        wait_until(lambda: sockets(bed))
        before = sockets(bed, "udp")
        assert len(set(before)) == 1
        started.reload()
        wait_until(lambda: sockets(bed, "udp") and sockets(bed, "udp") != before)
        assert ask(ADDRESS, 80) == "1"


def test_it_follows_into_another_table(bed: Bed, sock_path: Path, server: Callable[..., Server]) -> None:
    started = server()
    with follower(bed, sock_path, started.process.pid) as process:
        assert ask(ADDRESS, 80) == "0"
        assert run("sockets", "unload", "--pins", str(bed.pins.root)).returncode == 0
        bed.load({"label": "aaa", "ports": [81]}, WEB)
        wait_until(lambda: idle(bed, process.pid))
        process.send_signal(signal.SIGSTOP)
        started.reload()
        assert ask(ADDRESS, 80) == "1"
        assert bed.count("aaa").sockets == ()


def test_other_sockets_are_left_alone(
    bed: Bed, sock_path: Path, server: Callable[..., Server], group: Path
) -> None:
    started = server()
    other = 'import socket, sys, time; s = socket.create_server(("127.0.0.1", int(sys.argv[1])));'
    other += "print(1, flush=True); time.sleep(600)"
    enter = control_group.entering(group)
    elsewhere = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    with follower(bed, sock_path, started.process.pid):
        wait_until(lambda: sockets(bed))
        before = set(sockets(bed))  # the follower may still be filling a second slot
        for prefix, port in ((enter, 8001), ([*enter, *elsewhere], 8000)):
            command = [*prefix, sys.executable, "-c", other, str(port)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                try:
                    assert process.stdout
                    assert process.stdout.readline()
                    assert set(sockets(bed)) == before
                finally:
                    process.kill()


def test_it_ends_with_the_process(bed: Bed, sock_path: Path, server: Callable[..., Server]) -> None:
    started = server()
    with follower(bed, sock_path, started.process.pid) as process:
        started.process.kill()
        started.process.wait()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0
        assert errors == f"unmoor: web: process {started.process.pid} has ended\n"


def test_a_process_without_a_control_group_is_refused(bed: Bed, sock_path: Path) -> None:
    # In a namespace of control groups, the group in which it was made is the root.
    command = ["unshare", "--cgroup", *UNMOOR, "sockets", "register", "web", "--follow", *LISTEN]
    command += ["--pid", str(os.getpid()), "--socket", str(sock_path), "--pins", str(bed.pins.root)]
    with socket.create_server(("127.0.0.1", 8000)):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is in the root control group" in done.stderr
    assert "fix: " in done.stderr
