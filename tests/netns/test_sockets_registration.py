"""The activation service and its client, as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.program import UNMOOR, run
from support.sockets import ROOT_PEER, Bed, activation, ask, listener, refuses
from support.waiting import wait_until
from unmoor.bpf import libbpf
from unmoor.bpf.pins import Pins
from unmoor.sockets.activation.descriptors import SocketInfo
from unmoor.sockets.activation.protocol import Request
from unmoor.sockets.activation.registrar import Peer, RefusedError, Registrar
from unmoor.sockets.dispatch import generation
from unmoor.sockets.table.record import Record, decode

WEB = {"label": "web", "ports": [80]}
NOBODY = 65534

# Like nginx: a master that opens sockets, and workers that accept; then it writes its pid file.
SERVER = """
import os, socket, sys, time
time.sleep(float(sys.argv[2]))
def listen(family, address, port):
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    sock.listen()
    return sock
port = int(sys.argv[3])
fours = [listen(socket.AF_INET, "127.0.0.1", port) for _ in range(2)]
sixes = [listen(socket.AF_INET6, "::1", port) for _ in range(2)]
other = listen(socket.AF_INET, "127.0.0.1", port + 1)
for four, six in zip(fours, sixes):
    for sock in (four, six):
        if os.fork() == 0:
            while True:
                client, _ = sock.accept()
                client.sendall(b"server %s %d" % (client.getsockname()[0].encode(), client.getsockname()[1]))
                client.close()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(
        WEB,
        {"label": "dns", "ports": [53], "protocols": ["udp"]},
        {**WEB, "label": "user", "ports": [81], "users": ["nobody"]},
    )
    return bed


@pytest.fixture
def sock_path(tmp_path: Path, bed: Bed) -> Iterator[Path]:
    path = tmp_path / "activation.sock"
    with activation(bed.pins, path):
        yield path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    processes = []

    def start(delay: float = 0) -> Path:
        pidfile = tmp_path / "server.pid"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SERVER, str(pidfile), str(delay), "8000"], start_new_session=True
            )
        )
        return pidfile

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


LISTEN = ("--listen", "127.0.0.1:8000", "--listen", "[::1]:8000")


