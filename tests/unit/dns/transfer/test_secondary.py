"""Zones from the operator's primary: transfers, NOTIFY, expiry, and refusals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.rrset
import dns.tsig
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from support.dns_document import document, model
from support.dns_primary import KEYS, NAME, SECRET, Primary, Records, zone_text
from support.dns_release import Release, Upgradable
from support.dns_server import Running, answer, ask, free_port, running
from support.waiting import wait_for
from unmoor.commands.dns.group import cli
from unmoor.dns.counters.counters import Counts
from unmoor.dns.protocol import message, names
from unmoor.dns.transfer import transfer
from unmoor.dns.transfer.notify import NotifyHandler
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.zone_store import CopyKey, Store, expire, refresh
from unmoor.model.change import describe_change
from unmoor.model.dns import Primary as PrimaryDocument
from unmoor.model.dns import TsigKey

APEX = names.from_text(NAME)


@pytest.fixture
def primary() -> Iterator[Primary]:
    made = Primary("127.0.0.1")
    yield made
    made.close()


@pytest.fixture
def keyed() -> Iterator[Primary]:
    made = Primary("127.0.0.1", key="transfer.key")
    yield made
    made.close()


def source(primary: Primary, key: str = "", **changes: Any) -> transfer.Source:
    keys = {"transfer.key": TsigKey(secret=SECRET), "other.key": TsigKey(secret=SECRET), **changes}
    named = PrimaryDocument(address=ip_address(primary.address), port=primary.port, tsig_key=key)
    return transfer.sources([named], keys)[0]


def serial_of(zone: static_zone.Zone) -> int:
    return zone.serial


def texts(zone: static_zone.Zone) -> set[str]:
    """Names and types as text, for comparison."""
    return {
        f"{names.to_text(name)} {rtype} {rrset.ttl} {rrset.rdatas}"
        for name, node in zone.nodes.items()
        for rtype, rrset in node.items()
    }


# -- one transfer ----------------------------------------------------------------------------------------


def test_axfr_then_ixfr(primary: Primary) -> None:
    primary.set(NAME, zone_text(1, *(f"n{number} A 198.51.100.{number}" for number in range(200))))
    first = transfer.fetch(source(primary), APEX, None, 1000)
    assert (first.serial, first.records) == (1, 203)
    primary.set(
        NAME, zone_text(2, *(f"n{number} A 198.51.100.{number}" for number in range(5, 201)), "x TXT new")
    )
    primary.set(
        NAME, zone_text(3, *(f"n{number} A 198.51.100.{number}" for number in range(5, 201)), "x TXT newer")
    )
    second = transfer.fetch(source(primary), APEX, first, 1000)
    assert [each.split()[0] for each in primary.asked] == ["AXFR", "IXFR"]
    primary.asked.clear()
    assert texts(second) == texts(transfer.fetch(source(primary), APEX, None, 1000))
    assert serial_of(second) == 3


@pytest.mark.parametrize("spoil", ["not implemented", "unknown base", "misfit"])
def test_without_usable_differences_axfr_is_requested(primary: Primary, spoil: str) -> None:
    primary.set(NAME, zone_text(1, "a A 198.51.100.1"))
    first = transfer.fetch(source(primary), APEX, None, 100)
    primary.set(NAME, zone_text(2, "b A 198.51.100.2"))
    if spoil == "not implemented":
        primary.ixfr = False
    elif spoil == "unknown base":
        first = static_zone.read(zone_text(0, "c A 198.51.100.3"), APEX)
    else:  # its differences take away a record that we do not have
        first = static_zone.read(zone_text(1, "c A 198.51.100.3"), APEX)
    second = transfer.fetch(source(primary), APEX, first, 100)
    assert names.from_text("b", APEX) in second.nodes
    assert not {names.from_text(name, APEX) for name in "ac"} & second.nodes.keys()


def test_records_come_through_as_they_are(primary: Primary) -> None:
    text = zone_text(
        7,
        r"a\.b TXT \"one\" \000two",
        "*.w MX 5 Mail.Example.NET.",
        "odd TYPE65280 \\# 3 010203",
        "sub NS ns.sub",
        "ns.sub AAAA 2001:db8::1",
        "old DNAME new",
        's 20 HTTPS 1 . alpn="h2"',
        "c CAA 0 issue ca.example",
    )
    primary.set(NAME, text)
    assert texts(transfer.fetch(source(primary), APEX, None, 100)) == texts(static_zone.read(text, APEX))


def test_signed_in_many_messages(keyed: Primary) -> None:
    keyed.records_per_message = 3
    keyed.set(NAME, zone_text(1, *(f"n{number} A 198.51.100.{number}" for number in range(100))))
    good = source(keyed, "transfer.key")
    assert transfer.ask_serial(good, APEX) == 1
    assert transfer.fetch(good, APEX, None, 1000).records == 103


def outside(records: Records) -> Records:
    return [records[0], dns.rrset.from_text("example.net.", 60, "IN", "A", "198.51.100.9"), *records[1:]]


def cname_beside(records: Records) -> Records:
    return [records[0], dns.rrset.from_text("ns.example.org.", 60, "IN", "CNAME", "x."), *records[1:]]


def two_cnames(records: Records) -> Records:
    twice = [dns.rrset.from_text("c.example.org.", 60, "IN", "CNAME", name) for name in ("x.", "y.")]
    return [records[0], *twice, *records[1:]]


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (outside, "a record outside the zone, of example.net"),
        (cname_beside, "CNAME beside other records at ns.example.org"),
        (two_cnames, "a second CNAME record at c.example.org"),
        (lambda records: records[:-1], "ends the connection in the middle"),
        (lambda records: records[1:], "first RRset is not an SOA"),
        (lambda records: [each for each in records if each.rdtype != dns.rdatatype.NS], "has no NS record"),
        (lambda records: records[:1] * 2 + records[2:], "cannot be used"),
    ],
)
def test_what_is_no_zone_is_refused(primary: Primary, tamper: Callable[[Records], Records], why: str) -> None:
    primary.set(NAME, zone_text(1, "a A 198.51.100.1"))
    primary.tamper = tamper
    with pytest.raises(transfer.TransferError, match=why):
        transfer.fetch(source(primary), APEX, None, 100)


def test_records_that_no_message_holds_are_refused(primary: Primary) -> None:
    """Each arrives in its own message, but no reply holds all of them."""
    lines = [f"many TXT {number:03}{f' {chr(116) * 249}' * 4}" for number in range(70)]
    primary.set(NAME, zone_text(1, *lines))
    primary.records_per_message = 20
    with pytest.raises(transfer.TransferError, match=r"has .* octets of TXT records at many\.example\.org"):
        transfer.fetch(source(primary), APEX, None, 100)


def test_too_large_is_refused(primary: Primary) -> None:
    primary.set(NAME, zone_text(1, *(f"n{number} A 198.51.100.{number}" for number in range(200))))
    with pytest.raises(transfer.TransferError, match="more than 100 records"):
        transfer.fetch(source(primary), APEX, None, 100)
    assert transfer.fetch(source(primary), APEX, None, 203).records == 203


def test_signatures_that_are_wrong_missing_or_of_another_key(keyed: Primary, primary: Primary) -> None:
    for each in (keyed, primary):
        each.set(NAME, zone_text(1, "a A 198.51.100.1"))
    wrong = TsigKey(secret="AAAA" + SECRET[4:])
    for bad in (
        source(keyed),
        source(keyed, "other.key"),
        source(keyed, "transfer.key", **{"transfer.key": wrong}),
    ):
        with pytest.raises(transfer.TransferError):
            transfer.ask_serial(bad, APEX)
        with pytest.raises(transfer.TransferError):
            transfer.fetch(bad, APEX, None, 100)
    # A sender without the key must not count as one with it.
    impostor = source(primary, "transfer.key")
    with pytest.raises(transfer.TransferError):
        transfer.fetch(impostor, APEX, None, 100)
    with pytest.raises(transfer.TransferError):
        transfer.ask_serial(impostor, APEX)


def test_one_octet_changed_on_the_way_is_noticed(keyed: Primary) -> None:
    keyed.set(NAME, zone_text(1, "a TXT sesame"))
    keyed.mangle = lambda packet: packet.replace(b"sesame", b"tahini")
    with pytest.raises(transfer.TransferError, match="TSIG"):
        transfer.fetch(source(keyed, "transfer.key"), APEX, None, 100)


def test_a_primary_that_is_not_there() -> None:
    gone = Primary()
    gone.close()
    with pytest.raises(transfer.TransferError, match=r"cannot be reached|in time"):
        transfer.fetch(source(gone), APEX, None, 100)


def test_a_primary_is_not_kept_waiting_while_we_read() -> None:
    """Eight megabytes are buffered before we read any, and are complete and in order then."""
    data = bytes(range(256)) * 32768
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as ours:
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
        with theirs, transfer._Ahead(ours) as stream:
            theirs.settimeout(20)
            theirs.sendall(data)
            theirs.close()
            until = time.monotonic() + 60
            assert stream.read(len(data), until) == data
            with pytest.raises(EOFError):
                stream.read(1, until)


def test_serials_wrap() -> None:
    assert transfer.is_newer(5, 4)
    assert transfer.is_newer(1, 2**32 - 1)
    assert not transfer.is_newer(4, 4)
    assert not transfer.is_newer(2**32 - 1, 1)


# -- copies on disk --------------------------------------------------------------------------------------


def test_a_copy_is_read_as_it_was_written(tmp_path: Path) -> None:
    store, key = Store(tmp_path), CopyKey(APEX)
    zone = static_zone.read(
        zone_text(9, r"a\.b TXT x", "*.w MX 5 mail", "sub NS ns.sub", refresh=7, expire=11), APEX
    )
    assert store.read(key) is None
    store.offer(key, zone)
    assert store.read(key) is None
    store.accept(key)
    copy = store.read(key)
    assert copy is not None
    assert texts(copy.zone) == texts(zone)
    assert (copy.zone.cuts, copy.zone.soa, copy.zone.records) == (zone.cuts, zone.soa, zone.records)
    assert (refresh(copy.zone), expire(copy.zone)) == (7, 11)
    assert copy.expires == pytest.approx(time.time() + 11, abs=5)


def test_a_damaged_copy_is_no_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, key = Store(tmp_path), CopyKey(APEX)
    store.offer(key, static_zone.read(zone_text(9), APEX))
    store.accept(key)
    (file,) = tmp_path.glob("*.zone")
    whole = file.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole[:100] + b"?" + whole[101:], whole + b"x"):
        file.write_bytes(damaged)
        assert store.read(key) is None
        assert "damaged" in caplog.text
        caplog.clear()


def test_names_of_copies_are_safe_and_differ(tmp_path: Path) -> None:
    strange = [
        names.from_text(text)
        for text in (r"a/b.c", r"a\000b.c", "..".replace("..", "a_b.c"), r"\.\.", "x" * 63 + ".c")
    ]
    stems = {CopyKey(apex).stem for apex in strange} | {CopyKey(strange[0], "other life").stem}
    assert len(stems) == len(strange) + 1
    assert all("/" not in stem and not stem.startswith(".") and stem.isascii() for stem in stems)


# -- a server that follows -------------------------------------------------------------------------------


def zone_of(primary: Primary, *hostnames: str, **more: Any) -> dict[str, Any]:
    return {
        "name": NAME,
        "primaries": [primary.entry(**more)],
        "hostnames": [{"tags": {"account_type": "free"}, "names": list(hostnames)}],
    }


def with_zone(*zones: dict[str, Any]) -> list[dict[str, Any]]:
    return [*document()["zones"], *zones]


def errors(reply: dns.message.Message) -> list[int]:
    """The extended errors of a reply (RFC 8914)."""
    return [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)]


def test_a_zone_from_a_primary_with_hostnames_of_ours(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one"))
    with running(tmp_path, zones=with_zone(zone_of(primary, "host", "deep.down"))) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        addresses = {answer(server, "host.example.org", "A") for _ in range(20)}
        assert len(addresses) > 10
        assert all(address.startswith("198.18.") for address in addresses)
        assert answer(server, "down.example.org") == "NOERROR"
        assert answer(server, "none.example.org") == "NXDOMAIN"
        assert answer(server, "ns.example.org", "A") == "198.18.0.53"
        state = server.status()["transfers"][NAME]
        assert (state["serial"], state["error"], state["expired"]) == (1, None, False)
        assert state["primary"] == f"127.0.0.1:{primary.port}"
        shown = CliRunner().invoke(cli, ["status", "--control", str(server.control)]).output
        assert f"zone {NAME}: serial 1, confirmed" in shown
        metrics = CliRunner().invoke(cli, ["status", "--metrics", "--control", str(server.control)]).output
        assert f'unmoor_dns_zone_serial{{zone="{NAME}"}} 1.0' in metrics
        assert f'unmoor_dns_zone_usable{{zone="{NAME}"}} 1.0' in metrics


def test_notify_brings_the_next_version_and_nothing_is_lost(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one"))
    with running(tmp_path, zones=with_zone(zone_of(primary, "host"))) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        primary.set(NAME, zone_text(2, "x TXT two"))
        reply = primary.notify(NAME, server.port)
        assert (reply.rcode(), reply.opcode(), bool(reply.flags & dns.flags.AA)) == (
            0,
            dns.opcode.NOTIFY,
            True,
        )
        seen = {answer(server, "x.example.org")}
        deadline = time.monotonic() + 60
        while '"two"' not in seen:
            assert time.monotonic() < deadline
            seen.add(answer(server, "x.example.org"))
        assert seen <= {'"one"', '"two"'}  # never SERVFAIL, never nothing
        assert "IXFR example.org" in primary.asked
        assert "refused" not in server.log.read_text()


def test_strangers_cannot_notify(tmp_path: Path, primary: Primary) -> None:
    stranger = Primary("127.0.0.2")
    primary.set(NAME, zone_text(1))
    with running(tmp_path, zones=with_zone(zone_of(primary))) as server:
        wait_for(lambda: answer(server, "example.org", "NS"), "ns.example.org.")
        primary.asked.clear()
        assert stranger.notify(NAME, server.port).rcode() == dns.rcode.REFUSED
        assert primary.notify("example.com", server.port).rcode() == dns.rcode.REFUSED
        assert primary.notify("example.net", server.port).rcode() == dns.rcode.REFUSED
        time.sleep(0.3)
        assert primary.asked == []
    stranger.close()


def test_with_a_key_notify_must_be_signed(tmp_path: Path, keyed: Primary) -> None:
    keyed.set(NAME, zone_text(1, "x TXT one"))
    zones = with_zone(zone_of(keyed, tsig_key="transfer.key"))
    with running(tmp_path, zones=zones, tsig_keys=KEYS) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        keyed.set(NAME, zone_text(2, "x TXT two"))
        assert keyed.notify(NAME, server.port, sign=False).rcode() == dns.rcode.REFUSED
        time.sleep(1.2)
        assert answer(server, "x.example.org") == '"one"'
        assert keyed.notify(NAME, server.port).had_tsig  # dnspython has verified it
        wait_for(lambda: answer(server, "x.example.org"), '"two"')
        # No output contains the secret.
        command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        for child in (
            Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        ):
            command += Path(f"/proc/{child}/cmdline").read_bytes()
        assert b"secondary" in command
        told = command.decode() + server.log.read_text() + str(server.status())
        assert SECRET not in told


@pytest.mark.parametrize(
    ("key", "secret", "error"),
    [("transfer.key", "AAAA" + SECRET[4:], dns.rcode.BADSIG), ("other.key", SECRET, dns.rcode.BADKEY)],
)
def test_a_notify_with_a_wrong_signature(key: str, secret: str, error: int) -> None:
    named = PrimaryDocument(address="127.0.0.9", tsig_key="transfer.key")
    handler = NotifyHandler({APEX: transfer.sources([named], {"transfer.key": TsigKey(secret=SECRET)})}, None)
    message = dns.message.make_query(NAME, "SOA")
    message.set_opcode(dns.opcode.NOTIFY)
    message.use_tsig(dns.tsig.Key(key, secret, "hmac-sha256"))
    said = handler.answer(message.to_wire(), "127.0.0.9", Counts.private())
    assert said is not None
    reply = dns.message.from_wire(said, keyring=False)
    assert reply.rcode() == dns.rcode.NOTAUTH
    assert reply.tsig is not None
    assert (reply.tsig[0].error, reply.tsig[0].mac) == (error, b"")


def flood(packet: bytes, address: str, port: int, count: int = 500) -> None:
    """Send a packet many times from a forged address; the replies are lost."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        for _ in range(count):
            sock.sendto(packet, ("127.0.0.1", port))


