"""PTR answers for the addresses of pools."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.dns_document import document
from support.dns_local import Local
from unmoor.dns.policy import reverse
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.client_subnet import Subnet

REVERSE_ZONE = "$TTL 600\n@ SOA ns.example.net. h.example.net. 1 2 3 4 5\n@ NS ns.example.net.\n"
DATA = document()
DATA["pools"]["free"]["ptr"] = "ip-{address}.pool.example.com"
DATA["pools"]["free"]["ipv4"] = ["198.18.16.0/20", "198.18.0.7/32"]
DATA["zones"] += [
    {"name": "18.198.in-addr.arpa", "records": REVERSE_ZONE + "9.16 PTR fixed.example.com.\n"},
    {"name": "8.b.d.0.1.0.0.2.ip6.arpa", "records": REVERSE_ZONE},
]
LOCAL = Local(DATA)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("198.18.16.0", "ip-198-18-16-0.pool.example.com."),
        ("198.18.31.255", "ip-198-18-31-255.pool.example.com."),
        ("198.18.0.7", "ip-198-18-0-7.pool.example.com."),
        ("198.18.16.9", "fixed.example.com."),
        ("2001:db8:f::a", "ip-2001-0db8-000f-0000-0000-0000-0000-000a.pool.example.com."),
    ],
)
def test_an_address_of_a_pool_has_a_name(address: str, name: str) -> None:
    reply = LOCAL.ask(ip_address(address).reverse_pointer.upper(), "PTR")
    assert reply.answer[0][0].target.to_text() == name
    assert reply.answer[0].ttl == 600
    assert reply.flags & message.AA


@pytest.mark.parametrize("address", ["198.18.32.0", "198.18.0.6", "198.18.15.255", "2001:db8:10::"])
def test_an_address_outside_has_none(address: str) -> None:
    assert LOCAL.ask(ip_address(address).reverse_pointer, "PTR").rcode() == message.NXDOMAIN


@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        ("16.18.198.in-addr.arpa", message.NOERROR),
        ("0.18.198.in-addr.arpa", message.NOERROR),
        ("32.18.198.in-addr.arpa", message.NXDOMAIN),
        ("016.18.198.in-addr.arpa", message.NXDOMAIN),
        ("256.18.198.in-addr.arpa", message.NXDOMAIN),
        ("x.18.198.in-addr.arpa", message.NXDOMAIN),
        ("1.1.16.18.198.in-addr.arpa", message.NXDOMAIN),
        ("0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", message.NOERROR),
        ("1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", message.NOERROR),
        ("1.0.0.8.b.d.0.1.0.0.2.ip6.arpa", message.NXDOMAIN),
    ],
)
def test_names_on_the_way_exist_where_addresses_are_below(name: str, rcode: int) -> None:
    """RFC 8020: a name above existing names exists."""
    reply = LOCAL.ask(name, "PTR")
    assert reply.rcode() == rcode
    assert not reply.answer
    assert reply.authority


def test_other_types_of_an_address() -> None:
    name = ip_address("198.18.16.1").reverse_pointer
    assert LOCAL.ask(name, "A").rcode() == message.NOERROR
    assert not LOCAL.ask(name, "A").answer
    assert LOCAL.ask(name, "ANY").answer


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_reverse_names_read_back(address: object) -> None:
    found = ip_address(str(address))
    width = 32 if found.version == 4 else 128
    assert reverse.parse(reverse.name_of(found.packed)) == Subnet(found.version, int(found), width)


@given(
    st.lists(st.binary(min_size=1, max_size=4), max_size=6),
    st.sampled_from(["in-addr.arpa.", "ip6.arpa.", "arpa."]),
)
def test_no_name_is_too_odd(labels: list[bytes], ending: str) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels) + names.from_text(ending)
    found = reverse.parse(names.fold(name))
    assert found is None or names.fold(name).endswith(names.from_text(ending))
