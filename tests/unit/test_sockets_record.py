from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unmoor.errors import UnmoorError
from unmoor.model import EdgeDocument
from unmoor.sockets.layout import COUNTED_ADDRESSES, MAX_SERVICES
from unmoor.sockets.record import Counted, Record, allocate_counters, allocate_ids, decode


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
        7, "ab" * 32, 4026531840, document.model_dump_json(), {"web": 3}, {"eth0": 2}, ((5, 4096, 512),)
    )
    data = record.encode()
    assert decode(data) == record
    assert decode(data).edge == document
    assert decode(data).bindings == tuple(document.bindings())
    assert decode(data + bytes(4096)) == record


def test_a_record_of_another_version_is_refused() -> None:
    data = Record(7, "", 0, "", {}).encode()
    import json
    import zlib

    document = json.loads(zlib.decompress(data[4:]))
    document["format"] = 99
    packed = zlib.compress(json.dumps(document).encode())
    with pytest.raises(UnmoorError, match="has format 99"):
        decode(len(packed).to_bytes(4, "little") + packed)


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


def ranges(allocation: tuple[Counted, ...]) -> list[tuple[int, int]]:
    return sorted((first, first + count) for _, count, first in allocation)


PREFIXES = st.tuples(st.integers(0, 255), st.sampled_from([16, 20, 22, 24, 28, 32])).map(
    lambda pair: ip_network((0xC6120000 | pair[0] << 8, pair[1]), strict=False)
)


SMALL, LARGE = IPv4Network("198.18.0.0/22"), IPv4Network("198.18.0.0/20")


@given(st.lists(st.lists(PREFIXES, max_size=6), min_size=1, max_size=5))
@example([[SMALL], [LARGE], [SMALL]])
def test_counters_never_overlap_and_stay_with_their_address(steps: list[list[IPv4Network]]) -> None:
    kept: list[tuple[Counted, ...]] = []
    for prefixes in steps:
        allocation = allocate_counters(prefixes, *kept)
        taken = ranges(allocation)
        assert all(0 <= first < end <= COUNTED_ADDRESSES for first, end in taken)
        assert all(end <= first for (_, end), (first, _) in pairwise(taken))
        for start, count, first in allocation:
            for known, size, counter in kept[0] if kept else ():
                if known <= start and start + count <= known + size:
                    assert first == counter + start - known
        kept = [allocation, *kept][:2]


def test_everything_that_fits_is_counted() -> None:
    prefixes = ("198.18.0.0/20", "2001:db8::/44", "198.18.4.0/24")
    allocation = allocate_counters([ip_network(prefix) for prefix in prefixes])
    assert allocation == ((0xC6120000, 4096, 0),)
    assert allocate_counters([ip_network("198.18.0.0/15")]) == ()
    assert len(allocate_counters([ip_network("198.18.0.0/16")])) == 1
    assert (
        len(allocate_counters([ip_network((0xC6120000 + number, 32)) for number in range(70_000)])) == 65536
    )
