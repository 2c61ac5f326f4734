"""The fast parser of prefixes accepts the same texts as the ipaddress module."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_interface

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unmoor.errors import InvalidInputError
from unmoor.model.common import MAX_SHOWN, _parse_plain_prefix, parse_ports, parse_prefix, validate
from unmoor.model.edge import ServiceBody

LIKELY = st.one_of(
    st.builds("{}/{}".format, st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 40)),
    st.builds("{}/{}".format, st.integers(0, 2**128 - 1).map(IPv6Address), st.integers(0, 140)),
    st.builds("{}.0.0.0/{}".format, st.integers(0, 300), st.integers(0, 9)),
    st.text(alphabet="0123456789abcf:./% x\u0661", max_size=24),
)


@given(LIKELY)
@example("::ffff:1.2.3.4/128")
@example("fe80::%eth0/64")
@example("198.18.0.0/255.255.240.0")
@example("198.018.0.0/20")
@example("198.18.0.0/020")
@example("198.18.0.0/\u0662\u0660")
@example("198.18/16")
@example("0x7f.0.0.0/8")
@example("1:2:3:4:5:6:7::/128")
@example("198.18.0.0\0/20")
@example("\ud800/20")
def test_the_quick_way_takes_no_more_than_the_careful_one(text: str) -> None:
    plain = _parse_plain_prefix(text)
    if plain is not None:
        interface = ip_interface(text)
        assert (interface.network, interface.ip) == (plain, plain.network_address)
        assert parse_prefix(text) == plain


@pytest.mark.parametrize(
    "text", ["198.18.0.0/20", "0.0.0.0/0", "198.18.3.7/32", "2001:db8::/44", "::/0", "::1/128"]
)
def test_what_is_usual_is_read_the_quick_way(text: str) -> None:
    assert _parse_plain_prefix(text) == ip_interface(text).network


@pytest.mark.parametrize("text", ["198.18.0.1/20", "198.18.0.0", "2001:db8::1/44", "x", "", "198.18.0.0/33"])
def test_what_is_no_prefix_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(ValueError, match=r"did you mean|write address/length"):
        parse_prefix(text)


@pytest.mark.parametrize("text", ["1", "65535", "1-65535", "8000-8000"])
def test_ports_at_the_borders(text: str) -> None:
    low, high = text.split("-") if "-" in text else (text, text)
    assert parse_ports(text) == (int(low), int(high))


@pytest.mark.parametrize("spec", ["0", "65536", "1-65536", "0-5", "9-8", "-1", "1-", "x", "1-x", "٣"])
def test_what_is_no_port_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="is not a port"):
        parse_ports(spec)


@pytest.mark.parametrize("spec", [True, 1.5, None, ["80"]])
def test_a_port_is_a_number_or_a_range(spec: object) -> None:
    with pytest.raises(InvalidInputError, match="is not a port"):
        validate(ServiceBody, {"ports": [spec]}, "edge.json")


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InvalidInputError) as caught:
        validate(ServiceBody, {"ports": ["x" * 500]}, "edge.json")
    (problem,) = caught.value.problems
    assert len(problem.value) == MAX_SHOWN
    assert problem.value.startswith('"xxx')
    assert problem.value.endswith("xxx...")
