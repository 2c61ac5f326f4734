"""Other servers as primaries: transfers with a key, NOTIFY, IXFR, a catalog."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest
from click.testing import CliRunner

from support.dns_document import document
from support.dns_primary import KEYS, NAME, SECRET, zone_text
from support.dns_server import answer, free_port, running
from support.other_servers import OtherServer
from support.peers import KNOT, NSD, OPTIONS
from support.waiting import wait_for
from unmoor.commands.dns.group import cli

CATALOG = "catalog.example"

CONFIGS = {
    "knotd": KNOT
    + """
log:
  - target: stderr
    any: info
key:
  - id: transfer.key
    algorithm: hmac-sha256
    secret: {secret}
remote:
  - id: us
    address: 127.0.0.1@{ours}
    key: transfer.key
acl:
  - id: us
    key: transfer.key
    action: transfer
template:
  - id: default
    storage: {directory}
    notify: us
    acl: us
    zonefile-load: difference
    journal-content: changes
zone:
  - domain: {name}
    file: {name}.zone
{more}
""",
    "nsd": NSD
    + """
key:
  name: transfer.key
  algorithm: hmac-sha256
  secret: "{secret}"
zone:
  name: {name}
  zonefile: {name}.zone
  provide-xfr: 127.0.0.1 transfer.key
  notify: 127.0.0.1@{ours} transfer.key
  store-ixfr: yes
  create-ixfr: yes
""",
    "named": """
key transfer.key {{ algorithm hmac-sha256; secret "{secret}"; }};
options {{
  directory "{directory}"; pid-file none; session-keyfile none; recursion no; dnssec-validation no;
  ixfr-from-differences yes; check-names primary warn;
  listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; notify explicit; notify-delay 0;
}};
controls {{ }};
zone "{name}" {{
  type primary; file "{name}.zone"; allow-transfer {{ key transfer.key; }};
  also-notify {{ 127.0.0.1 port {ours} key transfer.key; }};
}};
""",
}
_GENERATED = f"""
  - domain: {CATALOG}
    catalog-role: generate
  - domain: m.example
    file: m.example.zone
    catalog-role: member
    catalog-zone: {CATALOG}
