"""Packets, the real kernel, one socket for whole prefixes."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack, suppress

import pytest

from support.program import UNMOOR, run
from support.sockets import PREFIXES, Bed, ask, listener, make_local, refuses
from unmoor.bpf import libbpf
from unmoor.errors import UnmoorError
from unmoor.sockets.dispatch import generation

WEB = {"label": "web", "ports": [80, "8000-8009"]}
OTHER = {"label": "other", "ports": ["any"]}


def test_one_socket_serves_every_address_and_port(bed: Bed) -> None:
    bed.load(WEB)
    with listener(says="four") as four, listener("::1", "six") as six:
        bed.register("web", four, six)
        for address in ("198.18.0.0", "198.18.7.7", "198.18.15.255"):
            for port in (80, 8000, 8009):
                assert ask(address, port) == f"four {address} {port}"
        for address in ("2001:db8::", "2001:db8:f:ffff:ffff:ffff:ffff:ffff"):
            assert ask(address, 8005) == f"six {address} 8005"
    assert (bed.count("web").counters["lookups"], bed.count("web").counters["misses"]) == (9, 0)
    assert bed.count("web", family=6).counters["lookups"] == 2


def test_a_bound_service_without_a_socket_refuses_and_counts_a_miss(bed: Bed) -> None:
    bed.load(WEB)
    # Fail closed: a listener on all addresses does not get bound packets either.
    with socket.create_server(("0.0.0.0", 80)):
        assert refuses("198.18.1.1", 80)
    assert bed.count("web").counters["misses"] == 1
    assert refuses("2001:db8::1", 80)
    assert bed.count("web", family=6).counters["misses"] == 1


def test_what_is_not_bound_passes(bed: Bed) -> None:
    bed.load(WEB)
    with listener(says="four") as four, listener("0.0.0.0", "mine") as mine:
        bed.register("web", four)
        port = mine.getsockname()[1]
        assert ask("198.18.1.1", port).startswith("mine")
        assert ask("127.0.0.1", port).startswith("mine")
        assert refuses("127.0.0.1", 80)
    assert bed.count("web").counters["lookups"] == 0


def test_a_service_that_stops_refuses_and_one_that_starts_again_heals(bed: Bed) -> None:
    bed.load(WEB)
    with listener(says="first") as first:
        bed.register("web", first)
        assert ask("198.18.1.1", 80).startswith("first")
    assert bed.count("web").sockets == ()
    assert refuses("198.18.1.1", 80)
    with listener(says="second") as second:
        bed.register("web", second)
        assert ask("198.18.1.1", 80).startswith("second")


def test_a_dual_stack_socket_serves_both_until_there_is_one_for_ipv4(bed: Bed) -> None:
    bed.load(WEB)
    with listener("::", "both", dualstack_ipv6=True) as both, listener(says="four") as four:
        bed.register("web", both)
        assert ask("2001:db8::1", 80).startswith("both 2001:db8::1")
        assert ask("198.18.1.1", 80) == "both ::ffff:198.18.1.1 80"
        bed.register("web", four)
        assert ask("198.18.1.1", 80).startswith("four")
        assert ask("2001:db8::1", 80).startswith("both")
    assert bed.count("web").errors == 0


def test_a_socket_for_ipv6_alone_is_a_miss_for_ipv4(bed: Bed) -> None:
    bed.load(WEB)
    with listener("::1", "six") as six:
        bed.register("web", six)
        assert refuses("198.18.1.1", 80)
    assert bed.count("web").counters["misses"] == 1
    assert bed.count("web").errors == 0


def test_all_members_of_a_reuseport_group_get_connections(bed: Bed) -> None:
    bed.load(WEB)
    servers = [socket.socket() for _ in range(3)]
    for server in servers:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", servers[0].getsockname()[1] if server is not servers[0] else 0))
        server.listen(128)
        server.setblocking(False)
    bed.register("web", servers[0])
    clients = [socket.create_connection(("198.18.1.1", 80), timeout=5) for _ in range(100)]
    accepted = []
    for server in servers:
        count = 0
        while True:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        accepted.append(count)
    assert sum(accepted) == 100
    assert all(accepted)
    for each in [*clients, *servers]:
        each.close()


def test_all_members_of_a_reuseport_group_get_datagrams(bed: Bed) -> None:
    bed.load({"label": "dns", "ports": [53], "protocols": ["udp"]})
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(3)]
        for server in servers:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            server.bind(("127.0.0.1", servers[0].getsockname()[1]))
            server.setblocking(False)
        bed.register("dns", servers[0])
        for number in range(100):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(b"hello", (f"198.18.1.{number}", 53))
        heard = [0] * len(servers)
        for number, server in enumerate(servers):
            with suppress(BlockingIOError):
                while server.recv(100):
                    heard[number] += 1
        assert sum(heard) == 100
        assert all(heard)
    assert bed.count("dns", "udp").counters["lookups"] == 100


def test_a_thousand_services_and_a_hundred_thousand_bindings(bed: Bed) -> None:
    # Each service has 50 prefixes of each family to itself, and one port of its own at all of them.
    services = []
    for number in range(1000):
        ipv4 = [
            f"198.{18 + (number >> 9)}.{number >> 1 & 255}.{(number & 1) * 128 + 2 * each}/32"
            for each in range(50)
        ]
        ipv6 = [f"2001:db8:{number:x}:{each:x}::/64" for each in range(50)]
        services.append({"label": f"s{number}", "ports": [1000 + number], "prefixes": ipv4 + ipv6})
    change = bed.load(*services)
    assert len(change.added) == 100_000
    make_local("198.18.0.0/15", "2001:db8::/32")
    with listener(says="first") as first, listener(says="last") as last, listener("::1", says="six") as six:
        bed.register("s0", first)
        bed.register("s999", last, six)
        assert ask("198.18.0.98", 1000) == "first 198.18.0.98 1000"
        assert ask("198.19.243.128", 1999) == "last 198.19.243.128 1999"
        assert ask("2001:db8:3e7:31::9", 1999) == "six 2001:db8:3e7:31::9 1999"
        assert refuses("198.18.0.98", 1999)
        assert refuses("198.18.0.128", 1001)
        before = bed.count("s1").counters["misses"]
        assert before == 1
        # Another thousand of them: ids are kept for the generation before.
        assert len(bed.load(*services[:999]).removed) == 100
        assert ask("198.18.0.98", 1000) == "first 198.18.0.98 1000"
        assert bed.count("s1").counters["misses"] == before


def test_the_next_member_takes_over_where_one_goes(bed: Bed) -> None:
    bed.load(WEB)
    with socket.socket() as first, socket.socket() as second:
        for server in (first, second):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            server.bind(("127.0.0.1", first.getsockname()[1]))
            server.listen()
        bed.register("web", first, second)
        first.close()
        socket.create_connection(("198.18.1.1", 80), timeout=5).close()
        assert len(bed.count("web").sockets) == 1


def test_udp(bed: Bed) -> None:
    bed.load({"label": "dns", "ports": [53], "protocols": ["udp"]})
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        bed.register("dns", server)
        client.sendto(b"question", ("198.18.9.9", 53))
        assert server.recv(100) == b"question"
    assert bed.count("dns", "udp").counters["lookups"] == 1


def test_precedence_of_prefix_port_and_any_port(bed: Bed) -> None:
    bed.load(
        {"label": "wide", "ports": ["any"]},
        {"label": "web", "ports": [80]},
        {"label": "one", "ports": ["any"], "prefixes": ["198.18.5.5/32"]},
        {"label": "range", "ports": ["70-99"], "prefixes": ["198.18.5.0/24"]},
    )
    names = ("wide", "web", "one", "range")
    servers = [listener(says=name) for name in names]
    for name, server in zip(names, servers, strict=True):
        bed.register(name, server.__enter__())
    try:
        assert ask("198.18.1.1", 1234).startswith("wide")
        assert ask("198.18.1.1", 80).startswith("web")
        assert ask("198.18.5.5", 80).startswith("one")
        assert ask("198.18.5.4", 80).startswith("range")
        assert ask("198.18.5.4", 100).startswith("wide")
    finally:
        for server in servers:
            server.__exit__(None, None, None)


def test_an_interface_condition(bed: Bed) -> None:
    bed.load({"label": "web", "ports": [80]}, {"label": "inside", "ports": [80], "interface": "lo"})
    with listener(says="web") as web, listener(says="inside") as inside:
        bed.register("web", web)
        bed.register("inside", inside)
        assert ask("198.18.1.1", 80).startswith("inside")


def test_a_reload_keeps_sockets_counters_and_ids(bed: Bed) -> None:
    bed.load(WEB)
    with listener(says="four") as four:
        bed.register("web", four)
        ask("198.18.1.1", 80)
        change = bed.load({"label": "before", "ports": [99]}, {**WEB, "ports": [80, 81]}, OTHER)
        assert {(b.service, b.first_port) for b in change.removed} == {("web", 8000)}
        assert {(b.service, b.first_port) for b in change.added} == {
            ("web", 81),
            ("before", 99),
            ("other", 0),
        }
        assert ask("198.18.1.1", 81).startswith("four")
    assert bed.count("web").counters["lookups"] == 2


def test_loading_the_same_again_changes_nothing(bed: Bed) -> None:
    assert bed.load(WEB).changed
    with libbpf.opened(bed.pins.link) as link:
        before = libbpf.link_info(link)
    change = bed.load(WEB)
    assert not change.changed
    with libbpf.opened(bed.pins.link) as link:
        assert libbpf.link_info(link) == before


def test_a_label_that_comes_back_gets_no_others_socket_or_counters(bed: Bed) -> None:
    bed.load(WEB)
    with listener(says="four") as four:
        bed.register("web", four)
        ask("198.18.1.1", 80)
        for port in (1, 2, 3):  # the id is free once no kept generation has it
            bed.load({"label": f"other{port}", "ports": [port]})
        bed.load({"label": "new", "ports": [80]})
        assert refuses("198.18.1.1", 80)
    assert bed.count("new").counters["lookups"] == 1


def test_rollback_and_back_again(bed: Bed) -> None:
    bed.load(WEB)
    bed.load({"label": "web", "ports": [81]})
    with listener(says="four") as four:
        bed.register("web", four)
        assert refuses("198.18.1.1", 80)
        assert generation.rollback(bed.pins).generation == 1
        assert ask("198.18.1.1", 80).startswith("four")
        assert refuses("198.18.1.1", 81)
        assert generation.rollback(bed.pins).generation == 2
        assert ask("198.18.1.1", 81).startswith("four")


def test_a_conflict_changes_nothing(bed: Bed) -> None:
    bed.load(WEB)
    with pytest.raises(UnmoorError, match="one service"):
        bed.load(WEB, {"label": "thief", "ports": [80]})
    assert sorted(path.name for path in bed.pins.root.iterdir()) == sorted(
        ["addresses", "counters", "current", "guard", "link", "lock", "registry", "seen", "sockets"]
    )
    with listener(says="four") as four:
        bed.register("web", four)
        assert ask("198.18.1.1", 80).startswith("four")


def test_unload_leaves_nothing(bed: Bed) -> None:
    bed.load(WEB)
    assert run("sockets", "unload", "--pins", str(bed.pins.root)).stdout == "unloaded\n"
    assert not bed.pins.root.exists()
    with listener("0.0.0.0", "plain") as plain:
        assert ask("198.18.1.1", plain.getsockname()[1]).startswith("plain")


def test_the_command_line(bed: Bed) -> None:
    edge = bed.pins.root.parent.parent / "edge.json"
    program = edge.with_name("dispatch.o")
    program.write_bytes(bed.code)
    options = ("--config", str(edge), "--object", str(program), "--pins", str(bed.pins.root))
    edge.write_text(
        '{"pop": "ams", "edge": "edge1", "prefixes": ["198.18.0.0/20"], '
        '"services": [{"label": "web", "ports": [80]}]}'
    )
    assert run("sockets", "load", "--check", *options).returncode == 0
    assert not bed.pins.root.exists()
    done = run("sockets", "load", *options)
    assert done.stdout == "+ tcp 198.18.0.0/20 80 -> web\n1 bindings added, 0 removed, new program\n"
    assert run("sockets", "load", *options).stdout == "no change\n"
    edge.write_text('{"pop": "ams", "edge": "edge1", "prefixes": ["198.18.0.1/20"]}')
    done = run("sockets", "load", *options)
    assert done.returncode == 2
    assert "did you mean 198.18.0.0/20?" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("sockets", "status", "--pins", str(bed.pins.root))
    assert "tcp       198.18.0.0/20  80    web" in done.stdout


def test_another_namespace_is_not_touched(bed: Bed) -> None:
    bed.load(WEB)
    done = subprocess.run(
        ["unshare", "--net", *UNMOOR, "sockets", "status", "--pins", str(bed.pins.root)],
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0
    program = bed.pins.root.parent.parent / "dispatch.o"
    program.write_bytes(bed.code)
    edge = program.with_name("edge.json")
    edge.write_text(f'{{"pop": "ams", "edge": "edge1", "prefixes": ["{PREFIXES[0]}"]}}')
    load = ["sockets", "load", "--config", str(edge), "--object", str(program), "--pins", str(bed.pins.root)]
    done = subprocess.run(["unshare", "--net", *UNMOOR, *load], check=False, capture_output=True)
    assert done.returncode == 2
    assert b"another network namespace" in done.stderr
