"""Any sockets in any slots: the first that can take a packet gets it, whatever the hints say or lack."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from support.sockets import Bed, activation, ask, listener, make_local, refuses
from support.waiting import wait_until
from unmoor.bpf import libbpf
from unmoor.bpf.compiler import compile_program
from unmoor.bpf.layout import (
    ANSWER,
    ANSWERS_SIZE,
    DESCRIPTOR,
    GROUPS_PER_SERVICE,
    HINTS_OFFSET,
    KEY,
    ROOT_IS_LEAF,
    SOCKET_SLOTS,
    group,
)
from unmoor.bpf.pins import Pins
from unmoor.sockets.activation.registrar import RefusedError
from unmoor.sockets.dispatch import generation, hints
from unmoor.sockets.dispatch.lookup import Explainer, explainer
from unmoor.sockets.table import table, trie

PORT = 80
PACKETS = {4: "198.18.3.7", 6: "2001:db8::37"}
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
WEB = {"label": "web", "protocols": ["tcp", "udp"], "ports": [PORT]}
#: What may be in a slot, by a letter: nothing; an IPv4 socket; IPv6 alone; dual-stack; a socket that takes
#: no packets; one of the other protocol.
EMPTY, FOUR, SIX, BOTH, CONNECTED, OTHER = "-46bcx"
#: Which of them takes a packet of a family.
TAKES = {4: (FOUR, BOTH), 6: (SIX, BOTH)}
#: Contents of the first slots for IPv4 and for IPv6.
CONTENTS = [
    *map("".join, product(EMPTY + FOUR + CONNECTED, repeat=3)),
    "x4",
    "-x4",
    "cx-----4",
    "-------4",
    "cccccccc",
]
CONTENTS_IPV6 = ["-", "6", "b", "c", "6b", "-b", "c-6", "4b", "-------b"]


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(WEB)
    return bed


class Slots:
    """Sockets of one protocol by their letters, and the slots to put them in."""

    def __init__(self, bed: Bed, protocol: str, sockets: dict[str, socket.socket], registry: int) -> None:
        self._bed, self._protocol, self._sockets, self._registry = bed, protocol, sockets, registry
        self._service = bed.count("web", protocol).id
        self.cookies = {
            letter: int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE
            for letter, sock in sockets.items()
        }

    def group(self, family: int) -> int:
        return group(self._service, self._protocol, family)

    def fill(self, family: int, content: str) -> None:
        """Put sockets into the slots of a family; the rest are emptied. Hints are left as they are."""
        start = self.group(family) * SOCKET_SLOTS
        for slot, letter in enumerate(content.ljust(SOCKET_SLOTS, EMPTY), start):
            if letter == EMPTY:
                libbpf.delete(self._registry, KEY.pack(slot))
            else:
                libbpf.update(self._registry, KEY.pack(slot), DESCRIPTOR.pack(self._sockets[letter].fileno()))

    def promise(self, precise: bool) -> None:
        """Promise all that is true of the slots, or nothing."""
        hints.withdraw(self._bed.pins.current)
        if precise:
            groups = [self.group(family) for family in (4, 6)]
            with hints.filling(self._bed.pins.current, self._registry, groups):
                pass


@contextmanager
def slots(bed: Bed, protocol: str) -> Iterator[Slots]:
    kind, other = KINDS[protocol], KINDS["udp" if protocol == "tcp" else "tcp"]
    with ExitStack() as stack:

        def bound(address: str, kind: int, only_ipv6: bool = True) -> socket.socket:
            sock = stack.enter_context(socket.socket(family_of(address), kind))
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
            sock.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                sock.listen()
            return sock

        connected = stack.enter_context(socket.socket(type=kind))
        connected.connect(bound("127.0.0.1", kind).getsockname())
        sockets = {
            FOUR: bound("127.0.0.1", kind),
            SIX: bound("::1", kind),
            BOTH: bound("::", kind, False),
            CONNECTED: connected,
            OTHER: bound("127.0.0.1", other),
        }
        yield Slots(bed, protocol, sockets, stack.enter_context(libbpf.opened(bed.pins.registry)))


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def expected(family: int, ipv4: str, ipv6: str) -> str:
    """The letter of the socket that takes a packet, or what happens without one."""
    seen = ipv4 + ipv6 if family == 4 else ipv6
    takers = [letter for letter in seen if letter in TAKES[family]]
    if takers:
        return takers[0]
    own = ipv4 if family == 4 else ipv6
    # What is refused is an error if a socket of its own family's slots cannot take it; an IPv6 socket that
    # is no dual-stack socket is no reason to call a packet over IPv4 one.
    wrong = own.strip(EMPTY) or (ipv6.strip(EMPTY + SIX + FOUR) if family == 4 else "")
    return "error" if wrong else "miss"


def found(program: Explainer, protocol: str, family: int, cookies: dict[str, int]) -> str:
    answer = program.ask(protocol, ip_address(PACKETS[family]), PORT)  # type: ignore[arg-type]  # tcp or udp
    if answer.error:
        return "miss" if answer.error == 1 else "error"
    return next(letter for letter, cookie in cookies.items() if cookie == answer.cookie)


@pytest.mark.parametrize("protocol", KINDS)
def test_every_combination_of_slots(bed: Bed, protocol: str) -> None:
    with slots(bed, protocol) as filled, explainer(bed.pins.current) as program:
        for ipv4 in CONTENTS:
            filled.fill(4, ipv4)
            for ipv6 in CONTENTS_IPV6:
                filled.fill(6, ipv6)
                for precise in (False, True):
                    filled.promise(precise)
                    for family in PACKETS:
                        result = found(program, protocol, family, filled.cookies)
                        wanted = expected(family, ipv4, ipv6)
                        assert result == wanted, (family, ipv4, ipv6, precise)


def promises(generation: Path, service: int) -> bytes:
    """The hints of a service; nothing if the generation has none."""
    with libbpf.opened(generation / "answers") as fd:
        size = libbpf.map_info(fd).value_size
        start = HINTS_OFFSET + service * GROUPS_PER_SERVICE
        return (libbpf.lookup(fd, KEY.pack(0), size) or b"")[start : start + GROUPS_PER_SERVICE]


NOTHING, ALL_EMPTY = bytes(GROUPS_PER_SERVICE), b"\xff" * GROUPS_PER_SERVICE


def test_a_slot_that_is_promised_to_be_empty_is_not_read(bed: Bed) -> None:
    with slots(bed, "tcp") as filled, explainer(bed.pins.current) as program:
        filled.promise(True)
        assert promises(bed.pins.current, 0)[:2] == b"\xff\xff"
        filled.fill(4, "-4")  # as nothing but a registration may, which withdraws the promise
        assert found(program, "tcp", 4, filled.cookies) == "miss"
        filled.promise(False)
        assert found(program, "tcp", 4, filled.cookies) == FOUR


@contextmanager
def group_of(count: int, kind: int, address: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """The members of an SO_REUSEPORT group."""
    with ExitStack() as stack:
        members: list[socket.socket] = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(family_of(address), kind))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address, members[0].getsockname()[1] if members else 0))
            if kind == socket.SOCK_STREAM:
                sock.listen()
            sock.setblocking(False)
            members.append(sock)
        yield members


def arrives(protocol: str, family: int = 4) -> bool:
    """Whether a packet is taken, not refused."""
    with socket.socket(family_of(PACKETS[family]), KINDS[protocol]) as client:
        client.settimeout(5)
        try:
            client.connect((PACKETS[family], PORT))
            if protocol == "udp":
                client.send(b"knock")
                client.settimeout(0.05)
                with suppress(TimeoutError):  # nobody answers, and nobody refuses
                    client.recv(1)
        except ConnectionRefusedError:
            return False
        return True


@pytest.mark.parametrize("protocol", KINDS)
def test_members_that_close_one_after_the_other(bed: Bed, protocol: str) -> None:
    with (
        group_of(3, KINDS[protocol]) as ipv4,
        group_of(2, KINDS[protocol], "::1") as ipv6,
    ):
        bed.register("web", *ipv4, *ipv6)
        for members, family in ((ipv4, 4), (ipv6, 6)):
            for member in members:
                assert arrives(protocol, family)
                member.close()
            assert not arrives(protocol, family)
        four, six = (bed.count("web", protocol, family) for family in (4, 6))
    assert [(each.counters["lookups"], each.counters["misses"], each.errors) for each in (four, six)] == [
        (4, 1, 0),
        (3, 1, 0),
    ]


@pytest.mark.parametrize("protocol", KINDS)
def test_a_dual_stack_socket_behind_ipv4_sockets_that_closed(bed: Bed, protocol: str) -> None:
    with group_of(2, KINDS[protocol]) as ipv4, slots(bed, protocol) as filled:
        bed.register("web", *ipv4)
        filled.fill(6, "6b")  # no registration would mix them
        filled.promise(True)
        for member in ipv4:
            member.close()
        assert arrives(protocol)
        filled.fill(6, "6")
        assert not arrives(protocol)
    four = bed.count("web", protocol)
    assert (four.counters["lookups"], four.counters["misses"], four.errors) == (2, 1, 0)


def test_a_registered_socket_that_connects_does_not_block_the_next(bed: Bed) -> None:
    with group_of(2, socket.SOCK_DGRAM) as (first, second), socket.socket(type=socket.SOCK_DGRAM) as client:
        bed.register("web", first, second)
        first.connect(("127.0.0.1", 9))
        client.sendto(b"question", (PACKETS[4], PORT))
        second.settimeout(5)
        assert second.recv(100) == b"question"
        second.close()
        assert not arrives("udp")
    found = bed.count("web", "udp")
    assert (found.counters["lookups"], found.counters["wrong_state"], found.counters["misses"]) == (2, 1, 0)


class Traffic:
    """Clients that connect without end, and what went wrong with them."""

    def __init__(self, clients: int = 4) -> None:
        self.failures: list[str] = []
        self.done = [0] * clients
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(clients)]

    def _run(self, number: int) -> None:
        while not self._stopping.is_set():
            address = f"198.18.{number}.{self.done[number] % 256}"
            try:
                if not ask(address, PORT).endswith(f"{address} {PORT}"):
                    self.failures.append(f"{address}: misdirected")
            except OSError as error:
                self.failures.append(f"{address}: {error!r}")
            self.done[number] += 1

    def go_on(self) -> None:
        """Wait until each client has made a connection from its beginning to its end."""
        before = list(self.done)
        wait_until(lambda: all(now > then + 1 for now, then in zip(self.done, before, strict=True)))

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def test_no_connection_is_lost_while_sockets_are_replaced(bed: Bed) -> None:
    def empty(*numbers: int) -> None:
        """As the kernel does when sockets close, without their waiting connections."""
        with libbpf.opened(bed.pins.registry) as registry:
            for number in numbers:
                libbpf.delete(registry, KEY.pack(group(0, "tcp", 4) * SOCKET_SLOTS + number))

    with ExitStack() as stack:
        members = [stack.enter_context(listener(says="web", reuse_port=True))]
        port = members[0].getsockname()[1]
        members += [stack.enter_context(listener(says="web", port=port, reuse_port=True)) for _ in range(3)]
        bed.register("web", *members)
        traffic = stack.enter_context(Traffic())
        for number in range(150):
            bed.register("web", *members[: 1 + number % 4])
            empty(*range(number % 4))  # only the last is left
            if number % 10 == 0:
                traffic.go_on()
        traffic.go_on()
    assert traffic.failures == []


def test_promises_follow_the_live_generation(bed: Bed) -> None:
    live, before = bed.pins.current, bed.pins.previous
    with group_of(3, socket.SOCK_STREAM) as (one, two, three):
        assert promises(live, 0) == NOTHING, "nobody has looked at the slots"
        bed.register("web", one)
        assert promises(live, 0)[0] == 0b11111110
        assert promises(live, 0)[1:] == ALL_EMPTY[1:]
        bed.register("web", one, two, three)
        assert promises(live, 0)[0] == 0b11111000
        bed.register("web", three)
        assert promises(live, 0)[0] == 0b11111000, "a packet may be on its way to a slot that was emptied"
        bed.register("web", three)
        assert promises(live, 0)[0] == 0b11111110
        bed.load(WEB, {"label": "more", "ports": [81]})
        assert (promises(live, 0)[0], promises(before, 0)) == (0b11111110, NOTHING)
        assert promises(live, 1) == NOTHING
        generation.rollback(bed.pins)
        assert (promises(live, 0)[0], promises(before, 0)) == (0b11111110, NOTHING)
        bed.unregister("web")
        bed.register("web", two)
        generation.rollback(bed.pins)
        assert (promises(live, 0)[0], promises(before, 0)) == (0b11111110, NOTHING)


def test_a_registration_that_ends_halfway_leaves_no_wrong_promise(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = libbpf.update
    with group_of(3, socket.SOCK_STREAM) as members:
        for last in range(1, 7):  # a socket is put into a map for proof, then into its slot
            bed.register("web", members[0])
            calls = iter(range(1, 7))

            def stopping(*arguments: Any, last: int = last, calls: Iterator[int] = calls) -> None:
                update(*arguments)
                if next(calls) == last:
                    raise OSError

            with monkeypatch.context() as patch:
                patch.setattr(libbpf, "update", stopping)
                with pytest.raises((OSError, RefusedError)):
                    bed.register("web", *members)
            with libbpf.opened(bed.pins.registry) as registry:
                libbpf.delete(registry, KEY.pack(group(0, "tcp", 4) * SOCKET_SLOTS))
            assert arrives("tcp") == bool(bed.count("web").sockets) == (last > 4)
            bed.unregister("web")


def test_promises_hold_while_the_service_runs_and_no_longer(bed: Bed, tmp_path: Path) -> None:
    with group_of(2, socket.SOCK_STREAM) as members:
        bed.register("web", *members)
        hints.withdraw(bed.pins.current)
        with activation(bed.pins, tmp_path / "activation.sock") as process:
            wait_until(lambda: promises(bed.pins.current, 0) == b"\xfc\xff\xff\xff")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert promises(bed.pins.current, 0) == NOTHING
        assert arrives("tcp")


def test_a_registration_without_the_pin_of_the_hints_is_refused(bed: Bed) -> None:
    (bed.pins.current / "answers").unlink()
    with listener(says="web") as sock:
        with pytest.raises(
            RefusedError, match=r"answers: this pin is missing\n +fix: run unmoor sockets load"
        ):
            bed.register("web", sock)
        assert bed.load(WEB).repairs == ("restored the pin current/answers",)
        bed.register("web", sock)
        assert ask(PACKETS[4], PORT).startswith("web")


@pytest.fixture(scope="module")
def code_without_hints(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program as it was before it had hints: its map `answers` has the result of `explain` only."""
    folder = tmp_path_factory.mktemp("earlier")
    source = (files("unmoor.sockets.dispatch") / "dispatch.bpf.c").read_text()
    for now, then in (("\t__u8 empty[MAX_GROUPS];\n", ""), ("~hints->empty[group]", "~0")):
        assert source.count(now) == 1
        source = source.replace(now, then)
    (folder / "earlier.bpf.c").write_text(source)
    compile_program(folder / "earlier.o", source=folder / "earlier.bpf.c")
    return (folder / "earlier.o").read_bytes()


