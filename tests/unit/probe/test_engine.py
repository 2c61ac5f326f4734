from __future__ import annotations

import os
import resource
import socket
import ssl
import time
from contextlib import closing

import pytest

from support.probe_servers import Handler, answer, listening, make_certificate, raw, read_request, reset, web
from unmoor.probe.clients.answer import Expectation
from unmoor.probe.clients.engine import Engine, Settings
from unmoor.probe.clients.outcome import Outcome
from unmoor.probe.clients.targets import Target

NAME = "www.unmoor.test"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def trusting(authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority)
    return context


def outcomes(targets: list[Target], settings: Settings) -> list[Outcome]:
    found: list[Outcome] = []
    with closing(Engine(settings, found.append)) as engine:
        for target in targets:
            engine.start(target)
        limit = time.monotonic() + 60
        while len(engine) and time.monotonic() < limit:
            engine.poll(0.1)
    return found


def cause(target: Target, settings: Settings) -> str | None:
    (outcome,) = outcomes([target], settings)
    return outcome.fault.cause if outcome.fault else None


def cause_of(handler: Handler, **settings: object) -> str | None:
    with listening(handler) as port:
        return cause(Target("127.0.0.1", port), Settings(**settings))


def test_many_addresses_on_one_port_each_answer_for_themselves():
    addresses = [f"127.9.0.{host}" for host in range(24)] + ["::1"]
    with listening(web(), addresses) as port:
        found = outcomes([Target(address, port) for address in addresses], Settings())
    assert {outcome.target.address for outcome in found} == set(addresses)
    assert [outcome.fault for outcome in found] == [None] * len(addresses)
    assert all(outcome.identity.edge == "edge1" and outcome.seconds > 0 for outcome in found)


def test_a_closed_port_is_refused():
    with listening(web()) as port:
        pass
    assert cause(Target("127.0.0.1", port), Settings()) == "refused"


def test_the_server_aborts():
    assert cause_of(reset) == "reset"


def test_an_unanswered_syn_times_out():
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):  # the queue holds one more than the backlog
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        (outcome,) = outcomes([Target(*listener.getsockname())], Settings(timeout=1))
    assert str(outcome.fault) == "timeout: after 1 s while connecting"


def test_an_answer_that_never_comes_times_out():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        (outcome,) = outcomes([Target(*listener.getsockname())], Settings(timeout=1))
    assert str(outcome.fault) == "timeout: after 1 s while waiting for the answer"


def test_a_handshake_that_never_ends_times_out(certificate):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        target = Target(*listener.getsockname(), tls=True)
        settings = Settings(timeout=1, tls=trusting(certificate[1]), name=NAME)
        (outcome,) = outcomes([target], settings)
    assert str(outcome.fault) == "timeout: after 1 s while shaking hands"


def test_an_answer_that_stops_in_the_middle_times_out():
    def half(connection, address, port):
        read_request(connection)
        connection.sendall(answer(address, port)[:60])
        connection.recv(1)  # until the client goes

    assert cause_of(half, timeout=0.3) == "timeout"


def test_no_route():
    # TCP has no business with a broadcast address: the kernel refuses before a packet is sent.
    assert cause(Target("255.255.255.255", 80), Settings()) == "unreachable"


def test_no_file_descriptor_left():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found: list[Outcome] = []
    with closing(Engine(Settings(), found.append)) as engine:
        following = os.dup(0)
        os.close(following)
        resource.setrlimit(resource.RLIMIT_NOFILE, (following, hard))
        try:
            engine.start(Target("127.0.0.1", 1))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [str(outcome.fault) for outcome in found] == [
        "local limit: Too many open files while making a socket"
    ]


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (web(service="other"), "wrong service"),
        (web(edge="edge2"), "wrong edge"),
        (web(said_address="127.0.0.9"), "wrong address"),
        (raw(answer("127.0.0.1", 9)), "wrong port"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "no identity"),
        (web(status="503 Busy"), "bad answer"),
        (raw(b"\0\1\2garbage\r\n\r\n"), "bad answer"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"), "bad answer"),
        (raw(b""), "bad answer"),
        (web(), None),
    ],
)
def test_answers_that_are_not_the_right_one(handler, expected):
    with listening(handler) as port:
        settings = Settings(expectation=Expectation({port: "web"}, "edge1"))
        assert cause(Target("127.0.0.1", port), settings) == expected


