"""The running server: real sockets, real processes, on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import dns.message
import dns.query
import pytest

from support.dns_document import document, with_pool
from support.dns_server import Running, address_in, connect, framed, free_port, read_framed, running
from support.program import run
from support.waiting import wait_until
from unmoor.dns.server import control
from unmoor.errors import UnmoorError

QUERY = dns.message.make_query("host0.example.com", "A").to_wire()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for tests that do not change it."""
    with running(tmp_path_factory.mktemp("dns")) as server:
        yield server


# -- transports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_udp_and_tcp_on_both_families(shared: Running, address: str) -> None:
    query = dns.message.make_query("host0.example.com", "A")
    for ask in (dns.query.udp, dns.query.tcp):
        reply = ask(query, address, port=shared.port, timeout=5)
        assert ip_address(reply.answer[0][0].address) in ip_network("198.18.0.0/20")


def test_truncated_over_udp_whole_over_tcp(shared: Running) -> None:
    query = dns.message.make_query("big.example.com", "TXT")
    reply, over_tcp = dns.query.udp_with_fallback(query, "127.0.0.1", port=shared.port, timeout=5)
    assert over_tcp
    assert len(reply.answer) == 1


def test_pipelined_queries_come_back_in_order(shared: Running) -> None:
    with connect(shared) as stream:
        packets = [struct.pack("!H", number) + QUERY[2:] for number in range(500)]
        stream.sendall(b"".join(map(framed, packets)))
        assert [read_framed(stream)[:2] for _ in packets] == [packet[:2] for packet in packets]


def test_a_query_may_arrive_octet_by_octet(shared: Running) -> None:
    with connect(shared) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in framed(QUERY) + framed(QUERY)[:20]:
            stream.sendall(bytes((octet,)))
        assert read_framed(stream)[:2] == QUERY[:2]
        stream.sendall(framed(QUERY)[20:])
        assert read_framed(stream)[:2] == QUERY[:2]


def test_answers_follow_a_client_that_sends_no_more(shared: Running) -> None:
    with connect(shared) as stream:
        stream.sendall(framed(QUERY) * 3)
        stream.shutdown(socket.SHUT_WR)
        assert [read_framed(stream)[:2] for _ in range(3)] == [QUERY[:2]] * 3
        with pytest.raises(EOFError):
            read_framed(stream)


def test_a_client_that_does_not_read_does_not_delay_others(shared: Running) -> None:
    big = framed(dns.message.make_query("big.example.com", "TXT").to_wire())
    with connect(shared) as lazy:
        lazy.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for _ in range(200):  # more replies than all buffers hold: then the server stops reading
                lazy.sendall(big * 500)
            pytest.fail("the server took more queries than it can keep the replies of")
        for _ in range(20):  # every worker is reached
            with connect(shared) as stream:
                stream.sendall(framed(QUERY))
                assert read_framed(stream)[:2] == QUERY[:2]


def test_malformed_over_tcp(shared: Running) -> None:
    with connect(shared) as stream:
        stream.sendall(framed(b"") + framed(b"abc") + framed(b"\x12\x34" + bytes(10)) + framed(QUERY))
        assert read_framed(stream) == b"\x12\x34\x80\x01" + bytes(8)
        assert read_framed(stream)[:2] == QUERY[:2]


def test_one_client_holds_only_so_many_connections(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, listen=["127.0.0.1"], tcp_per_client=128) as server:
        streams = [connect(server) for _ in range(140)]
        try:
            refused = 0
            for stream in streams:
                try:
                    stream.sendall(framed(QUERY))
                    read_framed(stream)
                except (EOFError, ConnectionError):
                    refused += 1
            assert refused == 140 - 128
        finally:
            for stream in streams:
                stream.close()
        with connect(server) as stream:
            stream.sendall(framed(QUERY))
            assert read_framed(stream)[:2] == QUERY[:2]


def test_malformed_and_unanswerable_over_udp(shared: Running) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", shared.port))
        for packet in (b"", b"x" * 11, b"\0\0\x80" + bytes(20), os.urandom(2) + bytes(65000)):
            sock.send(packet)
        sock.send(QUERY)
        replies = [sock.recv(4096), sock.recv(4096)]
    assert sorted(reply[3] & 0xF for reply in replies) == [0, 1]


# -- reload ----------------------------------------------------------------------------------------------


