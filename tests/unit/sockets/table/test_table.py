"""The compiled table chooses by the rule of precedence, for any bindings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unmoor.bpf.layout import (
    COUNTERS_OF_ADDRESSES,
    LEAF,
    MAX_DEPTH,
    MAX_NESTING,
    NODE,
    PORT,
    PROTOCOLS,
    ROOT_AND_ANY,
    ROOT_IS_LEAF,
)
from unmoor.errors import UnmoorError
from unmoor.model import Binding, parse_ports
from unmoor.sockets.table import allocation, rules, table
from unmoor.sockets.table.precedence import order, stretches

INTERFACES = {"eth0": 2, "eth1": 3}
SERVICES = {name: number for number, name in enumerate("abcdefgh", 1)}
Address = IPv4Address | IPv6Address


def build(bindings: Iterable[Binding], *arguments: Any) -> table.Table:
    return table.build(rules.of_bindings(bindings), SERVICES, *arguments)


def aligned(address: Address) -> int:
    return int(address) << (96 if address.version == 4 else 0)


def descend(compiled: table.Table, root: int, value: int) -> int:
    """The number of the leaf that the nodes below a root lead to."""
    index = root
    for _ in range(MAX_DEPTH):
        first, pos, bits, _ = NODE.unpack_from(compiled.nodes, index * NODE.size)
        if not bits:
            return int(first)
        word = value >> 64 if pos < 64 else value & (1 << 64) - 1
        index = first + ((word << (pos & 63) & (1 << 64) - 1) >> (64 - bits))
    raise AssertionError("the trie is too deep for the program")


def walk(compiled: table.Table, root: int, value: int, ifindex: int) -> tuple[int, int, int] | None:
    """`find` of dispatch.bpf.c: (service, prefix length, address_base) of the leaf."""
    root &= ~ROOT_AND_ANY
    number = root & ~ROOT_IS_LEAF if root & ROOT_IS_LEAF else descend(compiled, root, value)
    for _ in range(MAX_NESTING):
        if not number:
            return None
        high, low, mask_high, mask_low, parent, service, condition, length, base = LEAF.unpack_from(
            compiled.leaves, number * LEAF.size
        )
        if value & (mask_high << 64 | mask_low) == high << 64 | low and condition in (0, ifindex):
            return service, length, base
        number = parent
    raise AssertionError("the chain of prefixes is too long for the program")


def choose(compiled: table.Table, protocol: str, address: Address, port: int, ifindex: int = 0) -> int | None:
    """`run` of dispatch.bpf.c: the service that takes the packet."""
    value, number = aligned(address), PROTOCOLS.index(protocol)
    roots = PORT.unpack_from(compiled.ports, (number << 16 | port) * PORT.size)
    column = 0 if address.version == 4 else 1
    own = walk(compiled, roots[column], value, ifindex)
    any_port = None
    if roots[column] & ROOT_AND_ANY:
        any_port = walk(compiled, compiled.any_roots[number * 2 + column], value, ifindex)
    if own and (not any_port or any_port[1] <= own[1]):
        return own[0]
    return any_port[0] if any_port else None


def brute_force(
    bindings: Iterable[Binding], protocol: str, address: Address, port: int, interface: str
) -> str | None:
    found = [
        binding
        for binding in bindings
        if binding.protocol == protocol
        and binding.prefix.version == address.version
        and address in binding.prefix
        and binding.first_port <= port <= binding.last_port
        and binding.interface in ("", interface)
    ]
    return min(found, key=order).service if found else None


# Few distinct bits and ports, so that prefixes nest and ranges overlap often.
ADDRESSES = st.one_of(
    st.integers(0, 31).map(lambda bits: IPv4Address(0xC6120000 | (bits & 7) << 13 | bits >> 3)),
    st.integers(0, 31).map(lambda bits: IPv6Address(0x20010DB8 << 96 | (bits & 7) << 62 | bits >> 3)),
)
PORTS = st.one_of(
    st.just((0, 65535)),
    st.integers(1, 9).map(lambda port: (port, port)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda pair: (min(pair), max(pair))),
)


@st.composite
def bindings_strategy(draw: st.DrawFn) -> Binding:
    address = draw(ADDRESSES)
    lengths = (
        [0, 8, 15, 16, 19, 20, 24, 30, 31, 32] if address.version == 4 else [0, 32, 44, 64, 65, 66, 127, 128]
    )
    prefix = ip_network((address, draw(st.sampled_from(lengths))), strict=False)
    first, last = draw(PORTS)
    interface = draw(st.sampled_from(["", "", "", *INTERFACES]))
    return Binding(
        draw(st.sampled_from(["tcp", "udp"])),
        prefix,
        first,
        last,
        draw(st.sampled_from("abcdefgh")),
        interface,
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(bindings_strategy(), max_size=40),
    st.lists(st.tuples(ADDRESSES, st.integers(1, 11)), max_size=20),
)
@example([], [(ip_address("198.18.0.1"), 80)])
def test_the_table_agrees_with_the_rule(
    bindings: list[Binding], questions: list[tuple[Address, int]]
) -> None:
    try:
        compiled = build(bindings, INTERFACES)
    except UnmoorError:
        assert ambiguous(bindings)
        return
    edges = [end for b in bindings for end in (b.prefix.network_address, b.prefix.broadcast_address)]
    for address, port in questions + [(address, port) for address in edges for port in (1, 5, 9)]:
        for protocol in ("tcp", "udp"):
            for interface in ("", "eth0"):
                wanted = brute_force(bindings, protocol, address, port, interface)
                number = choose(compiled, protocol, address, port, INTERFACES.get(interface, 0))
                assert number == (SERVICES[wanted] if wanted else None)


@settings(max_examples=300, deadline=None)
@given(st.lists(bindings_strategy(), max_size=40), st.integers(1, 10), st.sampled_from(["", "eth0"]))
def test_the_expectation_agrees_with_the_rule(bindings: list[Binding], port: int, interface: str) -> None:
    if ambiguous(bindings):
        return
    for protocol, family, bits, kind in (("tcp", 4, 32, IPv4Address), ("udp", 6, 128, IPv6Address)):
        mine = [each for each in bindings if each.protocol == protocol and each.prefix.version == family]
        cut = stretches(list(rules.of_bindings(mine)), family, port, interface)
        for first, last, taker in cut:
            for number in (first, (first + last) // 2, last):
                assert brute_force(mine, protocol, kind(number), port, interface) == taker
        # Every end of every prefix is an end of a stretch.
        firsts, lasts = {first for first, _, _ in cut}, {last for _, last, _ in cut}
        assert {int(each.prefix.network_address) for each in mine} <= firsts
        assert {int(each.prefix.broadcast_address) for each in mine} <= lasts
        if any(taker for _, _, taker in cut):  # they are all addresses, each once
            assert [first for first, _, _ in cut[1:]] == [last + 1 for _, last, _ in cut[:-1]]
            assert (cut[0][0], cut[-1][1]) == (0, (1 << bits) - 1)


@st.composite
def counted_strategy(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Ranges of addresses in order, with consecutive counters or not."""
    ends = sorted(draw(st.sets(st.integers(0, 1 << 17), max_size=12)))
    return [
        (0xC6120000 + start, end - start, draw(st.integers(0, COUNTERS_OF_ADDRESSES)))
        for start, end in pairwise(ends)
        if draw(st.booleans())
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(bindings_strategy(), max_size=20), counted_strategy(), st.lists(ADDRESSES, max_size=20))
@example([Binding("tcp", ip_network("0.0.0.0/0"), 1, 9, "a")], [(0xC6120000, 4096, 7)], [])
def test_counters_in_pieces_change_nothing_else(
    bindings: list[Binding], counted: list[tuple[int, int, int]], asked: list[Address]
) -> None:
    if ambiguous(bindings):
        return
    plain, pieces = build(bindings, INTERFACES), build(bindings, INTERFACES, counted)
    ends = [
        end for start, count, _ in counted for end in (start - 1, start, start + count - 1, start + count)
    ]
    for address in [*map(IPv4Address, ends), *asked]:
        for place in (5, 65536 + 5):
            roots = [
                PORT.unpack_from(each.ports, place * PORT.size)[address.version == 6]
                for each in (plain, pieces)
            ]
            one, other = (
                walk(each, root, aligned(address), 2) if root else None
                for each, root in zip((plain, pieces), roots, strict=True)
            )
            assert (one and one[:2]) == (other and other[:2])
            if other and address.version == 4:
                number = (int(address) + other[2]) % (1 << 64)
                wanted = [
                    first + int(address) - start
                    for start, n, first in counted
                    if start <= int(address) < start + n
                ]
                assert wanted == [number] if wanted else number >= COUNTERS_OF_ADDRESSES


