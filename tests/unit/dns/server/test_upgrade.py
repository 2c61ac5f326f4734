"""A new release takes the running server over: real releases, real processes, real sockets, under load."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import dns.edns
import dns.message
import dns.query
import pytest

from support.dns_document import document, with_pool
from support.dns_release import Release, Upgradable, alive
from support.dns_server import Running, address_in, connect, framed, free_port, read_framed
from support.waiting import wait_until

QUERY = dns.message.make_query("host0.example.com", "A").to_wire()
POOL = ip_network("198.18.0.0/20")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Upgradable]:
    first = Release(tmp_path, "1.0")
    running = Upgradable(tmp_path, document(port=free_port()), program=str(first.program))
    try:
        yield running.wait()
    finally:
        running.stop()


class Load(threading.Thread):
    """Keeps some queries in flight; missing and unexpected replies are errors."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.enough = False
        self.answered = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.connect(("127.0.0.1", self._port))
                while not self.enough:
                    self._round(sock)
        except Exception as error:
            self.wrong.append(repr(error))

    def _round(self, sock: socket.socket) -> None:
        asked = {struct.pack("!H", (self.answered + at) & 0xFFFF) for at in range(32)}
        for ident in asked:
            sock.send(ident + QUERY[2:])
        for _ in range(32):
            reply = sock.recv(4096)
            asked.remove(reply[:2])
            if reply[2:4] != b"\x85\x00" or ip_address(reply[-4:]) not in POOL:
                self.wrong.append(reply.hex())
        self.answered += 32


@contextlib.contextmanager
def loaded(server: Running) -> Iterator[list[Load]]:
    """Clients that query all the time; at the end, checks that no reply was lost or wrong."""
    loads = [Load(server.port) for _ in range(3)]
    for load in loads:
        load.start()
    try:
        yield loads
    finally:
        for load in loads:
            load.enough = True
        for load in loads:
            load.join()
    assert [load.wrong for load in loads] == [[]] * len(loads)
    assert all(load.answered for load in loads)


def ask_over(stream: socket.socket) -> object:
    stream.sendall(framed(QUERY))
    return address_in(read_framed(stream))


# -- what works ------------------------------------------------------------------------------------------


def test_twenty_upgrades_lose_nothing(server: Upgradable, tmp_path: Path) -> None:
    releases = [Release(tmp_path, "2.0"), Release(tmp_path, "3.0")]
    pids = {server.process.pid}
    with loaded(server) as loads, connect(server) as stream:
        asked = 0
        for number in range(20):
            release = releases[number % 2]
            # In the middle of a query, after others whose answers are unread.
            stream.sendall(framed(QUERY) * 50 + framed(QUERY)[:9])
            done = release.upgrade(server)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(
                f"release {release.version} in force: generation {number + 2} on 2 workers"
            )
            stream.sendall(framed(QUERY)[9:])
            assert all(address_in(read_framed(stream)) in POOL for _ in range(51))
            asked += 51
            status = server.status()
            assert status["release"] == release.version
            assert status["generation"] == number + 2
            pids.add(status["pid"])
    assert len(pids) == 21
    wait_until(lambda: not any(alive(pid) for pid in pids - {server.status()["pid"]}))
    # Each release continues the counts of the one before it.
    total = sum(load.answered for load in loads) + asked
    status = server.status()
    assert status["policies"]["free"] == status["rcodes"]["NOERROR"] == total
    assert status["events"]["tcp_queries"] == asked


def test_an_upgrade_to_what_runs_changes_nothing(server: Upgradable, tmp_path: Path) -> None:
    release = Release(tmp_path, "2.0")
    assert release.upgrade(server).returncode == 0
    before = server.status()["pid"]
    again = release.upgrade(server)
    assert again.returncode == 0
    assert again.stdout == f"no change: {release.program} is in force\n"
    assert server.status()["pid"] == before


def test_the_document_on_disk_comes_into_force_with_it(server: Upgradable, tmp_path: Path) -> None:
    changed = with_pool(server.data, "198.18.7.7/32")
    server.write({**changed, "listen": ["127.0.0.1"], "workers": 3})
    with connect(server) as stream:
        assert Release(tmp_path, "2.0").upgrade(server).returncode == 0
        assert str(ask_over(stream)) == "198.18.7.7"
    assert len(server.workers()) == 3
    on_disk = hashlib.sha256(server.config.read_bytes()).hexdigest()
    assert {worker["document"] for worker in server.status()["workers"]} == {on_disk}
    with pytest.raises(ConnectionRefusedError):
        connect(server, "::1")