def test_reload_reports_changes_and_returns_once_they_are_in_force(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.write(with_pool(server.data, "198.18.7.7/32"))
        reply = server.reload()
        assert reply.done
        assert reply.lines == (
            "pool free: 198.18.0.0/20 -> 198.18.7.7/32",
            "generation 2 in force on 2 workers",
        )
        for _ in range(40):  # a client port each: both workers answer
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.sendto(QUERY, ("127.0.0.1", server.port))
                assert str(address_in(sock.recv(4096))) == "198.18.7.7"
        assert server.reload().lines == ("no change: generation 2 in force on 2 workers",)


def test_sighup_reloads(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.write(with_pool(server.data, "198.18.7.7/32"))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.status()["generation"] == 2)


@pytest.mark.parametrize("broken", ["{", "pool", "port"])
def test_what_is_wrong_is_refused_and_the_old_goes_on(tmp_path: Path, broken: str) -> None:
    with running(tmp_path) as server, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        workers = server.workers()
        if broken == "{":
            server.config.write_text("{")
        elif broken == "pool":
            server.config.write_text(json.dumps({**server.data, "pools": {}}))
        else:
            server.config.write_text(json.dumps({**server.data, "port": taken.getsockname()[1]}))
        reply = server.reload()
        assert not reply.done
        reason = {"{": "is not JSON", "pool": "is not a pool", "port": "Address already in use"}[broken]
        assert any(reason in line for line in reply.lines)
        assert server.status()["generation"] == 1
        assert server.workers() == workers
        assert reason in server.status()["refused"]
        assert dns.query.udp(
            dns.message.make_query("host0.example.com", "A"), "127.0.0.1", 5, server.port
        ).answer
        server.write(with_pool(server.data, "198.18.7.7/32"))
        assert server.reload().done
        assert server.status()["refused"] is None


def test_addresses_and_workers_come_and_go(tmp_path: Path) -> None:
    with running(tmp_path, listen=["127.0.0.1"], workers=1) as server:
        for listen, workers in ((["127.0.0.1", "::1"], 3), (["::1"], 1), (["127.0.0.1"], 2)):
            server.write({**server.data, "listen": listen, "workers": workers})
            assert server.reload().done
            assert len(server.workers()) == workers
            for address in ("127.0.0.1", "::1"):
                if address in listen:
                    query = dns.message.make_query("host0.example.com", "A")
                    assert dns.query.tcp(query, address, 5, server.port).answer
                else:
                    with pytest.raises(ConnectionRefusedError):
                        connect(server, address)


def test_an_address_that_no_interface_has_can_be_listened_on(tmp_path: Path) -> None:
    with running(tmp_path, listen=["127.0.0.1", "198.18.255.1", "2001:db8:ffff::1"]) as server:
        assert server.status()["listen"] == ["127.0.0.1", "198.18.255.1", "2001:db8:ffff::1"]


class Load(threading.Thread):
    """Queries without a pause, and keeps wrong replies."""

    def __init__(self, server: Running, transport: int, timeout: float = 0.0) -> None:
        """With a `timeout` in seconds, missing replies are only counted."""
        super().__init__()
        self._timeout = timeout
        self.lost = 0
        self._server = server
        self._transport = transport
        self.enough = False
        self.answered = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        try:
            self._ask()
        except Exception as error:
            self.wrong.append(repr(error))

    def _ask(self) -> None:
        with socket.socket(socket.AF_INET, self._transport) as sock:
            sock.settimeout(self._timeout or 5)
            sock.connect(("127.0.0.1", self._server.port))
            while not self.enough:
                idents = [os.urandom(2) for _ in range(20)]
                for ident in idents:
                    packet = ident + QUERY[2:]
                    sock.send(packet if self._transport == socket.SOCK_DGRAM else framed(packet))
                while idents:
                    try:
                        reply = sock.recv(4096) if self._transport == socket.SOCK_DGRAM else read_framed(sock)
                    except TimeoutError:
                        if not self._timeout:
                            raise
                        self.lost += len(idents)
                        break
                    if self._timeout and reply[:2] not in idents:
                        continue  # late, not lost
                    if address_in(reply) not in ip_network("198.18.0.0/20"):
                        self.wrong.append(reply.hex())
                    idents.remove(reply[:2])
                self.answered += 20


def test_reload_under_load_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        loads = [Load(server, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)]
        for load in loads:
            load.start()
        try:
            for round_ in range(20):
                server.write(with_pool(server.data, f"198.18.{round_ % 16}.0/24"))
                assert server.reload().done
        finally:
            for load in loads:
                load.enough = True
            for load in loads:
                load.join()
        assert [load.wrong for load in loads] == [[], [], []]
        assert all(load.answered for load in loads)
        status = server.status()
        assert status["generation"] == 21
        # Nothing was counted twice or forgotten, though each worker lived for an instant only.
        assert status["policies"]["free"] == sum(load.answered for load in loads)


def test_a_connection_outlives_a_reload_in_the_middle_of_a_query(tmp_path: Path) -> None:
    with running(tmp_path) as server, connect(server) as stream:
        stream.sendall(framed(QUERY) + framed(QUERY)[:15])
        read_framed(stream)
        server.write(with_pool(server.data, "198.18.7.7/32"))
        assert server.reload().done
        stream.sendall(framed(QUERY)[15:])
        assert str(address_in(read_framed(stream))) == "198.18.7.7"


# -- workers that die ------------------------------------------------------------------------------------


def test_workers_that_die_are_replaced_and_no_query_is_lost(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        loads = [Load(server, socket.SOCK_DGRAM) for _ in range(4)]
        before = server.workers()
        # Stopped first, so that it has read no packet when it dies: packets in the sockets must be answered.
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        for load in loads:
            load.start()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == 2 and not set(before) & set(server.workers()))
        for load in loads:
            load.enough = True
        for load in loads:
            load.join()
        assert [load.wrong for load in loads] == [[]] * 4
        assert server.status()["restarts"] == 2


def test_workers_killed_at_work_lose_only_what_they_had_read(tmp_path: Path) -> None:
    """Each client continues, whichever worker serves it."""
    kills = 4
    with running(tmp_path, listen=["127.0.0.1"]) as server:
        loads = [Load(server, socket.SOCK_DGRAM, timeout=3.0) for _ in range(4)]
        for load in loads:
            load.start()
        for number in range(kills):
            before = sum(load.answered for load in loads)
            wait_until(lambda before=before: sum(load.answered for load in loads) > before + 200)
            dying = server.workers()[number % 2]
            os.kill(dying, signal.SIGKILL)
            wait_until(lambda dying=dying: dying not in server.workers() and len(server.workers()) == 2)
        for load in loads:
            load.enough = True
        for load in loads:
            load.join()
        assert [load.wrong for load in loads] == [[]] * 4
        assert sum(load.lost for load in loads) <= kills * 64
        assert server.status()["restarts"] == kills


def test_a_worker_that_dies_while_a_reload_is_asked_for(tmp_path: Path) -> None:
    """The parent sees both in one iteration of its loop."""
    with running(tmp_path) as server:
        server.write(with_pool(server.data, "198.18.7.7/32"))
        dying = server.workers()[0]
        server.process.send_signal(signal.SIGSTOP)
        os.kill(dying, signal.SIGKILL)
        replies: list[control.Reply] = []
        asking = threading.Thread(target=lambda: replies.append(server.reload()))
        asking.start()
        time.sleep(0.1)  # so that both wait; if not, the test is only weaker
        server.process.send_signal(signal.SIGCONT)
        asking.join(60)
        assert replies[0].done
        assert server.status()["generation"] == 2
        assert len(server.workers()) == 2


def test_a_reload_that_lacks_resources_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        before = server.workers()
        used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        server.write(with_pool(server.data, "198.18.7.7/32"))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 3, 20000))
        reply = server.reload()
        assert not reply.done
        assert any("cannot start worker" in line and "Too many open files" in line for line in reply.lines)
        assert server.workers() == before
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (20000, 20000))
        assert server.reload().done


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        workers = server.workers()
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        workers = server.workers()
        assert server.stop() == 0
        assert not server.control.exists()
        assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers)