def plain_notify(name: str) -> bytes:
    message = dns.message.make_query(name, "SOA", id=7)
    message.set_opcode(dns.opcode.NOTIFY)
    return message.to_wire()


def test_a_flood_under_one_primarys_address_silences_no_other(tmp_path: Path, primary: Primary) -> None:
    """Neither another primary of the same zone, nor the same primary for another zone."""
    other = Primary("127.0.0.2")
    for each in (primary, other):
        each.set(NAME, zone_text(1, "x TXT one"))
    other.set("example.net", zone_text(1, "x TXT one"))
    zones = with_zone(
        {"name": NAME, "primaries": [primary.entry(), other.entry()]},
        {"name": "example.net", "primaries": [other.entry()]},
    )
    with running(tmp_path, workers=1, zones=zones) as server:
        wait_for(lambda: answer(server, f"x.{NAME}"), '"one"')
        wait_for(lambda: answer(server, "x.example.net"), '"one"')
        other.set("example.net", zone_text(2, "x TXT two"))
        flood(plain_notify(NAME), "127.0.0.1", server.port)
        assert other.notify(NAME, server.port).rcode() == dns.rcode.NOERROR
        flood(plain_notify(NAME), "127.0.0.2", server.port)
        assert other.notify("example.net", server.port).rcode() == dns.rcode.NOERROR
        wait_for(lambda: answer(server, "x.example.net"), '"two"')
    other.close()