def test_it_lives_on_as_any_server_does(server: Upgradable, tmp_path: Path) -> None:
    assert Release(tmp_path, "2.0").upgrade(server).returncode == 0
    server.write(with_pool(server.data, "198.18.7.7/32"))
    assert server.reload().lines[-1] == "generation 3 in force on 2 workers"
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: before[0] not in server.workers() and len(server.workers()) == 2)
    pid, workers = server.status()["pid"], server.workers()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not alive(pid))
    assert not server.control.exists()
    assert not any(alive(each) for each in workers)


def test_cookies_stay_valid(server: Upgradable, tmp_path: Path) -> None:
    """Also for a document without a secret, where each server generates its own."""

    def cookie(sent: bytes) -> bytes:
        query = dns.message.make_query(
            "host0.example.com", "A", options=[dns.edns.CookieOption(b"8octets!", sent)]
        )
        reply = dns.query.udp(query, "127.0.0.1", 5, server.port)
        found = reply.options[0]
        assert isinstance(found, dns.edns.CookieOption)
        return found.server

    before = cookie(b"")
    assert Release(tmp_path, "2.0").upgrade(server).returncode == 0
    assert cookie(before) == before


def test_systemd_learns_the_main_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(20)
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        first = Release(tmp_path, "1.0")
        server = Upgradable(tmp_path, document(port=free_port()), program=str(first.program)).wait()
        try:
            while (first_said := systemd.recv(4096)).startswith(b"FDSTORE=1\n"):
                pass
            assert first_said.startswith(b"READY=1\n")
            asking = threading.Thread(target=Release(tmp_path, "2.0").upgrade, args=(server,))
            asking.start()
            assert systemd.recv(4096).startswith(b"RELOADING=1\n")
            lines = systemd.recv(4096).decode().splitlines()
            assert lines[:2] == [f"MAINPID={server.status()['pid']}", "READY=1"]
            assert lines[2].startswith("STATUS=release 2.0 in force: generation 2 on 2 workers")
            message, descriptors, _, _ = socket.recv_fds(systemd, 4096, 4)
            assert message == b"BARRIER=1"
            assert server.process.poll() is None  # it waits for systemd
            for each in descriptors:
                os.close(each)
            server.process.wait(5)
            asking.join()
        finally:
            server.stop()


# -- what is broken --------------------------------------------------------------------------------------

