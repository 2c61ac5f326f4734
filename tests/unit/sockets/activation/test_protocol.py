from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor import systemd
from unmoor.sockets.activation.protocol import (
    ProtocolError,
    Question,
    Reply,
    Request,
    parse_reply,
    parse_request,
)


@given(st.sampled_from(["register", "unregister"]), st.text())
def test_requests_come_back_as_they_were(verb: str, service: str) -> None:
    request = Request(verb, service)  # type: ignore[arg-type]  # one of the two verbs
    data = request.encode()
    assert data.count(b"\n") == 1
    assert parse_request(data) == request


@given(
    st.sampled_from(["tcp", "udp"]), st.ip_addresses(), st.integers(1, 65535), st.integers(0, (1 << 31) - 1)
)
def test_questions_come_back_as_they_were(protocol: str, address: str, port: int, ifindex: int) -> None:
    question = Question(protocol, address, port, ifindex)  # type: ignore[arg-type]  # one of the two
    assert parse_request(question.encode()) == question


@given(
    st.booleans(),
    st.text(),
    st.lists(st.text()),
    st.lists(st.text()),
    st.none() | st.dictionaries(st.text(), st.none() | st.integers()),
)
def test_replies_come_back_as_they_were(
    ok: bool, why: str, sockets: list[str], warnings: list[str], answer: dict[str, int | None] | None
) -> None:
    reply = Reply(ok, why, tuple(sockets), tuple(warnings), answer)
    assert parse_reply(reply.encode()) == reply


def test_a_reply_of_an_older_service_has_no_warnings() -> None:
    assert parse_reply(b'{"ok": true, "why": "", "sockets": []}') == Reply(True)


@given(st.binary())
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(data)


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{}",
        b'{"verb": "register"}',
        b'{"verb": "register", "service": 3}',
        b'{"verb": "destroy", "service": "web"}',
        b'{"verb": "register", "service": "web", "more": 1}',
        b'{"verb": "explain"}',
        b'{"verb": "explain", "protocol": "tcp", "address": "198.18.0.1", "port": 80}',
        b'{"verb": "explain", "protocol": "tcp", "address": "198.18.0.1", "port": 0, "ifindex": 0}',
        b'{"verb": "explain", "protocol": "tcp", "address": "198.18.0.1", "port": 65536, "ifindex": 0}',
        b'{"verb": "explain", "protocol": "tcp", "address": "198.18.0.1", "port": true, "ifindex": 0}',
        b'{"verb": "explain", "protocol": "tcp", "address": "198.18.0.1", "port": 80, "ifindex": -1}',
        b'{"verb": "explain", "protocol": "icmp", "address": "198.18.0.1", "port": 80, "ifindex": 0}',
        b'{"verb": "explain", "protocol": ["tcp"], "address": "198.18.0.1", "port": 80, "ifindex": 0}',
        b'{"verb": "explain", "protocol": "tcp", "address": "198.18.0", "port": 80, "ifindex": 0}',
        b'{"verb": "explain", "protocol": "tcp", "address": 1, "port": 80, "ifindex": 0}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_malformed_requests_are_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(text)


def test_descriptors_of_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert systemd.listen_descriptors() == []
    monkeypatch.delenv("LISTEN_PID")
    assert systemd.listen_descriptors() == []
