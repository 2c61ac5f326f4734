from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses, ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unmoor.bpf.layout import COUNTED_ADDRESSES, COUNTERS_OF_ADDRESSES, MAX_SERVICES
from unmoor.errors import UnmoorError
from unmoor.model import Binding, EdgeDocument
from unmoor.sockets.table import rules
from unmoor.sockets.table.allocation import Allocation, Counted, allocate_counters, allocate_ids
from unmoor.sockets.table.packed import Packed
from unmoor.sockets.table.record import Record, decode


def edge(**changes: Any) -> EdgeDocument:
    document: dict[str, Any] = {
        "pop": "ams",
        "edge": "edge1",
        "prefixes": ["198.18.0.0/20", "2001:db8::/44"],
        "services": [{"label": "web", "ports": [80, "8000-8099"], "protocols": ["tcp", "udp"]}],
    }
    return EdgeDocument.model_validate(document | changes)


def test_a_record_comes_back_as_it_was() -> None:
    document = edge()
    record = Record(
        7,
        "ab" * 32,
        4026531840,
        Packed.of(document).encode(),
        {"web": 3},
        {"eth0": 2},
        ((5, 4096, 512), (1 << 32 - 1, 1, 0)),
        {512: 1 << 63},
    )
    data = record.encode()
    assert decode(data) == record
    assert decode(data).edge == document
    assert decode(data).bindings == tuple(document.bindings())
    assert decode(data + bytes(4096)) == record


@pytest.mark.parametrize("plain", [b'{"format": 2, "generation": 1}', b"\x63whatever comes"])
def test_a_record_of_another_version_is_refused(plain: bytes) -> None:
    packed = zlib.compress(plain)
    with pytest.raises(UnmoorError, match=r"has format (2|99)"):
        decode(len(packed).to_bytes(4, "little") + packed)


NETWORKS = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda pair: ip_network((pair[0] >> 32 - pair[1] << 32 - pair[1], pair[1]))
    ),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda pair: ip_network((pair[0] >> 128 - pair[1] << 128 - pair[1], pair[1]))
    ),
)
LISTS = st.lists(NETWORKS, min_size=1, max_size=8)


@given(LISTS, st.lists(st.one_of(st.none(), LISTS), max_size=4))
def test_any_document_can_be_packed(own: list[Any], others: list[list[Any] | None]) -> None:
    services = [
        {"label": f"s{number}", "ports": ["any", 80 + number], "prefixes": prefixes}
        for number, prefixes in enumerate(others)
    ]
    document = edge(prefixes=own, services=services)
    packed = Packed.decode(Packed.of(document).encode())
    assert packed.edge == document
    assert [service.label for service in packed.services] == [each["label"] for each in services]
    assert packed.rules == Packed.of(document).rules
    assert Counter(rules.Lines(packed.rules)) == Counter(set(document.bindings()))


@given(LISTS, LISTS)
def test_the_difference_of_two_documents(some: list[Any], others: list[Any]) -> None:
    one, other = (Packed.of(edge(prefixes=prefixes)) for prefixes in (some, others))
    added, removed = rules.difference(one.rules, other.rules)
    before, after = set(other.edge.bindings()), set(one.edge.bindings())
    assert (set(added), set(removed)) == (after - before, before - after)
    assert len(added) == len(list(added)) == len(set(added))


LABELS = st.lists(st.sampled_from([f"s{number}" for number in range(20)]), unique=True)


@given(st.lists(LABELS, min_size=1, max_size=8))
def test_ids_are_stable_and_not_taken_from_the_generation_before(steps: list[list[str]]) -> None:
    kept: list[dict[str, int]] = []
    for labels in steps:
        ids = allocate_ids(labels, *kept)
        assert set(ids) == set(labels)
        assert len(set(ids.values())) == len(ids)
        for earlier in kept:
            for label, number in ids.items():
                owners = [other for other, taken in earlier.items() if taken == number]
                assert owners in ([], [label])
        if kept:
            assert all(ids[label] == number for label, number in kept[0].items() if label in ids)
        kept = [ids, *kept][:2]


def test_too_many_services_are_refused() -> None:
    labels = [f"s{number}" for number in range(MAX_SERVICES)]
    assert len(allocate_ids(labels)) == MAX_SERVICES
    with pytest.raises(UnmoorError, match="more than 2048 services"):
        allocate_ids([*labels, "more"])


