from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.probe_servers import answer
from unmoor.probe.clients.answer import BadAnswerError, Expectation, read_banner, read_http
from unmoor.probe.clients.outcome import Fault, Identity
from unmoor.probe.clients.targets import Target

TARGET = Target("198.18.0.1", 8080)
RIGHT = Identity("edge1", "web-http", "198.18.0.1", "8080")


@given(st.data())
def test_an_answer_may_come_in_pieces(data):
    whole = answer("198.18.0.1", 8080, service="web-http")
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert read_http(whole[:cut], False) is None
    assert read_http(whole, False) == RIGHT


@given(st.integers(0, len(answer("198.18.0.1", 8080)) - 1))
def test_an_answer_cut_short_is_a_bad_one(cut):
    with pytest.raises(BadAnswerError, match="closed after"):
        read_http(answer("198.18.0.1", 8080)[:cut], True)


@given(st.binary(max_size=200), st.booleans())
def test_whatever_comes_is_read_or_refused(data, closed):
    for read in (read_http, read_banner):
        try:
            said = read(data, closed)
        except BadAnswerError:
            continue
        assert said is None or isinstance(said, Identity)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "status 500"),
        (b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", "status 301"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 " + b"x" * (1 << 18), "endless header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b"x" * (1 << 19), "more than"),
    ],
)
def test_what_is_no_http_success_is_refused(data, why):
    with pytest.raises(BadAnswerError, match=why):
        read_http(data, False)


def test_a_chunked_answer_ends_with_its_last_chunk():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nunmoor-EDGE:  edge2 \r\n\r\n"
    assert read_http(head + b"3\r\nok\n\r\n", False) is None
    assert read_http(head + b"3\r\nok\n\r\n0\r\n\r\n", False) == Identity(edge="edge2")


def test_an_answer_without_a_length_ends_with_the_connection():
    head = b"HTTP/1.0 200 OK\r\n\r\nok"
    assert read_http(head, False) is None
    assert read_http(head, True) == Identity()


def test_a_banner_names_the_service():
    assert read_banner(b"whoami edge1 2001:db8::1", False) is None
    assert read_banner(b"whoami edge1 2001:db8::1 7000\n", False) == Identity(
        "edge1", "whoami", "2001:db8::1", "7000"
    )


@pytest.mark.parametrize("data", [b"220 mail ready\n", b"x" * 600, b"a b c d e\n"])
def test_another_line_is_no_banner(data):
    with pytest.raises(BadAnswerError):
        read_banner(data, False)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (RIGHT, None),
        (Identity("edge2", "web-http", "198.18.0.1", "8080"), "wrong edge"),
        (Identity("edge1", "web-https", "198.18.0.1", "8080"), "wrong service"),
        (Identity("edge1", "web-http", "198.18.0.2", "8080"), "wrong address"),
        (Identity("edge1", "web-http", "nonsense", "8080"), "wrong address"),
        (Identity("edge1", "web-http", "198.18.0.1", "80"), "wrong port"),
        (Identity("edge1", "web-http", "::ffff:198.18.0.1", "8080"), None),
    ],
)
@pytest.mark.parametrize("anonymous", [False, True])
def test_the_right_service_must_have_seen_the_dialled_pair(said, cause, anonymous):
    fault = Expectation({8080: "web-http"}, "edge1", anonymous).fault(said, TARGET)
    assert (fault.cause if fault else None) == cause


@pytest.mark.parametrize("missing", ["edge", "service", "address", "port"])
def test_the_service_must_be_named_unless_anonymous(missing):
    said = Identity(**{name: "" if name == missing else getattr(RIGHT, name) for name in RIGHT.__slots__})
    expectation = Expectation({8080: "web-http"}, "edge1")
    assert expectation.fault(said, TARGET) == Fault("no identity", f"the answer does not name its {missing}")
    assert Expectation({8080: "web-http"}, "edge1", anonymous=True).fault(said, TARGET) is None


def test_nothing_demanded_of_service_and_edge_accepts_any():
    assert Expectation().fault(RIGHT, TARGET) is None
    assert Expectation().fault(Identity("", "", "198.18.0.1", "8080"), TARGET) is None


def test_ipv6_addresses_may_be_spelled_otherwise():
    said = Identity("", "", "2001:DB8:0:0::1", "80")
    assert Expectation().fault(said, Target("2001:db8::1", 80)) is None