def trie_of_nodes(nodes: Any, keys: Sequence[int], leaves: Sequence[int]) -> int:
    """`trie.add` as it was: the root is a node, for a single prefix too."""
    root = trie.add(nodes, keys, leaves)  # WEB has no binding to any port, so no root has a mark of that
    if root & ROOT_IS_LEAF:
        nodes.append(root & ~ROOT_IS_LEAF)
        return len(nodes) - 1
    return root


class Earlier:
    """`trie` with the function as it was."""

    add = staticmethod(trie_of_nodes)
    parents, nesting = staticmethod(trie.parents), staticmethod(trie.nesting)


def test_an_upgrade_from_pins_without_hints_and_back_loses_nothing(
    netns: None, pins: Pins, code: bytes, code_without_hints: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_local()
    bed = Bed(pins, code_without_hints)

    def load(code: bytes) -> None:
        bed.code = code
        with monkeypatch.context() as patch:
            if code is code_without_hints:
                patch.setattr(table, "trie", Earlier)
            change = bed.load(WEB)
        assert (change.new_program, change.repairs) == (True, ())

    def size() -> int:
        with libbpf.opened(pins.current / "answers") as fd:
            return libbpf.map_info(fd).value_size

    load(code_without_hints)
    names = {str(path.relative_to(pins.root)) for path in pins.root.rglob("*")}
    with listener(says="web") as sock, ExitStack() as stack:
        bed.register("web", sock)
        cookies = bed.count("web").sockets
        established = stack.enter_context(socket.create_connection((PACKETS[4], PORT), timeout=5))
        traffic = stack.enter_context(Traffic())
        steps: list[tuple[Callable[[], object], int]] = [
            (lambda: load(code), ANSWERS_SIZE),
            (lambda: generation.rollback(pins), ANSWER.size),
            (lambda: generation.rollback(pins), ANSWERS_SIZE),
            (lambda: load(code_without_hints), ANSWER.size),
            (lambda: load(code), ANSWERS_SIZE),
        ]
        for step, wanted in steps:
            traffic.go_on()
            step()
            assert size() == wanted
            assert promises(pins.current, 0) in (b"", NOTHING), "an earlier release may have filled the slots"
            assert bed.count("web").sockets == cookies
            traffic.go_on()
            bed.register("web", sock)
        assert established.recv(100).decode() == f"web {PACKETS[4]} {PORT}"
    assert traffic.failures == []
    assert {str(path.relative_to(pins.root)) for path in pins.current.parent.rglob("*")} >= names
    assert refuses(PACKETS[4], PORT)