def ambiguous(bindings: Sequence[Binding]) -> bool:
    return any(
        a.service != b.service
        and (a.protocol, a.prefix, a.interface) == (b.protocol, b.prefix, b.interface)
        and a.last_port - a.first_port == b.last_port - b.first_port
        and a.first_port <= b.last_port
        and b.first_port <= a.last_port
        for index, a in enumerate(bindings)
        for b in bindings[index + 1 :]
    )


def tcp(prefix: str, first: int, last: int, service: str) -> Binding:
    return Binding("tcp", ip_network(prefix), first, last, service)


# Bindings (prefix, ports, service), then a query and the service that must take it.
PRECEDENCE = {
    "longer prefix": ("198.18.0.0/20 any a, 198.18.0.0/24 any b", "198.18.0.9", 80, "b"),
    "longer prefix before port": ("198.18.0.0/20 80 a, 198.18.0.0/24 any b", "198.18.0.9", 80, "b"),
    "port before any": ("198.18.0.0/24 80 a, 198.18.0.0/24 any b", "198.18.0.9", 80, "a"),
    "narrower range": ("198.18.0.0/24 80-89 a, 198.18.0.0/24 80 b", "198.18.0.9", 80, "b"),
    "range beside port": ("198.18.0.0/24 80-89 a, 198.18.0.0/24 80 b", "198.18.0.9", 89, "a"),
    "other port": ("198.18.0.0/24 80 a", "198.18.0.9", 81, None),
    "next address": ("198.18.0.0/24 80 a", "198.18.1.0", 80, None),
    "everything": ("0.0.0.0/0 any a", "8.8.8.8", 1, "a"),
    "other family": ("0.0.0.0/0 any a", "2001:db8::1", 1, None),
    "one address of IPv6": ("2001:db8::/44 443 a, 2001:db8::5/128 443 b", "2001:db8::5", 443, "b"),
}


