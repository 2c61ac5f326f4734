"""explain, diff, top, metrics, foreign programs, and the users who may read them."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import threading
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from support.program import run
from support.sockets import Bed, ask, document, listener, make_local, refuses
from support.waiting import wait_until
from unmoor.bpf import libbpf
from unmoor.bpf.layout import KEY
from unmoor.bpf.pins import Pins
from unmoor.errors import UnmoorError
from unmoor.model import Binding
from unmoor.scrape import server as scrape_door
from unmoor.sockets.activation.explain import explain
from unmoor.sockets.dispatch import generation
from unmoor.sockets.observe.counts import address_counts
from unmoor.sockets.observe.metrics import collector_registry
from unmoor.sockets.observe.rates import measure_rates
from unmoor.sockets.observe.status import read_status
from unmoor.sockets.table.precedence import order
from unmoor.sockets.table.record import Record

WEB = {"label": "web", "ports": [80]}
DEEP = {"label": "deep", "ports": ["any"], "prefixes": ["198.18.5.0/24"]}
NOGROUP = 65534


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(WEB, DEEP)
    return bed


def test_explain_names_binding_service_and_socket(bed: Bed) -> None:
    with listener() as four:
        bed.register("web", four)
        found = explain(bed.pins, "tcp", ip_address("198.18.3.7"), 80)
        assert (found.verdict, found.service) == ("socket", "web")
        assert (found.cookie,) == bed.count("web").sockets
        assert str(found.binding and found.binding.prefix) == "198.18.0.0/20"


def test_explain_names_what_matches_as_well(bed: Bed) -> None:
    found = explain(bed.pins, "tcp", ip_address("198.18.5.5"), 80)
    assert (found.verdict, found.service) == ("miss", "deep")
    assert [each.service for each in found.losers] == ["web"]


@pytest.mark.parametrize(
    ("protocol", "address", "port", "why"),
    [
        ("tcp", "198.18.3.7", 81, "tcp port 81 is not bound there"),
        ("udp", "198.18.3.7", 80, "udp port 80 is not bound there"),
        ("tcp", "198.51.100.1", 80, "198.51.100.1 is in no bound prefix"),
    ],
)
def test_explain_gives_the_reason_of_a_refusal(
    bed: Bed, protocol: str, address: str, port: int, why: str
) -> None:
    found = explain(bed.pins, protocol, ip_address(address), port)  # type: ignore[arg-type]  # tcp or udp
    assert found.verdict == "pass"
    assert why in found.why


def test_explain_reports_a_socket_that_does_not_fit(bed: Bed) -> None:
    with listener() as four:
        # No registration would do this: an IPv4 socket in the slot for IPv6.
        from unmoor.bpf.layout import DESCRIPTOR, SOCKET_SLOTS, group

        slot = group(bed.count("web").id, "tcp", 6) * SOCKET_SLOTS
        with libbpf.opened(bed.pins.registry) as sockets:
            libbpf.update(sockets, KEY.pack(slot), DESCRIPTOR.pack(four.fileno()))
        found = explain(bed.pins, "tcp", ip_address("2001:db8::1"), 80)
        assert found.verdict == "error"
        assert "address family" in found.why
        assert refuses("2001:db8::1", 80)
        assert bed.count("web", family=6).counters["wrong_family"] == 1


def test_explain_counts_nothing(bed: Bed) -> None:
    explain(bed.pins, "tcp", ip_address("198.18.3.7"), 80)
    assert bed.count("web").counters["lookups"] == 0
    assert address_counts(bed.pins, read_status(bed.pins).record) == {}


def test_explain_on_the_command_line(bed: Bed) -> None:
    pins = ("--pins", str(bed.pins.root))
    done = run("sockets", "explain", "tcp", "198.18.3.7", "80", *pins)
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        "tcp 198.18.3.7 port 80: miss",
        "  binding  tcp 198.18.0.0/20 80 -> web",
    ]
    with listener() as four:
        bed.register("web", four)
        done = run("sockets", "explain", "tcp", "198.18.3.7", "80", "--json", *pins)
    assert done.returncode == 0
    assert json.loads(done.stdout)["binding"]["prefix"] == "198.18.0.0/20"
    done = run("sockets", "explain", "tcp", "nonsense", "80", *pins)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_diff(bed: Bed, tmp_path: Path) -> None:
    edge = tmp_path / "edge.json"
    document: dict[str, object] = {
        "pop": "ams",
        "edge": "edge1",
        "prefixes": ["198.18.0.0/20", "2001:db8::/44"],
        "services": [WEB, DEEP],
    }
    edge.write_text(json.dumps(document))
    arguments = ("sockets", "diff", str(edge), "--pins", str(bed.pins.root))
    assert (run(*arguments).returncode, run(*arguments).stdout) == (0, "no change\n")
    edge.write_text(json.dumps(document | {"services": [{**WEB, "ports": [81]}, DEEP]}))
    done = run(*arguments)
    assert done.returncode == 1
    assert "+ tcp 198.18.0.0/20 81 -> web" in done.stdout
    assert "- tcp 198.18.0.0/20 80 -> web" in done.stdout


def test_every_address_has_a_counter(bed: Bed) -> None:
    with listener() as four, listener("::1") as six:
        bed.register("web", four, six)
        for address in ("198.18.0.0", "198.18.15.255", "198.18.0.0", "2001:db8::7", "2001:db8::7"):
            ask(address, 80)
        assert {
            str(address): count
            for address, count in address_counts(bed.pins, read_status(bed.pins).record).items()
        } == {
            "198.18.0.0": 2,
            "198.18.15.255": 1,
            "2001:db8::7": 2,
        }
        bed.load({**WEB, "ports": [80, 81]}, DEEP)
        assert address_counts(bed.pins, read_status(bed.pins).record)[ip_address("198.18.0.0")] == 2


def test_counts_go_on_when_a_prefix_grows_and_shrinks_under_traffic(
    netns: None, pins: Pins, code: bytes
) -> None:
    make_local()
    bed = Bed(pins, code)
    inside, outside = "198.18.1.9", "198.18.9.1"
    connections = [0, 0]
    stopping = threading.Event()
    bed.load(WEB, prefixes=("198.18.0.0/22",))
    with listener() as four:
        bed.register("web", four)

        def traffic() -> None:
            while not stopping.is_set():
                connections[0] += not refuses(inside, 80)
                connections[1] += not refuses(outside, 80)

        thread = threading.Thread(target=traffic)
        thread.start()
        for prefixes in (
            ("198.18.0.0/20",),
            ("198.18.0.0/16",),
            ("198.18.0.0/21", "198.18.9.0/24"),
            ("198.18.1.9/32", "198.18.8.0/23"),
            ("198.18.0.0/20",),
        ):
            before = connections[0]
            wait_until(lambda before=before: connections[0] > before + 3)  # type: ignore[misc]
            bed.load(WEB, prefixes=prefixes)
        generation.rollback(bed.pins)
        stopping.set()
        thread.join()
        counts = {
            str(address): count
            for address, count in address_counts(bed.pins, read_status(bed.pins).record).items()
        }
    # Each connection was counted, and nothing else: not one was lost at a change.
    assert counts == {inside: connections[0], outside: connections[1]}
    assert sum(counts.values()) == bed.count("web").counters["lookups"]


def test_a_counter_that_gets_another_address_begins_afresh(netns: None, pins: Pins, code: bytes) -> None:
    make_local("198.18.0.0/15")
    bed = Bed(pins, code)
    # Four /16, of which two fit: every counter is used twice.
    halves = ["198.18.0.0/16", "198.19.0.0/16", "198.18.0.0/16", "198.19.0.0/16"]
    with listener() as four:
        for number, prefix in enumerate(halves):
            bed.load(WEB, prefixes=(prefix,))
            bed.register("web", four)
            address = ip_address(prefix.removesuffix("0.0/16") + f"{number}.77")
            for _ in range(number + 1):
                ask(str(address), 80)
            counts = address_counts(bed.pins, read_status(bed.pins).record)
            assert counts.pop(address) == number + 1
            assert set(counts) <= {ip_address("198.18.0.77"), ip_address("198.19.1.77")}
        assert bed.load({**WEB, "ports": [81]}, prefixes=("198.18.0.0/16",)).changed
        assert bed.load(WEB, prefixes=("198.18.0.0/24", "198.19.240.0/20")).changed
        ask("198.19.255.1", 80)
        assert address_counts(bed.pins, read_status(bed.pins).record)[ip_address("198.19.255.1")] == 1


def test_addresses_of_ipv6_take_bounded_room_and_the_busy_stay(bed: Bed) -> None:
    from unmoor.bpf.layout import SEEN_SETS, SEEN_WAYS
    from unmoor.sockets.dispatch.lookup import context

    busy = ip_address("2001:db8::1")
    with libbpf.opened(bed.pins.current / "dispatch") as program:
        for number in range(2 * SEEN_SETS * SEEN_WAYS):
            stranger = ip_address((0x20010DB8 << 96) + number * 0x10001 + 2)
            libbpf.run_test(program, context("tcp", stranger, 80))
            libbpf.run_test(program, context("tcp", busy, 80))
    counts = address_counts(bed.pins, read_status(bed.pins).record)
    assert len(counts) <= SEEN_SETS * SEEN_WAYS * libbpf.possible_cpus()
    assert max(counts, key=lambda address: counts[address]) == busy
    assert counts[busy] > SEEN_SETS


def test_rates(bed: Bed) -> None:
    with listener() as four:
        bed.register("web", four)
        measured = measure_rates(bed.pins, 0.2)
        calls = threading.Timer(0.05, lambda: [ask("198.18.0.9", 80) for _ in range(5)])
        calls.start()
        found = [next(measured), next(measured)]
        calls.join()
    assert sum(each.services["web"][0] for each in found) > 0
    assert any(ip_address("198.18.0.9") in each.addresses for each in found)


def test_top_on_the_command_line(bed: Bed) -> None:
    done = run("sockets", "top", "--interval", "0.1", "--count", "2", "--pins", str(bed.pins.root))
    assert done.returncode == 0
    assert done.stdout.count("lookups/s") == 4


def test_metrics(bed: Bed) -> None:
    with listener() as four:
        bed.register("web", four)
        ask("198.18.0.9", 80)
    wait_until(lambda: not bed.count("web").sockets)
    assert refuses("198.18.0.9", 80)
    lines = generate_latest(collector_registry(bed.pins, addresses=True)).decode().splitlines()
    labels = 'family="ipv4",protocol="tcp",service="web"'
    assert f"unmoor_sockets_replaced_total{{{labels}}} 0.0" in lines
    assert f"unmoor_sockets_lookups_total{{{labels}}} 2.0" in lines
    assert f"unmoor_sockets_misses_total{{{labels}}} 1.0" in lines
    errors = 'error="wrong_family",family="ipv4",protocol="tcp",service="web"'
    assert f"unmoor_sockets_errors_total{{{errors}}} 0.0" in lines
    assert f"unmoor_sockets_registered{{{labels}}} 0.0" in lines
    assert f"unmoor_sockets_bindings{{{labels}}} 1.0" in lines
    assert 'unmoor_sockets_address_lookups_total{address="198.18.0.9"} 2.0' in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == 9


def test_metrics_over_http(bed: Bed) -> None:
    server = scrape_door(collector_registry(bed.pins), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def get(path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
        connection.request("GET", path)
        return connection.getresponse()

    reply = get("/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    assert b"unmoor_sockets_generation 1.0" in reply.read()
    assert get("/").status == 404
    generation.unload(bed.pins)
    assert get("/metrics").status == 503
    server.shutdown()
    server.server_close()


def test_an_exporter_reads_the_record_of_a_generation_once(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = generation.decode

    def counted(data: bytes) -> Record:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(generation, "decode", counted)
    registry = collector_registry(bed.pins)

    def scrape() -> str:
        return generate_latest(registry).decode()

    labels = 'family="ipv4",protocol="tcp",service="web"'
    for lookups in range(3):
        assert f"unmoor_sockets_lookups_total{{{labels}}} {lookups}.0" in scrape()
        assert refuses("198.18.0.9", 80)
    assert len(decoded) == 1
    bed.load({**WEB, "ports": [80, 81]}, DEEP)
    decoded.clear()
    for _ in range(2):
        text = scrape()
        assert "unmoor_sockets_generation 2.0" in text
        assert f"unmoor_sockets_bindings{{{labels}}} 2.0" in text
    assert len(decoded) == 1
    generation.rollback(bed.pins)
    assert "unmoor_sockets_generation 1.0" in scrape()
    generation.unload(bed.pins)
    with pytest.raises(UnmoorError, match="nothing is loaded"):
        scrape()
    bed.load(WEB)
    assert f"unmoor_sockets_lookups_total{{{labels}}} 0.0" in scrape()


def test_arrays_are_read_in_one_call(bed: Bed) -> None:
    assert refuses("198.18.0.9", 80)
    with libbpf.opened(bed.pins.root / "counters") as fd:
        info = libbpf.map_info(fd)
        size = info.value_size * libbpf.possible_cpus()
        one_by_one = [libbpf.lookup(fd, KEY.pack(number), size) for number in range(70)]
        assert any(map(any, one_by_one))
        assert libbpf.lookup_array(fd, 0, 70, size) == one_by_one
        assert libbpf.lookup_array(fd, 1, 5, size) == one_by_one[1:6]
        assert len(libbpf.lookup_array(fd, info.max_entries - 2, 70, size)) == 2


def test_status_lists_bindings_in_order_of_precedence(bed: Bed) -> None:
    bed.load(
        {"label": "wide", "ports": ["any", "70-89"], "prefixes": ["198.18.0.0/20", "2001:db8::/44"]},
        {"label": "web", "protocols": ["tcp", "udp"], "ports": [80], "prefixes": ["198.18.0.0/20"]},
        {"label": "inside", "ports": [80], "prefixes": ["198.18.0.0/20", "198.18.4.0/24"], "interface": "lo"},
    )
    status = read_status(bed.pins)
    bindings = [Binding(each.protocol, ip_network(each.prefix), *each[2:]) for each in status.bindings]
    assert bindings == sorted(
        status.record.edge.bindings(),
        key=lambda each: (each.protocol, each.prefix.version, order(each), each),
    )
    assert (status.as_json()["pop"], status.as_json()["edge"]) == ("ams", "edge1")
    assert sum(status.record.sizes.values()) == len(bindings) == 8


def test_foreign_programs_are_reported(bed: Bed) -> None:
    assert read_status(bed.pins).foreign == ()
    with (
        libbpf.opened(bed.pins.current / "explain") as program,
        generation.OWN_NETNS.open("rb") as namespace,
        libbpf.closing(libbpf.attach(program, namespace.fileno())),
    ):
        assert read_status(bed.pins).foreign == (libbpf.program_id(program),)
        done = run("sockets", "status", "--pins", str(bed.pins.root))
        assert "other sk_lookup programs are attached here" in done.stdout
    assert read_status(bed.pins).foreign == ()


@pytest.fixture
def member(bed: Bed) -> list[str]:
    """A command prefix: another user, in the group that the pins belong to."""
    for path in (bed.pins.root, *bed.pins.root.rglob("*")):
        os.chown(path, 0, NOGROUP if path.stat().st_mode & 0o040 else 0)
    return ["setpriv", "--reuid=65533", "--regid=65534", "--clear-groups", "--bounding-set=-all"]


def test_a_member_of_the_group_may_read_and_not_change(
    bed: Bed, member: list[str], unmoor_for_others: list[str]
) -> None:
    def as_member(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*member, *unmoor_for_others, "sockets", *arguments, "--pins", str(bed.pins.root)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for look in (["status"], ["metrics"], ["top", "--count=1", "--interval=0.1"], ["status", "--json"]):
        done = as_member(*look)
        assert (done.returncode, done.stderr) == (0, "")
    assert as_member("status", "--json").stdout.count('"foreign_programs": null') == 1
    assert "foreign" not in as_member("metrics").stdout
    edge, program = bed.pins.root.parent.parent / "edge.json", bed.pins.root.parent.parent / "dispatch.o"
    edge.write_text(document(WEB, DEEP).model_dump_json())
    program.write_bytes(bed.code)
    load = ["load", "--config", str(edge), "--object", str(program)]
    assert as_member(*load, "--check").stdout == "no change\n"
    for change in (load, ["rollback"], ["unload"]):
        done = as_member(*change)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.stderr
        assert "run this as root" in done.stderr
    assert bed.pins.link.exists()


def test_another_user_may_not_read(bed: Bed, member: list[str], unmoor_for_others: list[str]) -> None:
    stranger = [*member[:2], "--regid=65532", *member[3:]]
    done = subprocess.run(
        [*stranger, *unmoor_for_others, "sockets", "status", "--pins", str(bed.pins.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["    fix: run this as root; members of group unmoor may read"]
