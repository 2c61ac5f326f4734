"""Policies as zone files: their content, that it is reproducible, and that other servers accept them."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import dns.rdatatype
import dns.zone
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from support import other_servers
from support.dns_document import document, in_registry
from support.dns_local import Local
from support.dns_primary import zone_text
from unmoor.commands.dns.group import cli
from unmoor.dns.answer import export
from unmoor.dns.protocol import names
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.zone_store import CopyKey, Store

POLICIES = [
    {
        "name": "free",
        "match": {"tags": {"account_type": "free"}},
        "answer": {
            "pool": "free",
            "ttl": 30,
            "https": {"alpn": ["h3", "h2"], "port": 8443},
            "svcb": {"hints": False},
        },
    },
    {"name": "business", "answer": {"pool": "business", "ttl": 60}},
]


def run(directory: Path, data: dict[str, Any], *arguments: str) -> tuple[Path, str]:
    path = directory / "dns.json"
    path.write_text(json.dumps(data))
    output = directory / "out"
    command = [
        "export",
        "--config",
        str(path),
        "--output",
        str(output),
        "--state",
        str(directory),
        *arguments,
    ]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return output, result.output


def exported(
    directory: Path, data: dict[str, Any], *arguments: str, name: str = "example.com"
) -> dns.zone.Zone:
    """The zone as dnspython reads it."""
    output, _ = run(directory, data, *arguments)
    return dns.zone.from_file(str(output / f"{name}.zone"), relativize=False)


def addresses(zone: dns.zone.Zone, name: str, rtype: str = "A") -> list[str]:
    rdataset = zone.get_rdataset(f"{name}.example.com.", rtype)
    return sorted(rdata.address for rdata in rdataset) if rdataset else []


def test_every_name_with_addresses_of_its_pool(tmp_path: Path) -> None:
    zone = exported(tmp_path, document(policies=POLICIES), "--addresses", "5", "--seed", "1")
    for number in range(50):
        four, six = addresses(zone, f"host{number}"), addresses(zone, f"host{number}", "AAAA")
        assert (len(set(four)), len(set(six))) == (5, 5)
        assert all(ip_address(each) in ip_network("198.18.0.0/20") for each in four)
        assert all(ip_address(each) in ip_network("2001:db8::/44") for each in six)
        service = zone.get_rdataset(f"host{number}.example.com.", "HTTPS")
        assert service is not None
        assert sorted(service[0].params[4].addresses) == four
        assert sorted(service[0].params[6].addresses) == six
        assert service[0].to_text().startswith('1 . alpn="h3,h2" port="8443" ipv4hint=')
        assert zone.get_rdataset(f"host{number}.example.com.", "SVCB")[0].to_text() == '1 . alpn="h2"'
        assert zone.get_rdataset(f"host{number}.example.com.", "A").ttl == 30
    business = [ip_network("198.51.100.0/25"), ip_network("198.51.100.128/26")]
    assert all(
        any(ip_address(each) in net for net in business) for each in addresses(zone, "deep.in.the.wood")
    )
    assert zone.get_rdataset("biz.example.com.", "A").ttl == 60
    assert zone.get_rdataset("biz.example.com.", "AAAA") is None
    # The static records are unchanged.
    original = dns.zone.from_text(
        document()["zones"][0]["records"], "example.com.", relativize=False, check_origin=False
    )
    for name, rdataset in original.iterate_rdatasets():
        assert zone.get_rdataset(name, rdataset.rdtype) == rdataset


def test_seeds_repeat_and_a_new_name_changes_no_other(tmp_path: Path) -> None:
    data = document()
    one = exported(tmp_path, data, "--seed", "7")
    first = (tmp_path / "out/example.com.zone").read_bytes()
    exported(tmp_path, data, "--seed", "7")
    assert (tmp_path / "out/example.com.zone").read_bytes() == first
    other = exported(tmp_path, data, "--seed", "8")
    assert addresses(one, "host1") != addresses(other, "host1")
    data["zones"][0]["hostnames"][0]["names"] = ["new", *data["zones"][0]["hostnames"][0]["names"][5:]]
    again = exported(tmp_path, data, "--seed", "7")
    assert all(
        addresses(one, f"host{number}") == addresses(again, f"host{number}") for number in range(5, 50)
    )
    _, said = run(tmp_path, data)
    seed = said.split()[1].rstrip(",")
    _, repeated = run(tmp_path, data, "--seed", seed)
    assert said == repeated


def one_policy(answer: dict[str, Any], *names: str, **more: Any) -> dict[str, Any]:
    zone = {**document()["zones"][0], "hostnames": [{"names": list(names)}]}
    policy = {"name": "only", "answer": {"pool": "free", "ttl": 1, **answer}}
    return document(policies=[policy], zones=[zone], **more)


def test_weights_exclusions_and_small_pools(tmp_path: Path) -> None:
    pools = {
        "free": {"ipv4": ["198.18.0.0/24"], "exclude": ["198.18.0.0/25"]},
        "canary": {"ipv4": ["198.51.100.0/24"]},
        "tiny": {"ipv4": ["198.51.100.0/30"]},
    }
    hosts = [f"h{number}" for number in range(500)]
    zone = exported(
        tmp_path, one_policy({"weight": 9, "also": {"canary": 1}}, *hosts, pools=pools), "--addresses", "4"
    )
    seen = [ip_address(each) for host in hosts for each in addresses(zone, host)]
    canary = sum(each in ip_network("198.51.100.0/24") for each in seen)
    assert 140 < canary < 260  # 200 of 2000 expected, standard deviation 13.4
    assert all(
        each in ip_network("198.18.0.128/25") or each in ip_network("198.51.100.0/24") for each in seen
    )
    zone = exported(tmp_path, one_policy({"pool": "tiny"}, "a", pools=pools), "--addresses", "9")
    assert addresses(zone, "a") == [f"198.51.100.{number}" for number in range(4)]


def test_spread_evenly(tmp_path: Path) -> None:
    hosts = [f"h{number}" for number in range(2000)]
    zone = exported(
        tmp_path, one_policy({}, *hosts, pools={"free": {"ipv4": ["198.18.0.0/26"]}}), "--seed", "3"
    )
    counts = Counter(each for host in hosts for each in addresses(zone, host))
    assert len(counts) == 64
    assert 180 < min(counts.values()) <= max(counts.values()) < 325  # 250 expected, standard deviation 14.8


def test_sticky_and_pinned_are_what_the_server_answers(tmp_path: Path) -> None:
    for answer in (
        {"strategy": "sticky"},
        {"strategy": "sticky", "records": 3},
        {"strategy": "pinned", "addresses": ["198.18.0.9", "2001:db8::9"]},
    ):
        data = one_policy(answer, "a", "b.c", sticky_key="secret")
        zone, local = exported(tmp_path, data), Local(data)
        for name in ("a", "b.c"):
            for rtype in ("A", "AAAA"):
                reply = local.ask(f"{name}.example.com", rtype).answer[0]
                assert sorted(rdata.address for rdata in reply) == addresses(zone, name, rtype)


def test_what_a_zone_file_cannot_express_is_reported(tmp_path: Path) -> None:
    policies = [
        {"name": "near", "match": {"clients": ["198.51.100.0/24"]}, "answer": {"pool": "business", "ttl": 1}},
        {"name": "all", "answer": {"pool": "free", "ttl": 1, "strategy": "sticky", "sticky_by": "client"}},
    ]
    _, said = run(tmp_path, document(policies=policies))
    assert "warning: policy near: is left out, since it is for some clients only" in said
    assert "warning: policy all: is sticky by client" in said
    zone = exported(tmp_path, document(policies=policies))
    assert all(ip_address(each) in ip_network("198.18.0.0/20") for each in addresses(zone, "biz"))
    assert len(addresses(zone, "biz")) == 8


def test_another_pop_and_a_serial(tmp_path: Path) -> None:
    policies = [
        {"name": "ams", "match": {"pops": ["ams"]}, "answer": {"pool": "business", "ttl": 1}},
        {"name": "rest", "answer": {"pool": "free", "ttl": 1}},
    ]
    zone = exported(tmp_path, document(policies=policies), "--pop", "ams", "--serial", "2026112301")
    assert all(each.startswith("198.51.100.") for each in addresses(zone, "biz"))
    assert zone.get_soa().serial == 2026112301
    assert zone.get_soa().expire == 1209600


def test_wildcards_and_names_with_escapes(tmp_path: Path) -> None:
    strange = [
        "*.w",
        r"a\.b",
        r"sp\032ace",
        r"\@",
        r"sem\;i",
        r"do\$llar",
        r"q\"uote",
        r"b\\s",
        r"\000\255",
        "@",
        "*",
    ]
    zone = exported(tmp_path, one_policy({}, *strange), "--addresses", "2")
    apex = names.from_text("example.com")
    wires = {
        name.to_wire() for name, rdataset in zone.iterate_rdatasets() if rdataset.rdtype == dns.rdatatype.AAAA
    }
    assert wires >= {names.from_text(name, apex) for name in strange}


@given(label=st.binary(min_size=1, max_size=63))
@settings(max_examples=50)
def test_any_label_survives(label: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = "".join(f"\\{octet:03}" for octet in label)
    zone = exported(tmp_path_factory.mktemp("out"), one_policy({}, f"{text}.x"), "--addresses", "1")
    wire = names.from_text(f"{text}.x", names.from_text("example.com"))
    found = {
        names.fold(name.to_wire() or b"") for name, each in zone.iterate_rdatasets() if each.rdtype == 28
    }
    assert wire in found


def test_a_transferred_zone_with_and_without_a_copy(tmp_path: Path) -> None:
    zone = {"name": "example.org", "primaries": [{"address": "127.0.0.1"}], "hostnames": [{"names": ["h"]}]}
    output, said = run(tmp_path, document(zones=[zone], policies=POLICIES[1:]))
    assert "warning: zone example.org: left out" in said
    assert not (output / "example.org.zone").exists()
    store, key = Store(tmp_path), CopyKey(names.from_text("example.org"))
    store.offer(key, static_zone.read(zone_text(3, "x TXT theirs"), key.apex))
    store.accept(key)
    found = exported(tmp_path, document(zones=[zone], policies=POLICIES[1:]), name="example.org")
    assert found.get_rdataset("x.example.org.", "TXT") is not None
    assert len(found.get_rdataset("h.example.org.", "A")) == 8


def test_names_of_a_registry(tmp_path: Path) -> None:
    entries = [
        ("a.example.com.", {"account_type": "free"}),
        ("*.w.example.com.", {}),
        ("a.b.example.com.", {}),
    ]
    data = document(policies=POLICIES)
    data["zones"][0]["hostnames"] = [{"names": ["biz"]}]
    data["registry"] = in_registry(tmp_path, entries)
    zone = exported(tmp_path, data)
    assert all(ip_address(each) in ip_network("198.18.0.0/20") for each in addresses(zone, "a"))
    assert [len(addresses(zone, name)) for name in ("a", "*.w", "a.b", "biz", "b")] == [8, 8, 8, 8, 0]


def test_many_zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_OPEN_FILES", 2)
    listed = [
        {"name": f"z{number}.example", "records": zone_text(number), "hostnames": [{"names": ["a", "b"]}]}
        for number in range(9)
    ]
    output, _ = run(tmp_path, document(zones=listed, policies=POLICIES[1:]))
    for number in range(9):
        zone = dns.zone.from_file(str(output / f"z{number}.example.zone"), relativize=False)
        assert zone.get_soa().serial == number
        assert len(zone.get_rdataset(f"b.z{number}.example.", "A")) == 8
    assert len(list(output.iterdir())) == 9


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, _ = run(tmp_path, document(), "--seed", "1")
    before = (output / "example.com.zone").read_bytes()

    def torn(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "fsync", torn)
    path = tmp_path / "dns.json"
    result = CliRunner().invoke(
        cli, ["export", "--config", str(path), "--output", str(output), "--state", str(tmp_path)]
    )
    assert "cannot be written: No space left" in str(result.exception)
    assert [(each.name, each.read_bytes()) for each in output.iterdir()] == [("example.com.zone", before)]


# -- other servers ---------------------------------------------------------------------------------------

CHECKERS = {
    "named-checkzone": ["named-checkzone", "-i", "local", "example.com"],
    "kzonecheck": ["kzonecheck", "-o", "example.com"],
    "nsd-checkzone": ["nsd-checkzone", "example.com"],
}


@pytest.mark.parametrize("program", CHECKERS)
def test_checkers_of_other_servers_accept_it(tmp_path: Path, program: str) -> None:
    command, *options = CHECKERS[program]
    checker = other_servers.command(command, *options)
    strange = [*(f"h{number}" for number in range(100)), "*.w2", r"a\.b", r"sp\032ace", r"\@", r"q\"uote"]
    output, _ = run(tmp_path, one_policy({"https": {"alpn": ["h3", "h2"]}}, *strange))
    zone = output / "example.com.zone"
    done = subprocess.run([*checker, zone], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