@pytest.mark.parametrize("case", PRECEDENCE)
def test_precedence(case: str) -> None:
    text, address, port, wanted = PRECEDENCE[case]
    bindings = []
    for line in text.split(", "):
        prefix, ports, service = line.split()
        bindings.append(tcp(prefix, *parse_ports(ports), service))
    for ordered in (bindings, bindings[::-1]):
        compiled = build(ordered)
        assert choose(compiled, "tcp", ip_address(address), port) == (SERVICES[wanted] if wanted else None)


def test_an_interface_comes_before_any_whatever_the_order() -> None:
    prefix = ip_network("198.18.0.0/24")
    bindings = [Binding("tcp", prefix, 1, 5, "a"), Binding("tcp", prefix, 3, 7, "b", "eth0")]
    for ordered in (bindings, bindings[::-1]):
        compiled = build(ordered, INTERFACES)
        assert choose(compiled, "tcp", prefix[9], 4, INTERFACES["eth0"]) == SERVICES["b"]
        assert choose(compiled, "tcp", prefix[9], 4, INTERFACES["eth1"]) == SERVICES["a"]


def test_two_services_bound_to_the_same_are_refused() -> None:
    with pytest.raises(UnmoorError, match="bind each prefix and port to one service"):
        build([tcp("198.18.0.0/24", 80, 80, "a"), tcp("198.18.0.0/24", 80, 80, "b")])


def test_ranges_that_overlap_equally_are_refused() -> None:
    with pytest.raises(UnmoorError, match="make one range narrower"):
        build([tcp("198.18.0.0/24", 80, 89, "a"), tcp("198.18.0.0/24", 85, 94, "b")])


def test_ports_with_the_same_bindings_share_one_trie() -> None:
    bindings = [tcp("198.18.0.0/20", port, port, "a") for port in range(8000, 8013)]
    one, many = build(bindings[:1]), build(bindings)
    assert (len(one.nodes), len(one.leaves)) == (len(many.nodes), len(many.leaves))