PREFIXES = st.tuples(st.integers(0, 255), st.sampled_from([15, 16, 17, 20, 22, 24, 28, 32])).map(
    lambda pair: ip_network((0xC6120000 | pair[0] << 8, pair[1]), strict=False)
)
SMALL, LARGE = IPv4Network("198.18.0.0/22"), IPv4Network("198.18.0.0/20")


def allocate(prefixes: list[Any], *kept: tuple[Counted, ...]) -> Allocation:
    found = rules.of_bindings(Binding("tcp", prefix, 80, 80, "web") for prefix in prefixes)
    return allocate_counters(found, *kept)


def counters(spans: tuple[Counted, ...], addresses: Iterable[int]) -> dict[int, int]:
    """The numbers of the counters of those addresses that have one."""
    return {
        address: first + address - start
        for start, count, first in spans
        for address in addresses
        if start <= address < start + count
    }


@given(st.lists(st.lists(PREFIXES, max_size=6), min_size=1, max_size=5))
@example([[SMALL], [LARGE], [SMALL]])
@example([[IPv4Network("198.18.0.0/17")], [IPv4Network("198.18.0.0/16")], [IPv4Network("198.19.0.0/16")]])
def test_counters_never_overlap_and_stay_with_their_address(steps: list[list[IPv4Network]]) -> None:
    kept: list[tuple[Counted, ...]] = []
    ends = {int(end) for prefixes in steps for each in prefixes for end in (each[0], each[-1])}
    for prefixes in steps:
        spans, fresh = allocate(prefixes, *kept)
        taken = sorted((first, first + count) for _, count, first in spans)
        assert all(0 <= first < end <= COUNTERS_OF_ADDRESSES for first, end in taken)
        assert all(end <= first for (_, end), (first, _) in pairwise(taken))
        assert sum(count for _, count, _ in spans) <= COUNTED_ADDRESSES
        began = {number + at for number, count in fresh for at in range(count)}
        now = counters(spans, ends)
        if kept:
            before = counters(kept[0], ends)
            known = {address for spans_before in kept for address in counters(spans_before, ends)}
            assert all(now[address] == before[address] for address in now.keys() & before.keys())
            assert began.isdisjoint(before.values())
            assert all(now[address] in began for address in now.keys() - known)
        # Prefixes that are small enough in total are counted completely, whatever was counted before.
        distinct = list(collapse_addresses(prefixes))
        if sum(prefix.num_addresses for prefix in distinct) <= COUNTED_ADDRESSES:
            assert sum(count for _, count, _ in spans) == sum(each.num_addresses for each in distinct)
        kept = [spans, *kept][:2]


def test_everything_that_fits_is_counted() -> None:
    prefixes = ("198.18.0.0/20", "2001:db8::/44", "198.18.4.0/24")
    assert allocate([ip_network(each) for each in prefixes]).spans == ((0xC6120000, 4096, 0),)
    assert allocate([ip_network("198.18.0.0/15")]).spans == ()
    assert len(allocate([ip_network("198.18.0.0/16")]).spans) == 1
    spans = allocate([ip_network((0xC6120000 + 2 * number, 32)) for number in range(70_000)]).spans
    assert len(spans) == COUNTED_ADDRESSES


def test_a_prefix_that_grows_goes_on_in_the_counters_of_its_addresses() -> None:
    small = allocate([SMALL]).spans
    addresses = list(map(int, SMALL))
    large, fresh = allocate([LARGE], small)
    assert counters(small, addresses).items() <= counters(large, addresses).items()
    assert sum(count for _, count in fresh) == LARGE.num_addresses - SMALL.num_addresses


@given(st.data())
def test_a_damaged_record_is_reported(data: st.DataObject) -> None:
    good = Record(7, "ab" * 32, 1, Packed.of(edge()).encode(), {"web": 3}).encode()
    at = data.draw(st.integers(4, len(good) - 1))
    cut = good[:at]
    with pytest.raises(UnmoorError, match="damaged"):
        decode(cut)
    with pytest.raises(UnmoorError):
        decode(good[:4] + bytes(len(good) - 4))


@pytest.mark.parametrize("text", ["[]", "1", "null", '{"format": []}', '"x"', "{"])
def test_a_record_that_is_damaged_has_a_fix(text: str) -> None:
    packed = zlib.compress(text.encode())
    with pytest.raises(UnmoorError, match=r"is damaged|has format"):
        decode(len(packed).to_bytes(4, "little") + packed)
