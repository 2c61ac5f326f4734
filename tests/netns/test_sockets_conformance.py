"""The situations of the kernel's own tests of sk_lookup, and a table of replacements as tubular has it."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.sockets import Bed, ask, listener, refuses
from unmoor.bpf import libbpf
from unmoor.bpf.compiler import compile_program
from unmoor.bpf.layout import DESCRIPTOR, KEY, SOCKET_SLOTS, group
from unmoor.sockets.dispatch import generation

ADDRESSES = {4: "198.18.3.7", 6: "2001:db8::37"}
OTHERS = {4: "198.18.3.8", 6: "2001:db8::38"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
PORT, OTHER_PORT = 80, 81


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def server(protocol: str, address: str, port: int = 0, reuseport: bool = False) -> Iterator[socket.socket]:
    """A socket that waits for clients."""
    with socket.socket(family_of(address), KINDS[protocol]) as sock:
        if family_of(address) == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: AnyIP alone allows no bind
        if address == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuseport)
        sock.bind((address, port))
        if protocol == "tcp":
            sock.listen(128)
        sock.settimeout(0.2)
        yield sock


def knock(protocol: str, address: str, port: int) -> bool:
    """Connect, or send a datagram; returns False if it is refused."""
    with socket.socket(family_of(address), KINDS[protocol]) as client:
        client.settimeout(0.2)
        try:
            client.connect((address, port))
            if protocol == "udp":
                client.send(b"knock")
                client.recv(1)
        except ConnectionRefusedError:
            return False
        except TimeoutError:
            pass  # UDP: neither an answer nor a refusal
        return True


def arrived(sock: socket.socket) -> int:
    """How many clients came to this socket."""
    sock.setblocking(False)
    count = 0
    while True:
        try:
            if sock.type == socket.SOCK_STREAM:
                sock.accept()[0].close()
            else:
                sock.recv(100)
        except BlockingIOError:
            return count
        count += 1


# What is bound, and where that does not reach.
REDIRECTS: dict[str, Callable[[int], tuple[dict[str, Any], tuple[str, int]]]] = {
    "by port": lambda family: (
        {"ports": [PORT], "prefixes": [("0.0.0.0/0", "::/0")[family == 6]]},
        (ADDRESSES[family], OTHER_PORT),
    ),
    "by address": lambda family: (
        {"ports": ["any"], "prefixes": [f"{ADDRESSES[family]}/{(32, 128)[family == 6]}"]},
        (OTHERS[family], PORT),
    ),
    "by both": lambda family: (
        {"ports": [PORT], "prefixes": [f"{ADDRESSES[family]}/{(32, 128)[family == 6]}"]},
        (OTHERS[family], PORT),
    ),
    "by a range and a prefix": lambda family: (
        {"ports": ["70-80"], "prefixes": [("198.18.2.0/23", "2001:db8::/120")[family == 6]]},
        (ADDRESSES[family], OTHER_PORT),
    ),
}


@pytest.mark.parametrize("reuseport", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", KINDS)
@pytest.mark.parametrize("case", REDIRECTS)
def test_redirect(bed: Bed, case: str, protocol: str, family: int, reuseport: bool) -> None:
    service, outside = REDIRECTS[case](family)
    bed.load({"label": "web", "protocols": [protocol], **service})
    with server(protocol, LOOPBACK[family], 9999, reuseport) as sock:
        bed.register("web", sock)
        assert knock(protocol, ADDRESSES[family], PORT)
        assert not knock(protocol, *outside)
        assert arrived(sock) == 1
    assert bed.count("web", protocol, family).counters["lookups"] == 1


@pytest.mark.parametrize("protocol", KINDS)
def test_ipv4_packets_to_an_ipv6_socket(bed: Bed, protocol: str) -> None:
    bed.load({"label": "web", "protocols": [protocol], "ports": [PORT]})
    with server(protocol, "::", 9999) as sock:
        bed.register("web", sock)
        assert knock(protocol, ADDRESSES[4], PORT)
        assert knock(protocol, ADDRESSES[6], PORT)
        assert arrived(sock) == 2


@pytest.mark.parametrize("reuseport", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", KINDS)
def test_drop(bed: Bed, protocol: str, family: int, reuseport: bool) -> None:
    """A bound service without a socket refuses, though others listen there."""
    bed.load({"label": "web", "protocols": [protocol], "ports": [PORT]})
    with server(protocol, ("0.0.0.0", "::")[family == 6], PORT, reuseport) as sock:
        assert not knock(protocol, ADDRESSES[family], PORT)
        assert arrived(sock) == 0
    assert bed.count("web", protocol, family).counters["misses"] == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", KINDS)
def test_a_groups_own_program_chooses_the_member(bed: Bed, protocol: str, family: int) -> None:
    bed.load({"label": "web", "protocols": [protocol], "ports": [PORT]})
    always_second = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 1))  # return 1
    program = struct.pack("@HP", 1, ctypes.addressof(always_second))
    with (
        server(protocol, LOOPBACK[family], 9999, True) as first,
        server(protocol, LOOPBACK[family], 9999, True) as second,
    ):
        first.setsockopt(socket.SOL_SOCKET, 51, program)  # SO_ATTACH_REUSEPORT_CBPF
        bed.register("web", first)
        for _ in range(10):
            assert knock(protocol, ADDRESSES[family], PORT)
        assert (arrived(first), arrived(second)) == (0, 10)


@pytest.mark.parametrize("family", [4, 6])
def test_a_connected_udp_socket_of_the_group_keeps_its_peer(bed: Bed, family: int) -> None:
    bed.load({"label": "web", "protocols": ["udp"], "ports": [PORT]})
    with (
        server("udp", LOOPBACK[family], 9999, True) as group_member,
        server("udp", ADDRESSES[family], PORT, True) as connected,
        socket.socket(family_of(ADDRESSES[family]), socket.SOCK_DGRAM) as peer,
    ):
        peer.bind((LOOPBACK[family], 0))
        connected.connect(peer.getsockname())
        bed.register("web", group_member)
        peer.sendto(b"to the connected one", (ADDRESSES[family], PORT))
        assert knock("udp", ADDRESSES[family], PORT)
        assert (arrived(connected), arrived(group_member)) == (1, 1)


@pytest.mark.parametrize("family", [4, 6])
def test_established_connections_are_not_looked_up(bed: Bed, family: int) -> None:
    bed.load({"label": "web", "ports": [PORT]})
    with server("tcp", LOOPBACK[family]) as sock:
        bed.register("web", sock)
        with socket.create_connection((ADDRESSES[family], PORT), timeout=5) as client:
            accepted, _ = sock.accept()
            bed.unregister("web")
            client.sendall(b"still here")
            assert accepted.recv(100) == b"still here"
            accepted.close()
    assert bed.count("web", family=family).counters["lookups"] == 1


def _udp() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


_kept: list[socket.socket] = []  # the other ends


def _established() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as waiting:
        client = socket.create_connection(waiting.getsockname())
        _kept.append(waiting.accept()[0])
        return client


# No registration would put these there: so errors show that something else did.
ERRORS: dict[str, tuple[int, Callable[[], socket.socket]]] = {
    "wrong_family": (6, lambda: socket.create_server(("127.0.0.1", 0))),
    "wrong_protocol": (4, _udp),
    "wrong_state": (4, _established),
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_socket_that_does_not_fit_refuses_and_counts(bed: Bed, error: str) -> None:
    family, make = ERRORS[error]
    bed.load({"label": "web", "ports": [PORT]})
    slot = group(bed.count("web").id, "tcp", family) * SOCKET_SLOTS
    with make() as sock:
        with libbpf.opened(bed.pins.registry) as sockets:
            libbpf.update(sockets, KEY.pack(slot), DESCRIPTOR.pack(sock.fileno()))
        assert not knock("tcp", ADDRESSES[family], PORT)
    found = bed.count("web", family=family)
    assert (found.counters[error], found.errors, found.counters["misses"]) == (1, 1, 0)


@pytest.fixture(scope="module")
def foreign_code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("foreign") / "foreign.o"
    compile_program(output, source=Path(__file__).with_name("foreign.bpf.c"))
    return output.read_bytes()


# Our program's verdict, the other's, and which listener answers if ours runs first, and if the other does.
# Our hit replaces an earlier choice. The other's socket stays if ours refuses, or if the other runs last.
TOGETHER = {
    ("pass", "pass"): ("nobody", "nobody"),
    ("pass", "drop"): ("refused", "refused"),
    ("pass", "redirect"): ("theirs", "theirs"),
    ("drop", "pass"): ("refused", "refused"),
    ("drop", "drop"): ("refused", "refused"),
    ("drop", "redirect"): ("theirs", "theirs"),
    ("redirect", "pass"): ("ours", "ours"),
    ("redirect", "drop"): ("ours", "ours"),
    ("redirect", "redirect"): ("ours", "ours"),
    ("redirect", "replace"): ("theirs", "ours"),
}


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize(("ours", "theirs"), TOGETHER)
def test_two_programs(bed: Bed, foreign_code: bytes, ours: str, theirs: str, first: str) -> None:
    with ExitStack() as stack:
        bpf = stack.enter_context(libbpf.open_object(foreign_code, entries={}, shared={}, initial={}))
        mine = stack.enter_context(listener(says="ours"))
        their = stack.enter_context(listener(says="theirs"))
        plain = stack.enter_context(socket.create_server(("0.0.0.0", PORT)))
        plain.settimeout(0.5)
        libbpf.update(bpf.map_fd("theirs"), KEY.pack(0), DESCRIPTOR.pack(their.fileno()))

        def attach_ours() -> None:
            bed.load({"label": "web", "ports": [OTHER_PORT if ours == "pass" else PORT]})
            if ours == "redirect":
                bed.register("web", mine)

        def attach_theirs() -> None:
            namespace = stack.enter_context(generation.OWN_NETNS.open("rb"))
            stack.enter_context(libbpf.closing(libbpf.attach(bpf.program_fd(theirs), namespace.fileno())))

        steps = [attach_ours, attach_theirs]
        for step in steps if first == "ours" else reversed(steps):
            step()
        expected = TOGETHER[ours, theirs][0 if first == "ours" else 1]
        if expected == "refused":
            assert refuses(ADDRESSES[4], PORT)
        elif expected == "nobody":  # both pass: the kernel's own look-up finds the plain listener
            assert knock("tcp", ADDRESSES[4], PORT)
            assert arrived(plain) == 1
        else:
            assert ask(ADDRESSES[4], PORT).startswith(expected)
        chosen_before = ours == "redirect" and theirs in ("redirect", "replace") and first == "theirs"
        found = bed.count("web")
        assert (found.counters["replaced"], found.errors) == (int(chosen_before), 0)


def test_attached_programs_can_be_queried(bed: Bed, foreign_code: bytes) -> None:
    bed.load({"label": "web", "ports": [PORT]})
    with (
        libbpf.open_object(foreign_code, entries={}, shared={}, initial={}) as bpf,
        generation.OWN_NETNS.open("rb") as namespace,
        libbpf.closing(libbpf.attach(bpf.program_fd("pass"), namespace.fileno())),
        libbpf.opened(bed.pins.current / "dispatch") as ours,
    ):
        numbers = [libbpf.program_id(ours), libbpf.program_id(bpf.program_fd("pass"))]
        assert list(libbpf.attached(namespace.fileno())) == numbers


# Bindings before and after, as PREFIX PORTS SERVICE; those added and those removed.
REPLACEMENTS = {
    "the first": ("", "198.18.0.0/20 80 a", 1, 0),
    "the last": ("198.18.0.0/20 80 a", "", 0, 1),
    "nothing": ("198.18.0.0/20 80 a", "198.18.0.0/20 80 a", 0, 0),
    "another label": ("198.18.0.0/20 80 a", "198.18.0.0/20 80 b", 1, 1),
    "another port": ("198.18.0.0/20 80 a", "198.18.0.0/20 81 a", 1, 1),
    "any port": ("198.18.0.0/20 80 a", "198.18.0.0/20 any a", 1, 1),
    "a longer prefix": ("198.18.0.0/20 80 a", "198.18.0.0/24 80 a", 1, 1),
    "the other family": ("198.18.0.0/20 80 a", "2001:db8::/44 80 a", 1, 1),
    "one more specific": ("198.18.0.0/20 80 a", "198.18.0.0/20 80 a, 198.18.0.0/24 80 b", 1, 0),
    "one less specific": ("198.18.0.0/20 80 a, 198.18.0.0/24 80 b", "198.18.0.0/24 80 b", 0, 1),
    "swapped": ("198.18.0.0/24 80 a, 198.18.1.0/24 80 b", "198.18.0.0/24 80 b, 198.18.1.0/24 80 a", 2, 2),
}


@pytest.mark.parametrize("case", REPLACEMENTS)
def test_replacement(bed: Bed, case: str) -> None:
    before, after, added, removed = REPLACEMENTS[case]
    bed.load(*_services(before))
    change = bed.load(*_services(after))
    assert (len(change.added), len(change.removed)) == (added, removed)
    assert not bed.load(*_services(after)).changed
    record = generation.read_current(bed.pins)
    assert record
    assert len(record.bindings) == len(after.split(", ") if after else ())


def _services(text: str) -> list[dict[str, Any]]:
    services = []
    for line in text.split(", ") if text else ():
        prefix, ports, label = line.split()
        services.append(
            {"label": label, "ports": [ports if ports == "any" else int(ports)], "prefixes": [prefix]}
        )
    return services