def test_the_root_of_a_single_prefix_is_its_leaf() -> None:
    one = build([tcp("198.18.0.0/20", 80, 89, "a"), tcp("198.18.0.0/20", 0, 65535, "b")])
    assert len(one.nodes) == NODE.size  # node 0: nothing is bound
    roots = [PORT.unpack_from(one.ports, port * PORT.size)[0] for port in (79, 80, 89, 90)]
    assert (roots[0], roots[3]) == (ROOT_AND_ANY, ROOT_AND_ANY)
    assert all(root & ROOT_IS_LEAF for root in (*roots[1:3], one.any_roots[0]))
    assert [choose(one, "tcp", ip_address("198.18.0.1"), port) for port in (80, 90)] == [1, 2]
    assert PORT.unpack_from(one.ports, (1 << 16 | 80) * PORT.size) == (0, 0), "UDP has no binding"
    assert PORT.unpack_from(one.ports, 80 * PORT.size)[1] == 0, "nor has IPv6"


def test_one_prefix_on_any_port_does_not_grow_every_ports_trie() -> None:
    wide = [tcp(f"198.18.{number >> 8}.{number & 255}/32", 0, 65535, "a") for number in range(1000)]
    ports = [tcp("198.18.0.0/20", port, port, f"{'bcdefgh'[port % 7]}") for port in range(1, 500)]
    compiled = build(wide + ports)
    assert len(compiled.leaves) // LEAF.size < 1100
    assert choose(compiled, "tcp", ip_address("198.18.0.1"), 8) == SERVICES["a"]
    assert choose(compiled, "tcp", ip_address("198.18.15.1"), 8) == SERVICES["c"]


def test_the_trie_stays_shallow_for_hostile_prefixes() -> None:
    # Each prefix leaves the path of the others one bit later: the worst case for a binary trie.
    chain = [ip_network((1 << (127 - bit) | 1 << 127, bit + 1), strict=False) for bit in range(1, 128)]
    compiled = build([Binding("tcp", prefix, 80, 80, "a") for prefix in chain])
    for prefix in chain:
        assert choose(compiled, "tcp", prefix.network_address, 80) == SERVICES["a"]


def test_counters_of_addresses() -> None:
    prefix, inner = ip_network("198.18.0.0/20"), ip_network("198.18.4.0/24")
    outside = ip_network("198.18.64.0/24")
    compiled = build(
        [Binding("tcp", each, 80, 80, "a") for each in (prefix, inner, outside)],
        {},
        [(int(prefix.network_address), 4096, 512)],
    )
    root = PORT.unpack_from(compiled.ports, 80 * PORT.size)[0]

    def counter(address: str) -> int:
        found = walk(compiled, root, aligned(ip_address(address)), 0)
        assert found
        return (int(ip_address(address)) + found[2]) % (1 << 64)

    assert counter("198.18.0.0") == 512
    assert counter("198.18.4.7") == 512 + 1024 + 7
    assert counter("198.18.15.255") == 512 + 4095
    assert counter("198.18.64.0") >= COUNTERS_OF_ADDRESSES


@pytest.mark.parametrize(
    ("marks", "gaps"),
    [
        ("", []),
        ("11", []),
        ("000", [(0, 3)]),
        ("011", [(0, 1)]),
        ("0011010", [(0, 2), (4, 1), (6, 1)]),
        ("1001100", [(1, 2), (5, 2)]),
    ],
)
def test_gaps_between_counters_end_where_the_next_counter_is_used(
    marks: str, gaps: list[allocation.Span]
) -> None:
    found = allocation._runs(bytearray(map(int, marks)))
    assert list(islice(found, len(marks) + 1)) == gaps


def test_a_range_is_spread_over_gaps_and_the_next_continues_after_it() -> None:
    gaps = iter([(0, 2), (10, 2), (20, 9)])
    assert list(islice(allocation._allocate([(200, 3), (100, 5)], gaps), 9)) == [
        (100, 2, 0),
        (102, 2, 10),
        (104, 1, 20),
        (200, 3, 21),
    ]


def test_lists_of_one_service_that_overlap_differ_in_order_and_once() -> None:
    first, second, third, last = (rules.key(ip_network(f"198.18.{each}.0/24")) for each in (1, 4, 7, 9))

    def rule(*keys: int) -> rules.Rule:
        return rules.Rule("tcp", 4, 80, 80, "a", "", keys)

    added, removed = rules.difference([rule(first, third, last), rule(second, last)], [rule(third)])
    assert [each.keys for each in added.rules] == [(first, second, last)]
    assert not removed
    added, removed = rules.difference([rule(third)], [rule(first, third, last), rule(second, last)])
    assert [each.keys for each in removed.rules] == [(first, second, last)]
    assert not added