def test_senders_without_the_key_do_not_use_up_the_primarys_share(tmp_path: Path, keyed: Primary) -> None:
    keyed.set(NAME, zone_text(1, "x TXT one"))
    zones = with_zone(zone_of(keyed, tsig_key="transfer.key"))
    with running(tmp_path, workers=1, zones=zones, tsig_keys=KEYS) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        for packet in (plain_notify(NAME), signed_notify("other.key")):
            flood(packet, "127.0.0.1", server.port)
            assert keyed.notify(NAME, server.port).rcode() == dns.rcode.NOERROR


def test_what_one_primary_may_notify_is_bounded() -> None:
    """A second's share is passed on, and no more; nothing of strangers is kept."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        for each in (ours, theirs):
            each.setblocking(False)
        named = [PrimaryDocument(address=address) for address in ("127.0.0.8", "127.0.0.9")]
        handler = NotifyHandler({APEX: transfer.sources(named, {})}, ours)
        counts = Counts.private()
        begun = time.monotonic()
        for number in range(300):
            assert handler.answer(plain_notify(NAME), f"198.18.0.{number % 250}", counts)
            handler.answer(plain_notify(NAME), "127.0.0.9", counts)
        seconds = int(time.monotonic()) - int(begun) + 1
        passed = 0
        with contextlib.suppress(BlockingIOError):
            while theirs.recv(1024):
                passed += 1
        assert 1 <= passed <= 5 * seconds
        assert len(handler._passed) <= 1


def test_a_notify_that_cannot_be_passed_on_is_not_confirmed() -> None:
    """The primary repeats a NOTIFY that was not confirmed (RFC 1996 section 3.6)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    named = PrimaryDocument(address="127.0.0.9")
    handler = NotifyHandler({APEX: transfer.sources([named], {})}, ours)
    with ours, theirs:
        with contextlib.suppress(BlockingIOError):
            while ours.send(b"x"):
                pass
        assert handler.answer(plain_notify(NAME), "127.0.0.9", Counts.private()) is None