"""


class Peer(OtherServer):
    """Another server, which serves the zone to holders of the key, and notifies port `ours`."""

    def __init__(self, directory: Path, program: str, ours: int, more: str = "", text: str = "") -> None:
        self.directory, self.program, self.port = directory, program, free_port()
        (directory / "db").mkdir()
        config = directory / f"{program}.conf"
        many = (f"n{number} A 198.51.100.1" for number in range(500))
        self.write(NAME, text or zone_text(1, "x TXT one", *many))
        config.write_text(
            CONFIGS[program].format(
                directory=directory, port=self.port, ours=ours, secret=SECRET, name=NAME, more=more
            )
        )
        super().__init__(directory / f"{program}.log", program, *OPTIONS[program], config)
        self.wait(lambda: self._serial() is not None)

    def _serial(self) -> int | None:
        with suppress(OSError, EOFError, dns.exception.DNSException):
            reply = dns.query.tcp(dns.message.make_query(NAME, "SOA"), "127.0.0.1", 5, self.port)
            return int(reply.answer[0][0].serial) if reply.answer else None
        return None

    def write(self, name: str, text: str) -> None:
        (self.directory / f"{name}.zone").write_text(f"$ORIGIN {name}.\n{text}")

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def reload_to(self, serial: int) -> None:
        """Reload until this serial is served: a reload of NSD may fail, and then the old zone stays."""
        deadline = time.monotonic() + 120
        while True:
            self.reload()
            for _ in range(40):
                if self._serial() == serial:
                    return
                time.sleep(0.05)
            assert time.monotonic() < deadline, self.log.read_text()

    def entry(self) -> dict[str, Any]:
        return {"address": "127.0.0.1", "port": self.port, "tsig_key": "transfer.key"}


def start(directory: Path, program: str, ours: int, more: str = "", text: str = "") -> Peer:
    directory.mkdir()
    return Peer(directory, program, ours, more, text)


@pytest.fixture(params=OPTIONS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Peer, int]]:
    ours = free_port()
    started = start(tmp_path / "peer", request.param, ours)
    yield started, ours
    started.stop()


def test_a_primary_of_another_make(tmp_path: Path, peer: tuple[Peer, int]) -> None:
    primary, ours = peer
    zone = {"name": NAME, "primaries": [primary.entry()], "hostnames": [{"names": ["host"]}]}
    zones = [*document()["zones"], zone]
    with running(tmp_path, port=ours, zones=zones, tsig_keys=KEYS) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        assert answer(server, "n499.example.org", "A") == "198.51.100.1"
        time.sleep(1.1)  # a file of the same second is taken for the same file
        more = (f"n{number} A 198.51.100.1" for number in range(1, 501))
        primary.write(NAME, zone_text(2, "x TXT two", *more))
        primary.reload_to(2)
        wait_for(lambda: answer(server, "x.example.org"), '"two"')  # by NOTIFY: a refresh is an hour off
        assert answer(server, "n500.example.org", "A") == "198.51.100.1"
        assert answer(server, "n0.example.org", "A") == "NXDOMAIN"
        assert answer(server, "host.example.org", "A").startswith("198.51.100.")
        assert server.status()["transfers"][NAME]["failures"] == 0, server.log.read_text()
        if primary.program != "nsd":  # it does not log how it answered
            assert "IXFR" in primary.log.read_text()


def test_a_catalog_that_knot_makes(tmp_path: Path) -> None:
    ours = free_port()
    directory = tmp_path / "peer"
    primary = start(directory, "knotd", ours, _GENERATED)
    try:
        primary.write("m.example", zone_text(1, "x TXT member"))
        primary.reload()
        catalogs = [{"name": CATALOG, "primaries": [primary.entry()]}]
        with running(tmp_path, port=ours, catalogs=catalogs, tsig_keys=KEYS) as server:
            wait_for(lambda: answer(server, "x.m.example"), '"member"')
            config = directory / "knotd.conf"
            config.write_text(config.read_text().replace("m.example", "other.example"))
            primary.write("other.example", zone_text(1, "x TXT other"))
            primary.reload()
            wait_for(lambda: answer(server, "x.other.example"), '"other"')
            assert answer(server, "x.m.example") == "REFUSED"
    finally:
        primary.stop()


@pytest.mark.parametrize("program", OPTIONS)
def test_exported_zones_are_served_like_ours(tmp_path: Path, program: str) -> None:
    hosts = ["host", r"a\.b", "*.w", "@"]
    zone = {"name": NAME, "records": zone_text(1, "x TXT one"), "hostnames": [{"names": hosts}]}
    policies = [{"name": "all", "answer": {"pool": "free", "ttl": 30, "https": {}}}]
    config = tmp_path / "dns.json"
    config.write_text(json.dumps(document(zones=[zone], policies=policies)))
    command = ["export", "--config", str(config), "--output", str(tmp_path / "out"), "--addresses", "4"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    text = (tmp_path / "out" / f"{NAME}.zone").read_text()
    primary = start(tmp_path / "peer", program, free_port(), text=text)
    pools = {"A": ip_network("198.18.0.0/20"), "AAAA": ip_network("2001:db8::/44")}
    try:
        for name in ("host.example.org", r"a\.b.example.org", "any.w.example.org", "example.org"):
            for rtype, pool in pools.items():
                reply = dns.query.tcp(dns.message.make_query(name, rtype), "127.0.0.1", 5, primary.port)
                assert (len(reply.answer[0]), reply.answer[0].ttl) == (4, 30)
                assert all(ip_address(each.address) in pool for each in reply.answer[0])
            reply = dns.query.tcp(dns.message.make_query(name, "HTTPS"), "127.0.0.1", 5, primary.port)
            assert len(reply.answer[0][0].params[4].addresses) == 4
    finally:
        primary.stop()
