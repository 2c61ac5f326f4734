"""Counters: answers by policy, type and transport; addresses, exactly and within bounds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.dns_document import document, model
from support.dns_local import Local
from support.dns_server import Running, free_port, running
from support.program import UNMOOR, run
from support.waiting import wait_until
from unmoor.dns.counters import rates
from unmoor.dns.counters.address_counters import (
    MAX_EXACT,
    PARTS,
    AddressCounters,
    Layout,
    WorkerCounters,
    names,
)
from unmoor.dns.counters.counters import TYPES, Event, Table, Totals, Transport, counter_of
from unmoor.dns.policy.pools import Drawer, Mix, Range, Span
from unmoor.dns.protocol import message
from unmoor.dns.server import control


def layout(**pools: Any) -> Layout:
    """The layout for a document whose policies use all of these pools."""
    policies = [
        {
            "name": f"p-{name}",
            "match": {"suffixes": [f"host{at}.example.com"]},
            "answer": {"pool": name, "ttl": 5},
        }
        for at, name in enumerate(pools)
    ]
    return Layout(model(document(pools=pools, policies=policies)))


def shown(found: Layout) -> list[tuple[str, int, int]]:
    """The first address of each span, how many addresses, how many cells."""
    return [
        (next(names(span)).partition("-")[0].partition("/")[0], span.size, span.cells) for span in found.spans
    ]


# -- which cell counts an address ------------------------------------------------------------------------


def test_small_ranges_are_counted_by_address_and_large_ones_in_parts() -> None:
    found = layout(
        free={"ipv4": ["198.18.0.0/20"], "ipv6": ["2001:db8::/44"], "exclude": ["198.18.0.0/31"]},
        small={"ipv4": ["198.18.8.0/24", "198.51.100.1/32"], "ipv6": ["2001:db8:f000::/120"]},
    )
    assert shown(found) == [
        ("198.18.0.2", 4094, 4094),  # the smaller pool is a part of it
        ("198.51.100.1", 1, 1),
        ("2001:db8::", 2**84, PARTS),
        ("2001:db8:f000::", 256, 256),
    ]
    assert found.span(4, int(IPv4Address("198.18.0.1"))) is None
    assert found.span(6, int(IPv4Address("198.18.0.2"))) is None
    assert list(names(found.spans[2]))[255] == "2001:db8:f:f000::/52"


def test_there_are_never_more_cells_than_memory() -> None:
    found = layout(
        sixteen={"ipv4": ["198.18.0.0/16"]},
        more={"ipv4": [f"10.{number}.0.0/18" for number in range(40)], "ipv6": ["2001:db8::/32"]},
    )
    assert [cells for first, _, cells in shown(found) if first == "10.3.0.0"] == [2**14]
    exact = [span for span in found.spans if span.cells == span.size]
    assert sum(span.size for span in exact) <= MAX_EXACT
    assert found.cells <= MAX_EXACT + 16 * PARTS
    starts = sorted((span.start, span.cells) for span in found.spans)
    assert all(one + cells == other for (one, cells), (other, _) in pairwise(starts))
    assert any(span.cells == PARTS for span in found.spans)
    assert all(span.cells >= 1 for span in found.spans)


@given(
    st.sampled_from([(4, 2**32), (6, 2**128)]).flatmap(
        lambda family: st.tuples(
            st.just(family[0]),
            st.integers(0, family[1] - 1).flatmap(
                lambda first: st.tuples(st.just(first), st.integers(1, min(2**90, family[1] - first)))
            ),
            st.integers(1, 300),
        )
    ),
    st.data(),
)
def test_a_cell_counts_the_addresses_of_its_name(
    found: tuple[int, tuple[int, int], int], data: st.DataObject
) -> None:
    version, (first, size), cells = found
    span = Span(version, first, size, 1000, min(cells, size))
    number = first + data.draw(st.integers(0, size - 1))
    at = span.cell(number) - 1000
    assert 0 <= at < span.cells
    kind = IPv4Address if version == 4 else IPv6Address
    name = list(names(span))[at]
    if "/" in name:
        assert kind(number) in ip_network(name)
    else:
        low, _, high = name.partition("-")
        assert kind(low) <= kind(number) <= kind(high or low)  # type: ignore[operator] # of one family
    assert len(set(names(span))) == span.cells


# -- what is drawn is what is counted --------------------------------------------------------------------


def fresh(found: Layout) -> WorkerCounters:
    row = AddressCounters().of_worker(found, 0, 1)
    assert row
    return row


def counted(cells: WorkerCounters) -> Counter[str]:
    return Counter(
        {
            name: count
            for span in cells.layout.spans
            for name, count in zip(
                names(span), cells.cells[span.start : span.start + span.cells], strict=True
            )
            if count
        }
    )


def handed_out(counters: AddressCounters, generation: int) -> dict[str, int]:
    """How often each address was given, as `generation` has it."""
    return {
        name: count
        for span, counts in counters.spans(generation)
        for name, count in zip(names(span), counts, strict=True)
        if count
    }


def ranges(*prefixes: str) -> list[Range]:
    return [Range(int(net.network_address), net.num_addresses) for net in map(ip_network, prefixes)]


POOLS = {"a": {"ipv4": ["198.18.0.0/30", "198.51.100.0/29"]}, "b": {"ipv4": ["198.18.8.0/28"]}}


@pytest.mark.parametrize("take", [0, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("kind", ["one", "two", "mix"])
def test_every_address_is_counted_once(kind: str, take: int) -> None:
    cells = fresh(layout(**POOLS))
    one, two = Drawer(ranges("198.18.8.0/28"), 4), Drawer(ranges("198.18.0.0/30", "198.51.100.0/29"), 4)
    drawers: dict[str, Drawer | Mix] = {"one": one, "two": two, "mix": Mix([(one, 1), (two, 3)])}
    drawer = drawers[kind]
    drawer.count_into(cells)
    given = Counter(str(ip_address(drawer())) for _ in range(take))
    for _ in range(2):  # settling again changes nothing
        drawer.settle()
        assert counted(cells) == given
    given.update(str(ip_address(drawer())) for _ in range(10))
    drawer.settle()
    assert counted(cells) == given


def test_a_child_process_counts_nothing_of_its_parents() -> None:
    cells = fresh(layout(**POOLS))
    drawer = Drawer(ranges("198.18.8.0/28"), 4)
    drawer.count_into(cells)
    drawer()
    child = os.fork()
    if not child:
        drawer.settle()
        os._exit(0)
    os.waitpid(child, 0)
    assert sum(counted(cells).values()) == 0
    drawer.settle()
    assert sum(counted(cells).values()) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"records": 3},
        {"strategy": "sticky"},
        {"strategy": "pinned", "addresses": ["198.18.0.9", "198.18.0.7"]},
        {"weight": 1, "also": {"business": 1}},
    ],
)
def test_every_strategy_is_counted(answer: dict[str, Any]) -> None:
    policies = [{"name": "all", "answer": {"pool": "free", "ttl": 30, **answer}}]
    local = Local(
        document(
            policies=policies,
            pools={"free": {"ipv4": ["198.18.0.0/28"]}, "business": {"ipv4": ["198.51.100.0/28"]}},
        )
    )
    assert local.snapshot.layout
    cells = fresh(local.snapshot.layout)
    for each in local.snapshot.selectors:
        each.count_into(cells)
    given: Counter[str] = Counter()
    for number in range(300):
        reply = local.ask(f"host{number % 50}.example.com")
        given.update(record.address for rrset in reply.answer for record in rrset)
    for each in local.snapshot.selectors:
        each.settle()
    assert counted(cells) == given


def test_hints_are_counted_too() -> None:
    policies = [{"name": "all", "answer": {"pool": "free", "ttl": 30, "https": {}}}]
    local = Local(document(policies=policies, pools={"free": {"ipv4": ["198.18.0.0/28"]}}))
    assert local.snapshot.layout
    cells = fresh(local.snapshot.layout)
    for each in local.snapshot.selectors:
        each.count_into(cells)
    local.ask("host1.example.com", "HTTPS")
    for each in local.snapshot.selectors:
        each.settle()
    assert sum(counted(cells).values()) == 1
    assert local.counts.policies[counter_of(0, message.HTTPS)] == 1


def test_a_change_of_pools_keeps_the_counts_of_what_stays() -> None:
    counters = AddressCounters()
    wide, narrow = (
        layout(free={"ipv4": ["198.18.0.0/24"]}),
        layout(free={"ipv4": ["198.18.0.128/25", "198.51.100.0/30"]}),
    )
    counters.switch(wide, 1)
    first = counters.of_worker(wide, 0, 1)
    second = counters.of_worker(narrow, 0, 2)
    assert first
    assert second
    for address, times in (("198.18.0.1", 3), ("198.18.0.200", 5)):
        for _ in range(times):
            first.add(ip_address(address).packed)
    second.add(ip_address("198.18.0.200").packed)
    second.add(ip_address("198.51.100.3").packed)
    counters.switch(narrow, 2)
    assert handed_out(counters, 2) == {"198.18.0.200": 6, "198.51.100.3": 1}
    # The rows of the first generation are the third's.
    counters.switch(wide, 3)
    assert handed_out(counters, 3) == {"198.18.0.200": 6}


# -- by policy, type and transport -----------------------------------------------------------------------


def test_a_new_release_goes_on_from_the_counts_of_the_old() -> None:
    old, new = Table(), Table()
    slots = old.slots(["a", "b"])
    row = old.row(3, 1)
    for transport, rtype, name, times in (
        (Transport.UDP, message.A, "a", 5),
        (Transport.TCP, message.HTTPS, "a", 2),
        (Transport.UDP, message.SVCB, "b", 7),
    ):
        row.over(transport).policies[counter_of(slots[name], rtype)] += times
    row.over(Transport.TCP).add_rcode(message.NXDOMAIN, 4)
    row.add(Event.TRUNCATED, 9)
    row.add_latency(1500)
    new.slots(["c", "a"])
    new.carry(Totals.of({**json.loads(json.dumps(asdict(old.all_totals()))), "of a later release": 1}))
    found = new.all_totals()
    assert {tuple(key): count for *key, count in found.answers if count} == {
        ("a", "A", "udp"): 5,
        ("a", "HTTPS", "tcp"): 2,
    }
    replies = {tuple(key): count for *key, count in found.replies if count}
    assert replies == {("NOERROR", "udp"): 12, ("NOERROR", "tcp"): 2, ("NXDOMAIN", "tcp"): 4}
    assert found.events["truncated"] == 9
    assert found.latency == old.all_totals().latency
    assert found.policies == {"a": 7, "c": 0}


def test_slots_do_not_overlap() -> None:
    assert len({counter_of(slot, rtype) for slot in (0, 1, 16383) for rtype in TYPES}) == 3 * len(TYPES)


# -- the server ------------------------------------------------------------------------------------------


def ask(server: Running, times: int, given: Counter[str]) -> None:
    """Query from many ports, so that every worker answers."""
    query = dns.message.make_query("host1.example.com", "A")
    for number in range(times):
        over = dns.query.tcp if number % 10 == 0 else dns.query.udp
        reply = over(query, "127.0.0.1", 5, server.port)
        given[reply.answer[0][0].address] += 1


def addresses(server: Running) -> Counter[str]:
    return Counter(rates.total(control.ask(server.control, "addresses").data).addresses)


def test_what_clients_saw_is_what_was_counted(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        given: Counter[str] = Counter()
        ask(server, 100, given)
        assert addresses(server) == given
        ask(server, 300, given)
        assert addresses(server) == given
        changed = json.loads(json.dumps(server.data))
        changed["rate_limit"] = 10**9  # other workers, the same pools
        server.write(changed)
        assert server.reload().done
        ask(server, 100, given)
        assert addresses(server) == given
        # A worker that dies loses the counts that it has not written yet: less than a batch per pool.
        killed = server.workers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == len(killed) and not set(server.workers()) & set(killed))
        ask(server, 100, given)
        lost = given - addresses(server)
        assert not addresses(server) - given
        assert sum(lost.values()) <= 2 * 256


def test_counting_can_be_switched_off(tmp_path: Path) -> None:
    with running(tmp_path, count_addresses=False) as server:
        ask(server, 10, Counter())
        shown = unmoor("top", "--total", "--control", str(server.control))
        assert "count_addresses is false" in shown.stderr
        assert "free " in shown.stdout
        assert addresses(server) == {}


def unmoor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("dns", *arguments)


def test_top(tmp_path: Path) -> None:
    pools = {
        "free": {"ipv4": ["198.18.0.0/30"], "ipv6": ["2001:db8::/44"]},
        "business": {"ipv4": ["198.51.100.1/32"]},
    }
    with running(tmp_path, pools=pools) as server:
        given: Counter[str] = Counter()
        ask(server, 200, given)
        at = ("--control", str(server.control))
        shown = json.loads(unmoor("top", "--total", "--json", *at).stdout)
        assert shown["addresses"] == given
        assert shown["policies"] == {"free": 200, "business": 0}
        assert shown["evenness"][0] == {
            "pool": "free",
            "family": "ipv4",
            "counted_by": "addresses",
            "cells": 4,
            "least": min(given.values()),
            "mean": 50.0,
            "most": max(given.values()),
        }
        text = unmoor("top", "--total", *at).stdout
        times = max(given.values())
        first = next(line.split()[:2] for line in text.splitlines() if line.startswith("198."))
        assert given[first[0]] == int(first[1]) == times
        assert "256 parts" in text
        rate = json.loads(unmoor("top", "--interval", "0.1", "--count", "1", "--json", *at).stdout)
        assert rate["policies"] == {"free": 0, "business": 0}
        assert rate["addresses"] == {}


def test_a_server_that_was_restarted_between_two_readings() -> None:
    before = {"time": 1.0, "policies": {"a": 5}, "pools": {}, "spans": [[[4, 1, 2, 0, 2], [3, 4]]]}
    after = {"time": 2.0, "policies": {"a": 1, "b": 2}, "pools": {}, "spans": [[[4, 1, 2, 0, 2], [9, 0]]]}
    found = rates.difference(before, after)
    assert found.policies == {"a": 0, "b": 2}
    assert found.addresses == {"0.0.0.1": 6}


@contextmanager
def exporter(*arguments: str) -> Iterator[str]:
    port = free_port()
    command = [*UNMOOR, "dns", "metrics", *arguments]
    process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}"])
    try:
        deadline = time.monotonic() + 60
        with socket.socket() as sock:
            while sock.connect_ex(("127.0.0.1", port)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - our own server
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_exporter(tmp_path: Path) -> None:
    with exporter("--addresses", "--control", str(tmp_path / "control.sock")) as url:
        status, text = fetch(f"{url}/metrics")
        assert status == 503
        assert "is the server running" in text
        with running(tmp_path) as server:
            given: Counter[str] = Counter()
            ask(server, 20, given)
            status, text = fetch(f"{url}/metrics")
            assert status == 200
            assert 'unmoor_dns_answers_total{policy="free",transport="tcp",type="A"} 2.0\n' in text
            assert 'unmoor_dns_answers_total{policy="free",transport="udp",type="A"} 18.0\n' in text
            assert 'unmoor_dns_latency_seconds_bucket{le="+Inf",transport="udp"}' in text
            assert "unmoor_dns_journal_failing 0.0\n" in text
            for address, times in given.items():
                assert f'unmoor_dns_address_answers_total{{address="{address}"}} {float(times)}\n' in text
            assert fetch(url)[0] == 404
            same = unmoor("metrics", "--control", str(server.control)).stdout
            assert 'unmoor_dns_answers_total{policy="free",transport="udp",type="A"} 18.0\n' in same
            assert "address_answers" not in same
        assert fetch(f"{url}/metrics")[0] == 503