def test_a_server_that_half_closes_at_once_may_still_answer():
    def handle(connection, address, port):
        read_request(connection)
        connection.sendall(answer(address, port))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    assert cause_of(handle) is None


def test_a_large_answer_in_many_pieces():
    def handle(connection, address, port):
        read_request(connection)
        head = answer(address, port).replace(b"Content-Length: 3", b"Content-Length: 200003")
        connection.sendall(head[:20])
        connection.sendall(head[20:] + b"x" * 200_000)

    assert cause_of(handle) is None


def test_connect_asks_for_nothing_more():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert cause(Target(*listener.getsockname()), Settings(check="connect")) is None


def test_a_banner_comes_without_a_request():
    def banner(connection, address, port):
        connection.sendall(f"whoami edge1 {address} {port}\n".encode())

    with listening(banner) as port:
        good = Settings(check="banner", expectation=Expectation({port: "whoami"}, "edge1"))
        bad = Settings(check="banner", expectation=Expectation({port: "other"}))
        assert cause(Target("127.0.0.1", port), good) is None
        assert cause(Target("127.0.0.1", port), bad) == "wrong service"


@pytest.mark.parametrize("check", ["http", "connect"])
def test_tls_with_the_right_name_and_authority(certificate, check):
    server, authority = certificate
    names = []
    server.sni_callback = lambda _connection, name, _context: names.append(name)
    with listening(web(), ["127.0.0.1", "::1"], tls=server) as port:
        targets = [Target(address, port, tls=True) for address in ("127.0.0.1", "::1")]
        found = outcomes(targets, Settings(check=check, tls=trusting(authority), name=NAME))
    assert [outcome.fault for outcome in found] == [None, None]
    assert names == [NAME, NAME]


def test_tls_with_another_name(certificate):
    server, authority = certificate
    with listening(web(), tls=server) as port:
        settings = Settings(tls=trusting(authority), name="other.unmoor.test")
        (outcome,) = outcomes([Target("127.0.0.1", port, tls=True)], settings)
    assert outcome.fault is not None
    assert outcome.fault.cause == "tls: wrong name"
    assert "other.unmoor.test" in outcome.fault.detail


def test_tls_signed_by_someone_else(certificate, tmp_path):
    _, foreign = make_certificate(tmp_path)
    with listening(web(), tls=certificate[0]) as port:
        settings = Settings(tls=trusting(foreign), name=NAME)
        found = cause(Target("127.0.0.1", port, tls=True), settings)
    assert found is not None
    assert found.startswith("tls: ")
    assert "certificate" in found


def test_tls_where_something_else_speaks(certificate):
    def greet(connection, _address, _port):
        connection.sendall(b"220 mail.unmoor.test ready\r\n")
        connection.recv(4096)

    with listening(greet) as port:
        settings = Settings(tls=trusting(certificate[1]), name=NAME)
        # In OpenSSL's words, which differ by its version.
        assert cause(Target("127.0.0.1", port, tls=True), settings) in {
            "tls: wrong version number",
            "tls: packet length too long",
        }


def test_tls_closed_during_the_handshake(certificate):
    def close(connection, _address, _port):
        connection.recv(4096)

    with listening(close) as port:
        settings = Settings(tls=trusting(certificate[1]), name=NAME)
        assert cause(Target("127.0.0.1", port, tls=True), settings) == "tls: closed during the handshake"


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_tls_closed_before_the_end_of_the_answer(certificate, part):
    server, authority = certificate
    with listening(raw(part), tls=server) as port:
        settings = Settings(tls=trusting(authority), name=NAME)
        assert cause(Target("127.0.0.1", port, tls=True), settings) == "bad answer"