def signed_notify(key: str = "transfer.key") -> bytes:
    message = dns.message.make_query(NAME, "SOA", id=7)
    message.set_opcode(dns.opcode.NOTIFY)
    message.use_tsig(dns.tsig.Key(key, SECRET, "hmac-sha256"))
    return message.to_wire()


@example(b"\0", 102, 0, 115)  # the error is behind a signature that is wrong as well
@given(st.binary(max_size=12), st.integers(0, 160), st.integers(0, 160), st.integers(0, 200))
def test_whatever_passes_for_a_notify(noise: bytes, start: int, stop: int, size: int) -> None:
    """With octets changed, removed, added or cut off, the reply is never NOERROR and always valid."""
    packet = signed_notify()
    spoilt = (packet[:start] + noise + packet[stop:])[:size]
    if spoilt[2:] == packet[2:] or not message.is_notify(spoilt):  # the identifier is not signed (RFC 8945)
        return
    named = PrimaryDocument(address="127.0.0.9", tsig_key="transfer.key")
    handler = NotifyHandler({APEX: transfer.sources([named], {"transfer.key": TsigKey(secret=SECRET)})}, None)
    try:
        reply = handler.answer(spoilt, "127.0.0.9", Counts.private())
    except message.QueryError:
        return
    assert reply is not None
    said = dns.message.from_wire(reply, keyring=False)
    assert said.rcode() in (dns.rcode.NOTAUTH, dns.rcode.REFUSED)
    assert said.id == int.from_bytes(spoilt[:2], "big")