def test_a_running_process_by_its_pidfile(bed: Bed, sock_path: Path, server: Callable[..., Path]) -> None:
    pidfile = server(delay=0.5)  # not there yet when registration begins
    done = run("sockets", "register", "web", "--pidfile", str(pidfile), *LISTEN, "--socket", str(sock_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("tcp 127.0.0.1:8000") == 2  # both members of the group
    assert ask("198.18.1.1", 80) == "server 198.18.1.1 80"
    assert ask("2001:db8::1", 80) == "server 2001:db8::1 80"
    assert len(bed.count("web").sockets) == 2


def test_a_process_that_does_not_listen_there(bed: Bed, sock_path: Path, server: Callable[..., Path]) -> None:
    pidfile = server()
    wait_until(pidfile.exists)
    where = ("--listen", "127.0.0.1:8000", "--listen", "127.0.0.1:8009")
    done = run(
        "sockets",
        "register",
        "web",
        "--pidfile",
        str(pidfile),
        *where,
        "--wait",
        "0.2",
        "--socket",
        str(sock_path),
    )
    assert done.returncode == 1
    assert "no tcp socket that listens at 127.0.0.1 port 8009" in done.stderr
    assert bed.count("web").sockets == ()


def multipath(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket as Go servers open them (MPTCP). Skips where the kernel has none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, 262)
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    sock.bind((host, port))
    sock.listen()
    return sock


def test_a_multipath_socket_is_refused_for_what_it_is(bed: Bed, sock_path: Path) -> None:
    with multipath() as sock:
        done = _with_listen_fds([sock], "sockets", "register", "web", "--socket", str(sock_path))
    assert done.returncode == 1
    assert "Multipath TCP" in done.stderr
    assert "GODEBUG=multipathtcp=0" in done.stderr
    assert "net.mptcp.enabled=0" in done.stderr


@pytest.mark.parametrize(("host", "listen"), [("127.0.0.1", "127.0.0.1:8009"), ("::", "[::]:8009")])
def test_a_process_that_listens_with_multipath_tcp(bed: Bed, sock_path: Path, host: str, listen: str) -> None:
    with multipath(host, 8009):
        done = _register_own("--listen", listen, "--wait", "0", "--socket", str(sock_path))
    assert done.returncode == 1
    assert f"it has  mptcp {listen}" in done.stderr
    assert "GODEBUG=multipathtcp=0" in done.stderr


def _register_own(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Register a socket of this process, or fail to."""
    return run("sockets", "register", "web", "--pid", str(os.getpid()), *arguments)


def test_a_miss_lists_what_the_process_has_on_one_screen(bed: Bed, sock_path: Path) -> None:
    missing = ("--listen", "127.0.0.1:8009", "--wait", "0", "--socket", str(sock_path))
    with listener() as four, listener("::1") as six:
        text = _register_own(*missing).stderr
        assert "no tcp socket that listens at 127.0.0.1 port 8009" in text
        assert f"it has  tcp 127.0.0.1:{four.getsockname()[1]}\n" in text
        assert f"it has  tcp [::1]:{six.getsockname()[1]}\n" in text
        many = [socket.create_server(("127.0.0.1", 0)) for _ in range(40)]
        text = _register_own(*missing).stderr
        assert len(text.splitlines()) < 24
        assert "... and 26 more" in text
        for sock in many:
            sock.close()


def test_a_socket_bound_to_an_interface_is_registered_with_a_warning(bed: Bed, sock_path: Path) -> None:
    with listener(says="bound") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        listen = f"127.0.0.1:{sock.getsockname()[1]}"
        done = _register_own("--listen", listen, "--socket", str(sock_path))
        assert (done.returncode, done.stdout) == (0, f"web: tcp {listen}\n")
        assert f"warning: tcp {listen} is bound to interface lo (SO_BINDTODEVICE)" in done.stderr
        assert ask("198.18.1.1", 80).startswith("bound")


def test_sockets_passed_by_systemd(bed: Bed, sock_path: Path) -> None:
    with listener(says="passed") as four:
        done = _with_listen_fds([four], "sockets", "register", "web", "--socket", str(sock_path))
        assert done.returncode == 0, done.stderr
        assert ask("198.18.1.1", 80) == "passed 198.18.1.1 80"


def _with_listen_fds(sockets: list[socket.socket], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `unmoor` as systemd would: descriptors from 3 on, LISTEN_PID its own."""
    moved = [os.dup2(each.fileno(), 100 + number) for number, each in enumerate(sockets)]
    script = 'i=3; for fd in $MOVED; do eval "exec $i<&$fd $fd<&-"; i=$((i+1)); done; LISTEN_PID=$$ exec "$@"'
    try:
        return subprocess.run(
            ["bash", "-c", script, "bash", *UNMOOR, *arguments],
            env={**os.environ, "LISTEN_FDS": str(len(moved)), "MOVED": " ".join(map(str, moved))},
            pass_fds=moved,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for descriptor in moved:
            os.close(descriptor)


def test_without_any_socket_it_prints_a_fix(bed: Bed, sock_path: Path) -> None:
    done = run("sockets", "register", "web", "--socket", str(sock_path))
    assert done.returncode == 2
    assert "--pidfile" in done.stderr


def test_unregister(bed: Bed, sock_path: Path) -> None:
    with listener() as four:
        bed.register("web", four)
        assert not refuses("198.18.1.1", 80)
        assert run("sockets", "unregister", "web", "--socket", str(sock_path)).returncode == 0
        assert refuses("198.18.1.1", 80)


def test_the_data_plane_goes_on_without_the_service(bed: Bed, tmp_path: Path) -> None:
    path = tmp_path / "activation.sock"
    with listener(says="four") as four, listener("::1") as six:
        with activation(bed.pins, path) as process:
            assert (
                _with_listen_fds([four], "sockets", "register", "web", "--socket", str(path)).returncode == 0
            )
            process.kill()
            process.wait()
            assert ask("198.18.1.1", 80).startswith("four")
        done = _with_listen_fds([six], "sockets", "register", "web", "--socket", str(path))
        assert done.returncode == 2
        assert "is unmoor-activation.service running?" in done.stderr
        with activation(bed.pins, path):
            wait_until(
                lambda: (
                    _with_listen_fds([six], "sockets", "register", "web", "--socket", str(path)).returncode
                    == 0
                )
            )
        assert ask("198.18.1.1", 80).startswith("four")
        assert not refuses("2001:db8::1", 80)


def test_it_stops_on_request(bed: Bed, tmp_path: Path) -> None:
    with activation(bed.pins, tmp_path / "a.sock") as process:
        process.terminate()
        assert process.wait(10) == 0


def test_the_service_needs_two_capabilities_only(
    bed: Bed, unmoor_for_others: list[str], open_path: Path
) -> None:
    folder = open_path / "run"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    # As the loader does where the account `unmoor` exists.
    for path in (bed.pins.root, bed.pins.current):
        os.chown(path, 0, NOBODY)
    os.chown(bed.pins.current / "record", 0, NOBODY)
    for path in (
        bed.pins.registry,
        bed.pins.root / "guard",
        bed.pins.current / "explain",
        bed.pins.current / "answers",
    ):
        os.chown(path, NOBODY, 0)
    caps = "-all,+bpf,+net_admin"
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    command += [f"--inh-caps={caps}", f"--ambient-caps={caps}", f"--bounding-set={caps}"]
    command += [*unmoor_for_others, "sockets", "serve"]
    process = subprocess.Popen(
        [*command, "--pins", str(bed.pins.root), "--socket", str(folder / "a.sock")], stderr=subprocess.PIPE
    )
    try:
        wait_until((folder / "a.sock").exists)
        with listener(says="four") as four:
            done = _with_listen_fds([four], "sockets", "register", "web", "--socket", str(folder / "a.sock"))
            assert done.returncode == 0, done.stderr
            assert ask("198.18.1.1", 80).startswith("four")
    finally:
        process.kill()
        process.communicate()


def registry(bed: Bed, label: str, *sockets: Any, peer: Peer = ROOT_PEER) -> tuple[SocketInfo, ...]:
    descriptors = [each if isinstance(each, int) else each.fileno() for each in sockets]
    return Registrar(bed.pins).handle(Request("register", label), descriptors, peer)


def test_who_may_register(bed: Bed) -> None:
    nobody = Peer(1, NOBODY, frozenset({NOBODY}))
    with listener() as four:
        with pytest.raises(RefusedError, match="user id 65534 may not register 'web'"):
            registry(bed, "web", four, peer=nobody)
        assert registry(bed, "user", four, peer=nobody)


def test_a_member_of_a_group_may_register(bed: Bed) -> None:
    bed.load({**WEB, "groups": ["nogroup"]})
    with listener() as four:
        with pytest.raises(RefusedError):
            registry(bed, "web", four, peer=Peer(1, NOBODY, frozenset({1})))
        assert registry(bed, "web", four, peer=Peer(1, NOBODY, frozenset({1, NOBODY})))


_kept: list[socket.socket] = []  # the other ends


def _unbound() -> socket.socket:
    return socket.socket()


def _connected() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        _kept.append(server.accept()[0])
        return client


def _unix() -> socket.socket:
    return socket.socket(socket.AF_UNIX)


def _udp(port: int = 0) -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    if port:
        sock.bind(("127.0.0.1", port))
    return sock


def _raw() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)


def _connected_udp() -> socket.socket:
    sock = _udp(5353)
    sock.connect(("127.0.0.1", 9))
    return sock


def _elsewhere() -> socket.socket:
    """A listening socket of another network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc = __import__("ctypes").CDLL(None)
    libc.unshare(0x40000000)
    try:
        return socket.create_server(("", 1234))
    finally:
        libc.setns(home, 0)
        os.close(home)


REFUSED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "not listening": ("web", _unbound, "not listening"),
    "connected": ("web", _connected, "connected"),
    "another family": ("web", _unix, "wrong family"),
    "another protocol": ("web", lambda: _udp(5353), "wrong protocol"),
    "neither": ("web", _raw, "wrong protocol"),
    "unbound UDP": ("dns", _udp, "not bound"),
    "connected UDP": ("dns", _connected_udp, "connected"),
    "a file": ("web", lambda: os.open("/dev/null", os.O_RDONLY), "not a socket"),
    "another namespace": ("web", _elsewhere, "another network namespace"),
    "unknown service": ("nope", lambda: socket.create_server(("127.0.0.1", 0)), "unknown service"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(bed: Bed, case: str) -> None:
    label, make, why = REFUSED[case]
    bad = make()
    with listener(says="good") as good:
        registry(bed, "web", good)
        with pytest.raises(RefusedError, match=why):
            registry(bed, label, bad)
        if label == "web":
            # All or none: not with a good one beside it either, in any order.
            with listener("::1") as six:
                for pair in ((bad, six), (six, bad)):
                    with pytest.raises(RefusedError, match=why):
                        registry(bed, label, *pair)
            assert bed.count("web", family=6).sockets == ()
        assert ask("198.18.1.1", 80).startswith("good")


def test_two_sockets_that_are_no_group_are_refused(bed: Bed) -> None:
    with listener() as one, listener() as two:
        with pytest.raises(RefusedError, match="SO_REUSEPORT"):
            registry(bed, "web", one, two)
        with pytest.raises(RefusedError, match="is in the request twice"):
            registry(bed, "web", one, one)
    assert bed.count("web").sockets == ()


def test_more_sockets_than_slots_are_refused(bed: Bed) -> None:
    servers = [socket.socket() for _ in range(9)]
    for server in servers:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 8000))
        server.listen()
    with pytest.raises(RefusedError, match="too many sockets"):
        registry(bed, "web", *servers)
    assert len(registry(bed, "web", *servers[:8])) == 8
    # Fewer replace them all.
    assert len(registry(bed, "web", *servers[:2])) == 2
    assert len(bed.count("web").sockets) == 2
    for server in servers:
        server.close()


def test_a_record_is_decoded_once_until_the_next_load(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counted(data: bytes) -> Record:
        decoded.append(decode(data))
        return decoded[-1]

    monkeypatch.setattr(generation, "decode", counted)
    registrar, request = Registrar(bed.pins), Request("register", "web")
    with listener() as four:
        for _ in range(3):
            registrar.authorize(request, ROOT_PEER)
            assert registrar.handle(request, [four.fileno()], ROOT_PEER)
        assert len(decoded) == 1
        bed.load({**WEB, "label": "other"})
        decoded.clear()
        with pytest.raises(RefusedError, match="unknown service 'web'"):
            registrar.authorize(request, ROOT_PEER)
        assert registrar.handle(Request("register", "other"), [four.fileno()], ROOT_PEER)
        assert len(decoded) == 1
        generation.unload(bed.pins)
        with pytest.raises(RefusedError, match="no dispatch table is loaded"):
            registrar.authorize(request, ROOT_PEER)


def test_without_a_table_registration_is_refused(netns: None, pins: Pins) -> None:
    with listener() as four, pytest.raises(RefusedError, match="no dispatch table is loaded"):
        Registrar(pins).handle(Request("register", "web"), [four.fileno()], ROOT_PEER)


def test_the_map_of_sockets_is_one_under_two_names(bed: Bed) -> None:
    with libbpf.opened(bed.pins.registry) as one, libbpf.opened(bed.pins.root / "sockets") as two:
        assert libbpf.map_info(one).id == libbpf.map_info(two).id
