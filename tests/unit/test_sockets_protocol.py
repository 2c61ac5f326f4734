from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor import systemd
from unmoor.sockets.protocol import ProtocolError, Reply, Request, parse_reply, parse_request


@given(st.sampled_from(["register", "unregister"]), st.text())
def test_requests_come_back_as_they_were(verb: str, service: str) -> None:
    request = Request(verb, service)  # type: ignore[arg-type]  # one of the two verbs
    data = request.encode()
    assert data.count(b"\n") == 1
    assert parse_request(data) == request


@given(st.booleans(), st.text(), st.lists(st.text()), st.lists(st.text()))
def test_replies_come_back_as_they_were(ok: bool, why: str, sockets: list[str], warnings: list[str]) -> None:
    reply = Reply(ok, why, tuple(sockets), tuple(warnings))
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
