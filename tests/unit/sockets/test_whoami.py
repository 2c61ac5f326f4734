from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from unmoor.sockets.whoami import MAX_CLIENTS, Whoami, line


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        whoami = Whoami("edge1", [listening])
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                whoami.step(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening
        stopping.set()
        thread.join()


def ask(server: socket.socket, sent: bytes = b"") -> bytes:
    with socket.create_connection(server.getsockname(), timeout=5) as client:
        if sent:
            client.sendall(sent)
        text = b""
        while more := client.recv(100):
            text += more
        return text


def test_it_reports_the_dialled_address(server: socket.socket) -> None:
    assert ask(server) == f"whoami edge1 127.0.0.1 {server.getsockname()[1]}\n".encode()


def test_a_client_that_talks_first_gets_its_line_all_the_same(server: socket.socket) -> None:
    assert ask(server, b"GET / HTTP/1.1\r\n\r\n" * 1000).startswith(b"whoami edge1")


def test_silent_clients_do_not_delay_others(server: socket.socket) -> None:
    silent = [socket.create_connection(server.getsockname(), timeout=5) for _ in range(50)]
    assert ask(server).startswith(b"whoami")
    for client in silent:
        client.close()


def test_no_more_clients_than_it_has_room_for() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        whoami = Whoami("edge1", [listening])
        clients = []
        for _ in range(MAX_CLIENTS + 3):
            clients.append(socket.create_connection(listening.getsockname(), timeout=5))
            whoami.step(5)
        # The oldest had to go, the newest are served.
        for client in (clients[0], clients[-1]):
            assert client.recv(100).startswith(b"whoami")
        assert clients[0].recv(1) == b""
        assert len(whoami._clients) == MAX_CLIENTS
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (("198.18.0.1", 80), b"whoami e 198.18.0.1 80\n"),
        (("::ffff:198.18.0.1", 80), b"whoami e 198.18.0.1 80\n"),
        (("2001:db8::1", 7077), b"whoami e 2001:db8::1 7077\n"),
        (("fe80::1%eth0", 7077), b"whoami e fe80::1 7077\n"),
    ],
)
def test_addresses(name: tuple[str, int], wanted: bytes) -> None:
    assert line("e", name) == wanted
