from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.prefixes import PREFIX4, PREFIX6
from unmoor.errors import InvalidInputError
from unmoor.probe.clients.targets import (
    Target,
    address_text,
    blocks,
    check_size,
    every_address,
    pairs,
    read_ports,
    read_prefixes,
    sample,
    size,
)


@given(st.one_of(PREFIX4, PREFIX6), st.integers(0, 60), st.text(max_size=4))
def test_a_sample_is_of_the_prefix_and_has_its_edges(prefix, count, seed):
    numbers = sample(prefix, count, seed)
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    chosen = set(numbers)
    assert len(chosen) == len(numbers) == min(prefix.num_addresses, count + 4)
    assert all(first <= number <= last for number in chosen)
    assert {first, last, min(first + 1, last), max(last - 1, first)} <= chosen
    assert list(numbers) == list(sample(prefix, count, seed))


def test_another_seed_chooses_others():
    prefix = ip_network("2001:db8:100::/44")
    assert sample(prefix, 50, "a") != sample(prefix, 50, "b")


def test_every_address_has_the_first_and_the_last():
    numbers = every_address(ip_network("198.18.0.0/20"))
    assert len(numbers) == 4096
    assert str(ip_address(numbers[0])) == "198.18.0.0"
    assert str(ip_address(numbers[-1])) == "198.18.15.255"


def test_ipv4_wholly_and_ipv6_by_sample():
    chosen = blocks(read_prefixes(["2001:db8::/32", "198.18.0.0/20"]), sample4=None, sample6=10, seed="x")
    assert [(str(block.prefix), size(block)) for block in chosen] == [
        ("198.18.0.0/20", 4096),
        ("2001:db8::/32", 14),
    ]
    assert check_size(chosen, 13) == 13 * (4096 + 14)


def test_ipv4_by_sample_too_when_asked():
    (block,) = blocks(read_prefixes(["198.18.0.0/20"]), sample4=100, sample6=10, seed="x")
    assert size(block) == 104


def test_a_prefix_within_another_is_probed_once():
    wanted = read_prefixes(["198.18.0.0/24", "198.18.0.0/20", "198.18.15.0/24", "198.18.16.0/24", "::1"])
    chosen = blocks(wanted, sample4=None, sample6=1, seed="x")
    assert [str(block.prefix) for block in chosen] == ["198.18.0.0/20", "198.18.16.0/24", "::1/128"]


@given(
    PREFIX4.filter(lambda p: p.prefixlen >= 24),
    st.lists(st.integers(1, 65535), unique=True, max_size=3),
    st.integers(1, 5),
)
def test_shares_are_disjoint_and_add_up(prefix, ports, parts):
    chosen = blocks([prefix], sample4=None, sample6=1, seed="x")
    whole = list(pairs(chosen, ports, tls=False))
    shared = [
        target for part in range(parts) for target in pairs(chosen, ports, tls=False, share=(part, parts))
    ]
    assert len(whole) == prefix.num_addresses * len(ports) == len(set(whole))
    assert sorted(map(str, shared)) == sorted(map(str, whole))


def test_a_whole_slash_32_of_ipv6_takes_no_memory():
    numbers = every_address(ip_network("2001:db8::/32"))
    assert address_text(6, numbers[-1]) == "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"


def test_too_many_pairs_are_refused_with_a_fix():
    chosen = blocks(read_prefixes(["10.0.0.0/8"]), sample4=None, sample6=1, seed="x")
    with pytest.raises(InvalidInputError, match="--sample"):
        check_size(chosen, 13)


@given(st.ip_addresses(v=6))
def test_addresses_are_written_as_ipaddress_reads_them(address):
    assert ip_address(address_text(6, int(address))) == address


def test_a_target_is_written_as_in_a_url():
    assert str(Target("198.18.0.1", 80)) == "198.18.0.1:80"
    assert str(Target("2001:db8::1", 80)) == "[2001:db8::1]:80"


def test_every_bad_prefix_is_named():
    with pytest.raises(InvalidInputError) as caught:
        read_prefixes(["198.18.0.1/20", "fish", "198.18.0.0/20"])
    assert [(p.value, p.why) for p in caught.value.problems] == [
        ("198.18.0.1/20", "has host bits set"),
        ("fish", "is not an IP prefix"),
    ]


def test_ports_keep_their_order_and_come_once():
    assert read_ports("8080,80, 8000-8002,80", "--tcp") == (8080, 80, 8000, 8001, 8002)


@pytest.mark.parametrize("text", ["0", "65536", "x", "9-8", "1-", "80;81"])
def test_bad_ports_are_refused(text):
    with pytest.raises(InvalidInputError, match="--tcp"):
        read_ports(text, "--tcp")
