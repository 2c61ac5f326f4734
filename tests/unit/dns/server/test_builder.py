"""The server's compilation of documents: each part of a document is parsed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.dns_document import document, model
from unmoor.dns.counters.counters import Table
from unmoor.dns.hostnames import hostnames
from unmoor.dns.protocol import names
from unmoor.dns.server.reloader import Builder
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.zone_store import CopyKey, Store

SMALL = "$TTL 60\n@ SOA ns h 1 2 3 4 500\n@ NS ns\nns A 198.18.0.53\n"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is parsed, one entry for each zone file and each set of hostnames."""
    found: list[str] = []
    zone_file, read = static_zone.parse, hostnames.read

    def parse_zone(*arguments: Any) -> Any:
        found.append("zone file")
        return zone_file(*arguments)

    def read_names(*arguments: Any) -> Any:
        found.append("hostnames")
        return read(*arguments)

    monkeypatch.setattr(static_zone, "parse", parse_zone)
    monkeypatch.setattr(hostnames, "read", read_names)
    return found


def test_a_reload_of_other_pools_parses_nothing(tmp_path: Path, parsed: list[str]) -> None:
    builder, old = Builder(tmp_path / "dns.json", Store(tmp_path), Table()), model(document())
    first = builder.first(old)
    assert parsed == ["zone file", "hostnames"]
    pools = {**document()["pools"], "free": {"ipv4": ["198.18.7.0/24"]}}
    second = builder.build(model(document(pools=pools)), old)
    assert parsed == ["zone file", "hostnames"]
    assert second.content is first.content


def test_hostnames_that_clash_are_left_out_without_parsing_again(tmp_path: Path, parsed: list[str]) -> None:
    apex = names.from_text("example.net")
    store = Store(tmp_path, keep=True)
    store.offer(CopyKey(apex), static_zone.read(SMALL + "www A 198.18.0.1\n", apex))
    store.accept(CopyKey(apex))
    parsed.clear()
    transferred = {
        "name": "example.net",
        "primaries": [{"address": "198.51.100.9"}],
        "hostnames": [{"names": ["www", "shop"], "tags": {"account_type": "free"}}],
    }
    data = document(zones=[*document()["zones"], transferred])
    snapshot = Builder(tmp_path / "dns.json", store, Table()).first(model(data))
    assert parsed == ["zone file", "hostnames"]
    assert snapshot.target_of(names.from_text("shop.example.net"))
    assert not snapshot.target_of(names.from_text("www.example.net"))