# -- control ---------------------------------------------------------------------------------------------


def test_status(shared: Running) -> None:
    before = shared.status()["policies"]["business"]
    dns.query.udp(dns.message.make_query("biz.example.com", "A"), "127.0.0.1", 5, shared.port)
    status = shared.status()
    assert status["policies"]["business"] == before + 1
    assert status["hostnames"] == 52
    assert [worker["place"] for worker in status["workers"]] == [0, 1]


def digest_in_force(server: Running) -> str:
    """The digest of the document in force, which every worker must have."""
    status = server.status()
    assert {worker["document"] for worker in status["workers"]} == {status["document"]}
    return str(status["document"])


def test_the_document_in_force_is_reported_and_not_the_one_on_disk(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        first = server.config.read_bytes()
        assert digest_in_force(server) == hashlib.sha256(first).hexdigest()
        server.write(with_pool(server.data, "198.18.7.7/32"))
        assert digest_in_force(server) == hashlib.sha256(first).hexdigest()
        assert control.ask(server.control, "document").data == first.decode()
        assert server.reload().done
        second = server.config.read_bytes()
        assert digest_in_force(server) == hashlib.sha256(second).hexdigest()
        os.kill(server.workers()[0], signal.SIGKILL)
        wait_until(lambda: server.status()["restarts"] == 1 and len(server.workers()) == 2)
        assert digest_in_force(server) == hashlib.sha256(second).hexdigest()
        server.config.write_text("{")
        assert not server.reload().done
        assert control.ask(server.control, "document").data == second.decode()


def test_another_form_of_the_same_document_is_in_force_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        workers = server.workers()
        server.config.write_bytes(json.dumps(server.data, indent=3).encode().replace(b"\n", b"\r\n"))
        assert server.reload().done
        assert server.workers() == workers
        assert digest_in_force(server) == hashlib.sha256(server.config.read_bytes()).hexdigest()


def unmoor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("dns", *arguments)


def test_the_commands(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        at = ("--control", str(server.control))
        shown = unmoor("status", *at)
        assert "generation 1" in shown.stdout
        assert json.loads(unmoor("status", "--json", *at).stdout)["generation"] == 1
        assert "text" not in json.loads(unmoor("status", "--json", *at).stdout)
        assert f"document {digest_in_force(server)}" in shown.stdout
        text = json.loads(unmoor("status", "--json", "--text", *at).stdout)["text"]
        assert text == server.config.read_text()
        dns.query.udp(dns.message.make_query("biz.example.com", "A"), "127.0.0.1", 5, server.port)
        metrics = unmoor("status", "--metrics", *at).stdout
        assert 'unmoor_dns_answers_total{policy="business",transport="udp",type="A"} 1.0\n' in metrics
        assert 'unmoor_dns_replies_total{rcode="NOERROR",transport="udp"}' in metrics
        assert "# TYPE unmoor_dns_workers gauge\nunmoor_dns_workers 2.0\n" in metrics
        server.write(with_pool(server.data, "198.18.7.7/32"))
        assert "generation 2 in force on 2 workers" in unmoor("reload", *at).stdout
        server.config.write_text("{")
        refused = unmoor("reload", *at)
        assert refused.returncode == 1
        assert "is not JSON" in refused.stderr
        assert "the old configuration stays in force" in refused.stderr


def test_without_a_server_the_commands_report_it(tmp_path: Path) -> None:
    for command in ("status", "reload"):
        shown = unmoor(command, "--control", str(tmp_path / "none"))
        assert shown.returncode == 2
        assert "is the server running" in shown.stderr
        assert "Traceback" not in shown.stderr


def test_a_second_server_is_refused(shared: Running, tmp_path: Path) -> None:
    config = tmp_path / "dns.json"
    config.write_text(json.dumps({**shared.data, "port": free_port()}))
    shown = unmoor("serve", "--config", str(config), "--control", str(shared.control))
    assert shown.returncode == 2
    assert "another server answers" in shown.stderr
    assert shared.status()


def test_a_second_server_on_the_same_addresses_is_refused(shared: Running, tmp_path: Path) -> None:
    """The kernel would let it share them, since both run as the same user."""
    config = tmp_path / "dns.json"
    config.write_text(json.dumps(shared.data))
    shown = unmoor("serve", "--config", str(config), "--control", str(tmp_path / "c"))
    assert shown.returncode == 2
    assert "Address already in use" in shown.stderr


def test_a_socket_left_behind_is_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    control.listen(path).close()
    control.listen(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.write_text("precious")
    with pytest.raises(UnmoorError, match="is no socket"):
        control.listen(path)
    assert path.read_text() == "precious"
    with pytest.raises(UnmoorError, match="RuntimeDirectory"):
        control.listen(tmp_path / "none" / "control.sock")


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b'{"command": 5}\n',
        b'{"command": "x"}\n',
        b"\xff\n",
        b"[" * 8000 + b"\n",
    ],
)
def test_nonsense_on_the_control_socket_harms_nothing(shared: Running, request_: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(shared.control))
        sock.sendall(request_)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
    assert shared.status()["generation"] == 1


def test_systemd_is_notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(10)
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with running(tmp_path) as server:
            while (first := systemd.recv(4096).decode()).startswith("FDSTORE=1\n"):
                pass
            assert first.startswith(
                "READY=1\nSTATUS=generation 1 on 2 workers: 2 policies, 1 zones, 52 hostnames"
            )
            server.config.write_text("{")
            server.reload()
            assert systemd.recv(4096).decode().startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert "the last reload was refused" in systemd.recv(4096).decode()
        assert systemd.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"listen": ["127.0.0.1"], "port": None}, "port"), ({"pools": {}}, "is not a pool")],
)
def test_a_server_that_cannot_start_reports_why(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    config = tmp_path / "dns.json"
    config.write_text(json.dumps(document(**changes)))
    shown = unmoor("serve", "--config", str(config), "--control", str(tmp_path / "c"))
    assert shown.returncode == 2
    assert reason in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = tmp_path / "dns.json"
        config.write_text(json.dumps(document(port=taken.getsockname()[1])))
        shown = unmoor("serve", "--config", str(config), "--control", str(tmp_path / "c"))
    assert shown.returncode == 2
    assert "cannot listen on 127.0.0.1" in shown.stderr
    assert not (tmp_path / "c").exists()
