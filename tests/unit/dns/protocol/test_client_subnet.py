"""The client subnet option: what is read from it, and how much of a client decides an answer."""

from __future__ import annotations

import pytest

from unmoor.dns.protocol.client_subnet import Subnet, echo, parse, scope
from unmoor.dns.protocol.message import QueryError

DB8 = 0x20010DB8


@pytest.mark.parametrize(
    ("option", "subnet"),
    [
        ("0001 00 00", Subnet(4, 0, 0)),
        ("0001 18 00 c63364", Subnet(4, 0xC6336400, 24)),
        ("0001 20 00 c6336401", Subnet(4, 0xC6336401, 32)),
        ("0001 11 00 c63380", Subnet(4, 0xC6338000, 17)),
        ("0002 20 00 20010db8", Subnet(6, DB8 << 96, 32)),
        ("0002 80 00 20010db8" + "00" * 11 + "01", Subnet(6, (DB8 << 96) + 1, 128)),
    ],
)
def test_an_option_is_read(option: str, subnet: Subnet) -> None:
    assert parse(bytes.fromhex(option)) == subnet


@pytest.mark.parametrize(
    "option",
    [
        "",
        "000100",
        "0000 00 00",
        "0003 00 00",
        "0001 18 01 c63364",  # a scope, which only replies have
        "0001 18 00 c633",
        "0001 18 00 c6336400",
        "0001 17 00 c63365",  # a bit behind the prefix
        "0001 21 00 c633640100",
        "0002 81 00" + "00" * 17,
    ],
)
def test_a_malformed_option_is_refused(option: str) -> None:
    with pytest.raises(QueryError):
        parse(bytes.fromhex(option))


def test_a_reply_repeats_the_option_with_its_scope() -> None:
    assert echo(bytes.fromhex("00011800c63364"), 24).hex() == "00011818c63364"


def test_networks_of_the_other_family_decide_nothing() -> None:
    client = Subnet(4, 0xC6336400, 24)
    other, own = Subnet(6, DB8 << 96, 32), Subnet(4, 0xC6336400, 22)
    assert scope(client, [other]) == 0
    assert scope(client, [other, own]) == scope(client, [own, other]) == 22
    # The first bit that differs decides; a network inside the client's decides by its own length.
    assert scope(client, [Subnet(4, 0xC6336600, 24)]) == 23
    assert scope(client, [Subnet(4, 0xC6336480, 25)]) == 25