def test_a_fresh_server_without_its_primary(tmp_path: Path, primary: Primary) -> None:
    primary.silent = True
    primary.set(NAME, zone_text(1, "x TXT one"))
    with running(tmp_path, zones=with_zone(zone_of(primary, "host"))) as server:
        for name, rtype in (("x.example.org", "TXT"), ("host.example.org", "A"), ("example.org", "SOA")):
            reply = ask(server, name, rtype)
            assert (reply.rcode(), errors(reply)) == (dns.rcode.SERVFAIL, [dns.edns.EDECode.NOT_READY])
        assert answer(server, "host1.example.com", "A").startswith("198.18.")
        server.until("does not answer in time")
        primary.silent = False
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        assert answer(server, "host.example.org", "A").startswith("198.18.")
        server.until("in order again")


def test_a_restart_serves_the_copy_while_the_primary_is_away(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one"))
    changes = {"zones": with_zone(zone_of(primary))}
    with running(tmp_path, **changes) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
    primary.close()
    with running(tmp_path, **changes) as server:
        assert answer(server, "x.example.org") == '"one"'
        state = server.status()["transfers"]
        assert not state or state[NAME]["serial"] == 1


def test_an_expired_zone_is_not_answered_for_until_it_is_confirmed(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one", refresh=1, retry=1, expire=2))
    with running(tmp_path, zones=with_zone(zone_of(primary, "host"))) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        server_asked = len(primary.asked)
        wait_for(lambda: len(primary.asked) > server_asked + 2, True)
        wait_for(lambda: answer(server, "x.example.org"), '"one"')  # refreshed, without another transfer
        assert [each for each in primary.asked if "XFR" in each] == ["AXFR example.org"]
        primary.rcode = dns.rcode.SERVFAIL
        wait_for(lambda: answer(server, "x.example.org"), "SERVFAIL")
        reply = ask(server, "host.example.org", "A")
        assert (reply.rcode(), errors(reply)) == (dns.rcode.SERVFAIL, [dns.edns.EDECode.INVALID_DATA])
        assert answer(server, "host1.example.com", "A").startswith("198.18.")
        assert server.status()["transfers"][NAME]["expired"]
        primary.rcode = dns.rcode.NOERROR
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        assert answer(server, "host.example.org", "A").startswith("198.18.")
        assert server.log.read_text().count("replies SERVFAIL") == 1  # once, not at each retry


def test_a_version_that_clashes_is_refused_and_the_old_one_stays(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one", refresh=1, retry=1))
    with running(tmp_path, zones=with_zone(zone_of(primary, "host"))) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        primary.set(NAME, zone_text(2, "x TXT two", "host A 198.51.100.7", refresh=1, retry=1))
        log = server.until("serial 2 from")
        assert "refused: the hostname host.example.org has a static address or CNAME record as well" in log
        time.sleep(1.5)
        assert server.log.read_text().count("serial 2 from") == 1
        assert answer(server, "x.example.org") == '"one"'
        state = server.status()["transfers"][NAME]
        assert (state["serial"], "host.example.org" in state["error"]) == (1, True)
        primary.set(NAME, zone_text(3, "x TXT three", refresh=1, retry=1))
        wait_for(lambda: answer(server, "x.example.org"), '"three"')
        # The reverse: a reload that registers a name of the zone is refused.
        server.write(document(port=server.port, zones=with_zone(zone_of(primary, "host", "ns"))))
        reply = server.reload()
        assert not reply.done
        assert "ns.example.org: has a static address" in "\n".join(reply.lines)
        assert server.status()["generation"] >= 2


def test_a_clash_at_the_start_leaves_the_hostname_out(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1))
    with running(tmp_path, zones=with_zone(zone_of(primary))) as server:
        wait_for(lambda: answer(server, "ns.example.org", "A"), "198.18.0.53")
    with running(tmp_path, zones=with_zone(zone_of(primary, "ns", "host"))) as server:
        assert answer(server, "ns.example.org", "A") == "198.18.0.53"
        assert answer(server, "host.example.org", "A").startswith("198.18.")
        assert "left out" in server.log.read_text()


def test_the_second_primary_when_the_first_fails(tmp_path: Path, primary: Primary) -> None:
    other = Primary("127.0.0.2")
    primary.rcode = dns.rcode.REFUSED
    other.set(NAME, zone_text(1, "x TXT other"))
    zone = {"name": NAME, "primaries": [primary.entry(), other.entry()]}
    with running(tmp_path, zones=with_zone(zone)) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"other"')
        other.set(NAME, zone_text(2, "x TXT newer"))
        assert other.notify(NAME, server.port).rcode() == 0
        wait_for(lambda: answer(server, "x.example.org"), '"newer"')
    other.close()


def test_several_changes_within_a_second_make_one_reload(tmp_path: Path, primary: Primary) -> None:
    zones = [{"name": f"z{number}.example", "primaries": [primary.entry()]} for number in range(20)]
    for zone in zones:
        primary.set(str(zone["name"]), zone_text(1, "x TXT one"))
    with running(tmp_path, zones=zones, policies=[]) as server:
        for zone in zones:
            wait_for(lambda zone=zone: answer(server, f"x.{zone['name']}"), '"one"')  # type: ignore[misc]
        assert server.status()["generation"] <= 4
        before = server.status()["generation"]
        for zone in zones:
            primary.set(str(zone["name"]), zone_text(2, "x TXT two"))
            primary.notify(str(zone["name"]), server.port)
        for zone in zones:
            wait_for(lambda zone=zone: answer(server, f"x.{zone['name']}"), '"two"')  # type: ignore[misc]
        assert server.status()["generation"] - before <= 4


def test_the_process_that_transfers_is_replaced_when_it_dies(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one"))
    with running(tmp_path, zones=with_zone(zone_of(primary))) as server:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        os.kill(transferring(server), signal.SIGKILL)
        server.until("starting another")
        primary.set(NAME, zone_text(2, "x TXT two"))
        primary.notify(NAME, server.port)  # waits for the next process, if need be
        wait_for(lambda: answer(server, "x.example.org"), '"two"')
        pid = transferring(server)
        assert server.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_new_release_takes_the_copies_over(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one"))
    data = document(port=free_port(), zones=with_zone(zone_of(primary)))
    server = Upgradable(tmp_path, data, program=str(Release(tmp_path, "1.0").program)).wait()
    try:
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        old = transferring(server)
        done = Release(tmp_path, "2.0").upgrade(server)
        assert done.returncode == 0, done.stderr
        assert answer(server, "x.example.org") == '"one"'
        with pytest.raises(ProcessLookupError):
            os.kill(old, 0)
        primary.set(NAME, zone_text(2, "x TXT two"))
        assert primary.notify(NAME, server.port).rcode() == 0
        wait_for(lambda: answer(server, "x.example.org"), '"two"')
    finally:
        server.stop()


def transferring(server: Running) -> int:
    """The process that transfers."""
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    (found,) = [int(pid) for pid in pids if b"secondary" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def test_a_reload_adds_and_removes_transferred_zones(tmp_path: Path, primary: Primary) -> None:
    primary.set(NAME, zone_text(1, "x TXT one"))
    with running(tmp_path) as server:
        assert answer(server, "x.example.org") == "REFUSED"
        server.write(document(port=server.port, zones=with_zone(zone_of(primary))))
        assert server.reload().lines[0] == f"zone {NAME}: added, hostnames 0"
        wait_for(lambda: answer(server, "x.example.org"), '"one"')
        server.write(document(port=server.port))
        assert server.reload().done
        assert answer(server, "x.example.org") == "REFUSED"
        assert server.status()["transfers"] == {}
        assert not [
            each for each in (tmp_path / "log").read_text().splitlines() if "ended with status" in each
        ]


def test_no_directory_for_copies(tmp_path: Path, primary: Primary) -> None:
    path = tmp_path / "dns.json"
    path.write_text(json.dumps(document(port=free_port(), zones=with_zone(zone_of(primary)))))
    arguments = ["--config", str(path), "--control", str(tmp_path / "c"), "--state", str(tmp_path / "none")]
    result = CliRunner().invoke(cli, ["serve", *arguments])
    assert "copies of transferred zones cannot be kept there" in str(result.exception)


# -- what documents may say ------------------------------------------------------------------------------


def test_changes_are_described_without_secrets(primary: Primary) -> None:
    old = model(document(zones=with_zone(zone_of(primary)), tsig_keys=KEYS))
    other = {"transfer.key": {"secret": "AAAA" + SECRET[4:]}}
    new = model(
        document(
            zones=with_zone({**zone_of(primary), "primaries": [{"address": "127.0.0.2"}]}), tsig_keys=other
        )
    )
    said = describe_change(old, new)
    assert said == [
        "tsig_keys: changed",
        f"zone {NAME}: primaries 127.0.0.1 port {primary.port} -> 127.0.0.2 port 53",
    ]


def test_explain_knows_the_copies(tmp_path: Path, primary: Primary) -> None:
    path = tmp_path / "dns.json"
    path.write_text(json.dumps(document(zones=with_zone(zone_of(primary, "host")))))

    def said(name: str, rtype: str) -> str:
        command = ["explain", name, rtype, "--config", str(path), "--state", str(tmp_path)]
        return CliRunner().invoke(cli, command, catch_exceptions=False).output

    before = said("host.example.org", "A")
    assert "is a registered hostname with account_type=free" in before
    assert "the zone is transferred, but there is no copy of it yet" in before
    assert "current reply: SERVFAIL" in before
    store, key = Store(tmp_path), CopyKey(APEX)
    store.offer(key, static_zone.read(zone_text(3, "x TXT theirs"), key.apex))
    store.accept(key)
    assert "host.example.org. 30 IN A 198.18." in said("host.example.org", "A")
    assert '"theirs"' in said("x.example.org", "TXT")
    (file,) = tmp_path.glob("*.zone")
    os.utime(file, (0, 0))
    assert "its copy has expired" in said("x.example.org", "TXT")