BUILD = "        snapshot = build("
OFFER = "        for place in predecessor.offer("
BEGIN = "            self._pool.adopt(started[place])\n        totals"
KEY = "raise KeyError(7)"
KILL = "import os; os.kill(os.getpid(), 9)"
# What is written into which file, before which line, and the message for the operator.
BROKEN = {
    "import error": (
        "dns/server/server.py",
        "import logging",
        "import no_such_module",
        "No module named 'no_such_module'",
    ),
    "syntax error": ("dns/server/worker.py", "import select", "import (", "SyntaxError"),
    "crash while building": ("dns/server/reloader.py", BUILD, KEY, "KeyError: 7"),
    "crash of a worker": (
        "dns/server/worker.py",
        "        self._parent.send(READY)",
        KEY,
        "worker 0 did not start",
    ),
    "killed while building": ("dns/server/reloader.py", BUILD, KILL, "status -9"),
    "killed before its workers": ("dns/server/handover.py", "        started = [\n", KILL, "status -9"),
    "killed when they stand by": ("dns/server/handover.py", OFFER, KILL, "status -9"),
    "killed at the first place": ("dns/server/handover.py", BEGIN, KILL, "status -9"),
    "killed when all is its own": (
        "dns/server/handover.py",
        "        totals, state.restarts",
        KILL,
        "status -9",
    ),
    "killed before its last word": (
        "dns/server/handover.py",
        "        predecessor.in_force(",
        KILL,
        "status -9",
    ),
    "reads another format": (
        "dns/server/upgrade.py",
        "        if found.get(",
        "found.clear()",
        "restart it instead",
    ),
    "says nonsense": (
        "dns/server/upgrade.py",
        "        for place, inh",
        "self.channel.send(b'{')",
        "stopped responding",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_release_changes_nothing(server: Upgradable, tmp_path: Path, how: str) -> None:
    file, line, fault, reason = BROKEN[how]
    indent = line[: len(line) - len(line.lstrip())]
    broken = Release(tmp_path, "2.0").replace(file, line, f"{indent}{fault}\n{line}")
    with loaded(server):
        refused = broken.upgrade(server)
        assert refused.returncode == 1, refused
        assert reason in refused.stderr
        assert "the old release stays in force" in refused.stderr
    status = server.status()
    assert status["pid"] == server.process.pid
    assert (status["release"], status["generation"]) == ("1.0", 1)
    assert len(status["workers"]) == 2
    assert status["refused"].startswith("upgrade: ")
    # None of its processes is left, and a good release still gets in.
    assert not any(str(broken.program) in line for line in commands())
    assert Release(tmp_path, "3.0").upgrade(server).returncode == 0
    assert server.status()["release"] == "3.0"


def commands() -> Iterator[str]:
    for each in Path("/proc").iterdir():
        if each.name.isdecimal() and alive(int(each.name)):
            with contextlib.suppress(OSError):
                yield (each / "cmdline").read_text().replace("\0", " ")


def test_a_wrong_document_is_no_time_for_an_upgrade(server: Upgradable, tmp_path: Path) -> None:
    server.config.write_text("{")
    refused = Release(tmp_path, "2.0").upgrade(server)
    assert refused.returncode == 1
    assert "is not JSON" in refused.stderr
    assert server.status()["release"] == "1.0"


def test_a_release_that_is_slow_is_waited_for_and_others_are_served(
    server: Upgradable, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    wait = f"        while not Path({str(ready)!r}).exists():\n            time.sleep(0.05)\n"
    slow = Release(tmp_path, "2.0").replace(
        "dns/server/reloader.py", "        snapshot = build(", f"{wait}        snapshot = build("
    )
    asking = threading.Thread(target=slow.upgrade, args=(server,))
    asking.start()
    wait_until(lambda: "preparing" in server.log.read_text())
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)  # replaced as ever
    wait_until(lambda: before[0] not in server.workers() and len(server.workers()) == 2)
    second = Release(tmp_path, "3.0").upgrade(server)
    assert second.returncode == 1
    assert "is under way" in second.stderr
    reload = server.reload()
    assert not reload.done
    assert "is under way" in reload.lines[0]
    ready.touch()
    asking.join()
    assert server.status()["release"] == "2.0"
    assert server.status()["restarts"] == 1


def test_a_server_that_stops_takes_the_unfinished_upgrade_with_it(server: Upgradable, tmp_path: Path) -> None:
    slow = Release(tmp_path, "2.0").replace(
        "dns/server/reloader.py",
        "        snapshot = build(",
        "        time.sleep(60)\n        snapshot = build(",
    )
    asking = threading.Thread(target=slow.upgrade, args=(server,))
    asking.start()
    wait_until(lambda: "preparing" in server.log.read_text())
    assert Running.stop(server) == 0
    asking.join()
    wait_until(lambda: not any(str(slow.program) in line and "--resume" in line for line in commands()))


def test_what_runs_is_not_what_the_link_leads_to_later(tmp_path: Path) -> None:
    first, second = Release(tmp_path, "1.0"), Release(tmp_path, "2.0")
    current = tmp_path / "current"
    current.symlink_to("1.0")
    server = Upgradable(tmp_path, document(port=free_port()), program=f"{current}/bin/unmoor").wait()
    try:
        assert server.status()["program"] == str(first.program)
        current.unlink()
        current.symlink_to("2.0")
        done = subprocess.run(
            [f"{current}/bin/unmoor", "dns", "upgrade", "--control", str(server.control)],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert server.status()["program"] == str(second.program)
        assert server.status()["release"] == "2.0"
    finally:
        server.stop()


@pytest.mark.parametrize("program", ["", "unmoor", "/nowhere/unmoor", "/usr"])
def test_what_is_no_program_is_refused(server: Upgradable, program: str) -> None:
    from unmoor.dns.server.control import ask

    reply = ask(server.control, "upgrade", program)
    assert not reply.done
    assert program in reply.lines[0]
    assert server.status()["pid"] == server.process.pid


def test_a_server_that_is_too_old_has_its_own_exit_status(tmp_path: Path) -> None:
    first = Release(tmp_path, "1.0").replace(
        "dns/server/requests.py", '            "program": _PROGRAM,\n', ""
    )
    server = Upgradable(tmp_path, document(port=free_port()), program=str(first.program)).wait()
    try:
        done = Release(tmp_path, "2.0").upgrade(server)
        assert done.returncode == 3
        assert "restart it" in done.stderr
    finally:
        server.stop()


def test_no_descriptor_is_left_behind(server: Upgradable, tmp_path: Path) -> None:
    def descriptors() -> Counter[str]:
        found = Counter[str]()
        for each in Path(f"/proc/{server.status()['pid']}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                found[str(each.readlink()).split(":")[0]] += 1
        return found

    releases = [Release(tmp_path, "2.0"), Release(tmp_path, "3.0")]
    assert releases[0].upgrade(server).returncode == 0
    # The connection of this query may be among them, so four upgrades would show one that is left open.
    before = descriptors()
    for number in range(1, 5):
        assert releases[number % 2].upgrade(server).returncode == 0
    wait_until(lambda: not descriptors() - before)
