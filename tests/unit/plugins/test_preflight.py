"""The shipped preflight on broken copies of the lab's inventory: one screen, with file and fix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.checkout import ROOT, load
from unmoor.dns.hostnames.registry_build import build
from unmoor.dns.hostnames.registry_list import BadLines, Line
from unmoor.dns.protocol import names

#: Lines of a terminal: ten problems with their fixes, and Ansible's own output.
SCREEN = 40
EDGES = "group_vars/edges.yml"
NAMES = "zones/registry.csv"


def preflight(inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory)]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [*command, *options, "playbooks/preflight.yml"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "inventories/lab", tmp_path / "lab")
    return tmp_path / "lab"


def replace(inventory: Path, file: str, old: str, new: str) -> None:
    path = inventory / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_lab_passes(inventory: Path) -> None:
    done = preflight(inventory)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_passes() -> None:
    done = preflight(ROOT / "inventories/example")
    assert done.returncode == 0, done.stdout + done.stderr


CASES: dict[str, tuple[str, str, str, list[str]]] = {
    "a registry that is not there": (
        EDGES,
        NAMES,
        "zones/none.csv",
        ["unmoor_dns_registry = zones/none.csv", "No such file", "fix: write the list, or build"],
    ),
    "a zone file that clashes with the registry": (
        "zones/unmoor.test.zone",
        "mail    IN A",
        "reg0001 IN A 198.18.0.1\nmail    IN A",
        ["unmoor_dns_registry = reg0001.unmoor.test: is in the registry, and has a static address"],
    ),
    "a pool outside of its prefix": (
        EDGES,
        "ipv4: [198.18.0.0/20]",
        "ipv4: [198.18.64.0/20]",
        ["group_vars/edges.yml:9: unmoor_pools.free.ipv4.0 = 198.18.64.0/20", "use a part of 198.18.0.0/20"],
    ),
    "overlapping prefixes": (
        EDGES,
        "  - 198.18.0.0/20\n",
        "  - 198.18.0.0/20\n  - 198.18.8.0/22\n",
        ["unmoor_prefixes.1 = 198.18.8.0/22: overlaps 198.18.0.0/20"],
    ),
    "a port claimed by two services": (
        EDGES,
        "ports: [80, ",
        "ports: [8443, 80, ",
        ["unmoor_services.web-https.ports.5 = 8443", "claimed by web-http"],
    ),
    "an unknown pool in a policy": (
        EDGES,
        "pool: business",
        "pool: busyness",
        ["unmoor_policies.0.answer.pool = busyness", "is not a pool"],
    ),
    "a policy that can never match": (
        EDGES,
        "account: business}}\n",
        "account: gold}}\n",
        ["unmoor_policies.0", "fix:"],
    ),
    "a policy for a PoP that is not there": (
        EDGES,
        "match: {tags: {account: business}}",
        "match: {pops: [fra]}",
        ["can never match", "fra"],
    ),
    "v4 in a v6 field": (
        EDGES,
        'ipv6: ["2001:db8:100::/44"]',
        "ipv6: [198.18.0.0/20]",
        ["unmoor_pools.free.ipv6.0", "is an IPv4 prefix in an IPv6 field", "move it to ipv4"],
    ),
    "an empty group": (
        "hosts.yml",
        "    vantage:\n",
        "        pop_fra:\n          hosts: {}\n    vantage:\n",
        ["group pop_fra: has no hosts"],
    ),
    "a host without a PoP": (
        "hosts.yml",
        "    edges:\n",
        "    edges:\n      hosts: {edge9: {}}\n",
        ["host edge9: has no PoP", "pop_<name>"],
    ),
    "a broken zone file": (
        "zones/unmoor.test.zone",
        "IN MX   10 mail",
        "IN MX   ten mail",
        ["unmoor.test.zone:6", "fix:"],
    ),
    "a zone file with several errors": (
        "zones/unmoor.test.zone",
        "IN MX   10 mail",
        "IN MX   ten mail\nx AA 198.18.0.1\ny A 198.18.0.300",
        ["The inventory has 3 problems", "unmoor.test.zone:6", "unmoor.test.zone:7", "unmoor.test.zone:8"],
    ),
    "a zone without SOA": (
        "zones/unmoor.test.zone",
        "@       IN SOA  ns1 hostmaster ( 2026112301 7200 900 1209600 60 )",
        "@ IN TXT x",
        ["unmoor.test.zone", "SOA"],
    ),
    "a second PoP of the same name": (
        "hosts.yml",
        "    vantage:\n",
        "    more:\n      children:\n        pop_lab:\n          hosts:\n"
        "            edge3: {}\n    vantage:\n",
        ["group pop_lab: is a second PoP of the same name"],
    ),
    "a misspelt variable": (
        EDGES,
        "unmoor_pools:",
        "unmoor_pool:",
        ["unmoor_pool: is not a known key", "host edge1, edge2: unmoor_pools: is missing"],
    ),
    "a zone with records and primaries": (
        EDGES,
        "    records_file: zones/unmoor.test.zone\n",
        "    records_file: zones/unmoor.test.zone\n    primaries: [{address: 198.51.100.9}]\n",
        ["unmoor_zones.0 = unmoor.test: has both a records_file and primaries"],
    ),
    "keys of transfers": (
        EDGES,
        "    records_file: zones/unmoor.test.zone\n    hostnames_file: zones/unmoor.test.csv\n",
        "    primaries: [{address: 198.51.100.9, tsig_key: nil}]\n"
        "    hostnames_file: zones/unmoor.test.csv\n"
        "unmoor_tsig_keys: {k: {secret: c2hvcnQ=}}\n",
        [
            "unmoor_zones.0.primaries.0.tsig_key = nil: is not a key",
            "unmoor_tsig_keys.k.secret: is 5 octets long",
        ],
    ),
    "a hostname twice": (
        "zones/unmoor.test.csv",
        "site0002,free",
        "SITE0001,free",
        ["zones/unmoor.test.csv:3: name = SITE0001: is registered twice"],
    ),
}


@pytest.mark.parametrize(("file", "old", "new", "said"), CASES.values(), ids=CASES.keys())
def test_bad_input(inventory: Path, file: str, old: str, new: str, said: list[str]) -> None:
    replace(inventory, file, old, new)
    done = preflight(inventory)
    shown = done.stdout + done.stderr
    assert done.returncode != 0, shown
    for text in said:
        assert text in shown, shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= SCREEN, shown


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ipv4: [198.18.8.0/21]", "ipv4: [198.18.64.0/21]", "outside of the prefixes"),
        ("unmoor_dns_query_log: {sample: 100}", "unmoor_dns_query_log: {sampel: 100}", "is not a known key"),
    ],
    ids=["a wrong value", "a misspelt key"],
)
def test_problems_of_variables_and_of_files_are_reported_together(
    inventory: Path, old: str, new: str, said: str
) -> None:
    replace(inventory, EDGES, old, new)
    replace(inventory, "zones/unmoor.test.zone", "IN MX   10 mail", "IN MX   ten mail")
    replace(inventory, "zones/unmoor.test.csv", "site0002,free", "SITE0001,free")
    replace(inventory, NAMES, "reg0002.unmoor.test,", "REG0001.unmoor.test,")
    done = preflight(inventory)
    shown = done.stdout + done.stderr
    assert done.returncode != 0, shown
    for text in (
        said,
        f"{inventory}/zones/unmoor.test.zone:6: ",
        "name = SITE0001: is registered twice",
        f"{NAMES}:3: reg0001.unmoor.test is registered twice",
    ):
        assert text in shown, shown
    # These four, and that the list was not built: files that could not be read cause no further problems.
    assert "The inventory has 5 problems" in shown, shown
    assert "Traceback" not in shown


def test_a_list_with_bad_lines_of_a_registry(inventory: Path) -> None:
    replace(inventory, NAMES, "reg0002.unmoor.test,", "REG0001.unmoor.test,")
    replace(inventory, NAMES, "reg0003.unmoor.test,", "reg0003.unmoor.example,")
    done = preflight(inventory)
    shown = done.stdout + done.stderr
    assert done.returncode != 0, shown
    assert f"{NAMES}:3: reg0001.unmoor.test is registered twice, first in line 2" in shown
    assert f"{NAMES}:4: reg0003.unmoor.example is in none of the zones" in shown
    assert "unmoor_dns_registry = zones/registry.csv: 2 bad lines; nothing was written" in shown
    assert "--skip-bad" not in shown, "a playbook has no such option"
    assert len(shown.splitlines()) <= SCREEN, shown


def test_a_registry_that_was_built_before(inventory: Path) -> None:
    built = inventory / "zones/built.registry"
    lines = [Line(1, "", "host.unmoor.test", frozenset({("account", "free")}))]
    build(lines, [names.from_text("unmoor.test")], built, BadLines("list"))
    replace(inventory, EDGES, NAMES, f"zones/{built.name}")
    done = preflight(inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    data = built.read_bytes()
    built.write_bytes(data[:100] + bytes((data[100] ^ 1,)) + data[101:])
    done = preflight(inventory)
    shown = done.stdout + done.stderr
    assert done.returncode != 0, shown
    assert "unmoor_dns_registry = zones/built.registry" in shown
    assert "is damaged: its checksum is wrong" in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= SCREEN, shown


def test_the_same_key_twice_in_a_file_is_refused(inventory: Path) -> None:
    text = "        pop_lab:\n          hosts: {edge3: {}}\n"
    replace(inventory, "hosts.yml", "    # Hosts outside", text + "    # Hosts outside")
    done = preflight(inventory)
    assert done.returncode != 0
    assert "pop_lab" in done.stdout + done.stderr


def test_a_second_inventory_with_a_pop_of_the_same_name_is_refused(inventory: Path, tmp_path: Path) -> None:
    other = tmp_path / "lab" / "more.yml"
    other.write_text("all:\n  children:\n    pop_lab:\n      hosts:\n        edge3:\n")
    done = preflight(inventory)
    assert done.returncode != 0
    assert "is a second PoP of the same name" in done.stdout


def refused(inventory: Path, count: int, *said: str, options: tuple[str, ...] = ()) -> None:
    done = preflight(inventory, *options)
    shown = done.stdout + done.stderr
    assert done.returncode != 0, shown
    for text in said:
        assert text in shown, f"{text} is not in: {shown}"
    assert f"{count} problem" in shown, shown
    assert "Traceback" not in shown, shown
    assert len(shown.splitlines()) <= SCREEN, shown


def test_what_would_fail_in_the_turn_of_an_edge_is_reported_first(inventory: Path) -> None:
    replace(
        inventory, "hosts.yml", '              unmoor_dns_unicast: [198.19.1.11, "2001:db8:f001::11"]\n', ""
    )
    replace(
        inventory, "hosts.yml", "            edge1:\n", "            edge1: {listener_whoami_port: many}\n"
    )
    replace(inventory, EDGES, "unmoor_gate_vantage: router", "unmoor_gate_vantage: ruoter")
    replace(inventory, EDGES, "sk_lookup_metrics_listen", "sk_lookup_metrics_lisen")
    replace(inventory, EDGES, "  web-http:\n", "  web:\n")
    refused(
        inventory,
        6,
        "host edge1: unmoor_dns_unicast: is missing: gates query the edge's own DNS server there",
        "unmoor_gate_vantage = ruoter: is not in group vantage",
        "fix: did you mean router?",
        "group_vars/edges.yml:61: sk_lookup_metrics_lisen: is not a variable of role sk_lookup",
        "fix: did you mean sk_lookup_metrics_listen?",
        "listener_http_service = web-http: is not one of unmoor_services",
        "unmoor_services.web: has no listener",
        "hosts.yml:8: listener_whoami_port: ",
    )


def test_without_a_vantage_group_and_a_certificate(inventory: Path) -> None:
    path = inventory / "hosts.yml"
    path.write_text(path.read_text().split("    # Hosts outside")[0])
    replace(inventory, "group_vars/all.yml", "authority_dir:", "other_dir:")
    refused(
        inventory,
        3,
        "unmoor_gate_vantage = router: is not in group vantage, so it has no probe",
        "unmoor_vantage = client: is not in group vantage",
        "listener_certificate: is missing, so that nginx could not serve TLS",
    )


def test_prefixes_and_addresses_that_would_cut_machines_off(inventory: Path) -> None:
    replace(inventory, "hosts.yml", "        router:\n", "        router: {ansible_host: 198.18.1.1}\n")
    replace(inventory, "hosts.yml", "[198.19.1.11,", "[198.18.2.11, 1:2,")
    replace(inventory, EDGES, "  - 198.18.0.0/20\n", "  - 198.18.0.0/20\n  - 127.0.0.0/8\n")
    refused(inventory, 3, "unmoor_dns_unicast.1 = 62: is a number, not an IP address", "write it in quotes")
    replace(inventory, "hosts.yml", "1:2,", '"1::2",')
    # Hosts of the lab have no ansible_host: their addresses are in ssh's configuration.
    (inventory / "zones/ssh_config").write_text("Host edge2\n  HostName 2001:db8:100::2\n")
    replace(inventory, "group_vars/all.yml", "-F {{ lab_state }}", "-F {{ inventory_dir }}/zones")
    refused(
        inventory,
        4,
        "unmoor_prefixes.2 = 2001:db8:100::/44: has 2001:db8:100::2, the address of host edge2",
        "unmoor_prefixes.1 = 127.0.0.0/8: has loopback addresses",
        "unmoor_prefixes.0 = 198.18.0.0/20: has 198.18.1.1, the address of host router",
        "unmoor_dns_unicast.0 = 198.18.2.11: is inside 198.18.0.0/20",
    )


def test_lists_of_names_that_were_cut_short(inventory: Path) -> None:
    (inventory / "zones/unmoor.test.csv").write_text("name,account\n")
    (inventory / NAMES).write_text("name,account\nreg0001.unmoor.test,free\nreg0002.unmoor.test,fr")
    refused(
        inventory,
        3,
        "zones/unmoor.test.csv:1: has a header line and no names",
        "unmoor_dns_registry = zones/registry.csv: ",
        "ends in the middle of a line: it may have been cut short",
        "expect_removed = names:3: is not KIND:NUMBER",
        options=("-e", "expect_removed=names:3"),
    )
    (inventory / NAMES).write_text("name,account\n")
    refused(inventory, 2, "unmoor_dns_registry = zones/registry.csv: ", "has no names")


@pytest.mark.parametrize(
    ("version", "refused"), [("2.18.6", True), ("2.9", True), ("2.19.0rc1", False), ("3.0", False)]
)
def test_an_older_ansible_is_refused_by_its_version(version: str, refused: bool) -> None:
    plugin = load("plugins/action/preflight.py")
    found = [str(problem) for problem in plugin.version_problems(version)]
    assert bool(found) == refused
    if refused:
        assert found[0].startswith(
            f"controller: ansible-core = {version}: is older than 2.19\n    fix: run .venv/bin"
        )
