"""What a rollout removes is counted, and must be expected by the operator."""

from __future__ import annotations

from typing import Any

import pytest

from unmoor.errors import InvalidInputError
from unmoor.model import DnsDocument, EdgeDocument
from unmoor.model.documents import Documents
from unmoor.model.removals import parse_expected, removed, unexpected


def documents(
    names: tuple[str, ...] = ("a", "b", "c"),
    *,
    prefixes: tuple[str, ...] = ("198.18.0.0/20", "198.18.32.0/20"),
    services: tuple[str, ...] = ("web", "tls"),
    zones: tuple[str, ...] = ("example.test",),
    registry: int | None = None,
) -> Documents:
    edge = {
        "pop": "ams",
        "edge": "e",
        "prefixes": prefixes,
        "services": [{"label": label, "ports": [number]} for number, label in enumerate(services, 1)],
    }
    dns: dict[str, Any] = {
        "pop": "ams",
        "edge": "e",
        "listen": ["198.19.1.11"],
        "zones": [{"name": zone, "hostnames": [{"names": names}]} for zone in zones],
    }
    if registry is not None:
        dns["registry"] = {"path": "/r", "sha256": f"{registry:064x}", "names": registry}
    return Documents(EdgeDocument.model_validate(edge), DnsDocument.model_validate(dns))


def why(old: Documents, new: Documents, expected: str = "", **unasked: int) -> list[str]:
    return list(unexpected(old, new, parse_expected(expected), unasked))


def test_no_change_and_additions_are_not_asked() -> None:
    assert why(documents(), documents()) == []
    more = documents(("a", "b", "c", "d"), prefixes=("198.18.0.0/20", "198.18.32.0/20", "198.18.64.0/20"))
    assert why(documents(registry=3), documents(("a", "b", "c", "d"), registry=4)) == []
    assert why(documents(), more) == []


def test_a_cut_file_of_hostnames_is_refused_until_the_number_is_expected() -> None:
    old, new = documents(), documents(("a",))
    assert why(old, new) == [
        "hostnames: 2 that are in force would be removed: b.example.test, c.example.test; "
        "if that is right: -e expect_removed=hostnames:2"
    ]
    assert why(old, new, "hostnames:2") == []
    assert "and expect_removed has 3" in why(old, new, "hostnames:3")[0]
    assert why(old, new, hostnames=2) == []
    assert why(old, new, hostnames=1)
    assert why(new, new, "hostnames:2") == []  # an edge that an earlier run changed already


def test_the_same_names_written_otherwise_are_not_removed() -> None:
    assert why(documents(("A", "@")), documents(("a.example.test.", "example.test."))) == []


def test_every_kind_is_counted() -> None:
    old = documents(registry=10, zones=("example.test", "other.test"))
    new = documents(("a", "b"), prefixes=("198.18.0.0/20",), services=("web",), registry=7)
    counts = {kind: len(names) for kind, names in removed(old, new).items()}
    # One name of the zone that stays, three of the zone that goes, and three of the registry.
    assert counts == {"prefixes": 1, "services": 1, "zones": 1, "hostnames": 7}
    lines = why(old, new)
    option = "-e expect_removed=prefixes:1,services:1,zones:1,hostnames:7"
    assert len(lines) == 4
    assert all(line.endswith(option) for line in lines)
    assert why(old, new, option.partition("=")[2]) == []


@pytest.mark.parametrize(
    "text", ["hostnames", "hostnames:", "hostnames:-1", "names:1", "zones:1,zones:2", "3"]
)
def test_an_expectation_that_means_nothing(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expect_removed"):
        parse_expected(text)
