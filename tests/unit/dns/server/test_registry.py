"""A registry under a running server: swapped while clients ask, refused when damaged, shared by workers."""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest

from support.dns_document import document
from support.dns_server import Running, running
from unmoor.dns.hostnames.registry import sha256_of
from unmoor.dns.hostnames.registry_build import build
from unmoor.dns.hostnames.registry_list import BadLines, Line
from unmoor.dns.protocol import names

POOLS = {"free": ip_network("198.18.0.0/20"), "business": ip_network("198.51.100.0/24")}
APEX = names.from_text("example.com")
#: Of a list 'a' and a list 'b': in one, in the other, in both with other tags, and many around them.
ONLY_A, ONLY_B, BOTH = "only-a.example.com", "only-b.example.com", "both.example.com"
MANY = 20_000


def written(path: Path, own: str, account: str) -> dict[str, str]:
    tags = frozenset({("account_type", account)})
    texts = [own, BOTH, *(f"many{n}.example.com" for n in range(MANY))]
    build([Line(n, "", text, tags) for n, text in enumerate(texts, 1)], [APEX], path, BadLines("list"))
    return {"path": str(path), "sha256": sha256_of(path)}


def registries(directory: Path) -> dict[str, dict[str, str]]:
    return {
        "a": written(directory / "a.registry", ONLY_A, "free"),
        "b": written(directory / "b.registry", ONLY_B, "business"),
    }


def naming(server: Running, registry: dict[str, str]) -> dict[str, Any]:
    return {**server.data, "registry": registry}


class Client(threading.Thread):
    """Queries until it is stopped; checks replies against the lists in force between query and reply."""

    def __init__(self, server: Running) -> None:
        super().__init__()
        self.server = server
        self.stopped = threading.Event()
        #: Lists that may be in force: one, or both during a reload.
        self.allowed = {"a"}
        self.asked, self.failures = 0, list[str]()

    def run(self) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(("127.0.0.1", self.server.port))
            while not self.stopped.is_set():
                for name in (ONLY_A, ONLY_B, BOTH, f"many{self.asked % MANY}.example.com"):
                    before = set(self.allowed)
                    query = dns.message.make_query(name, "A")
                    try:
                        sock.send(query.to_wire())
                        reply = dns.message.from_wire(sock.recv(4096))
                    except OSError as error:
                        self.failures.append(f"{name}: {error}")
                        continue
                    seen = verdict(name, reply)
                    self.asked += 1
                    if reply.id != query.id or not seen & (before | self.allowed):
                        self.failures.append(f"{name}: {before} {self.allowed}: {reply}")


def verdict(name: str, reply: dns.message.Message) -> set[str]:
    """The lists that a reply can be from."""
    if reply.rcode() == dns.rcode.NXDOMAIN:
        return {ONLY_A: {"b"}, ONLY_B: {"a"}}.get(name, set())
    address = ip_address(reply.answer[0][0].address)
    account = next(account for account, pool in POOLS.items() if address in pool)
    return ({"a"} if account == "free" else {"b"}) - (
        {"b"} if name == ONLY_A else {"a"} if name == ONLY_B else set()
    )


def test_swapped_under_load_nothing_is_lost_or_wrong(tmp_path: Path) -> None:
    lists = registries(tmp_path)
    with running(tmp_path, registry=lists["a"]) as server:
        client = Client(server)
        client.start()
        try:
            for turn in range(20):
                old, new = ("a", "b") if turn % 2 == 0 else ("b", "a")
                client.allowed = {old, new}
                server.write(naming(server, lists[new]))
                assert server.reload().done
                client.allowed = {new}
        finally:
            client.stopped.set()
            client.join()
        assert client.failures == []
        assert client.asked > 100
        assert server.status()["generation"] == 21


@pytest.mark.parametrize("how", ["missing", "cut", "flipped", "too new"])
def test_what_cannot_be_served_is_refused_and_the_old_one_goes_on(tmp_path: Path, how: str) -> None:
    lists = registries(tmp_path)
    with running(tmp_path, registry=lists["a"]) as server:
        path = Path(lists["b"]["path"])
        data = path.read_bytes()
        # Never in place: a file that a server has mapped must not change.
        path.unlink()
        broken = {
            "cut": data[: len(data) // 2],
            "flipped": data[:5000] + bytes((data[5000] ^ 1,)) + data[5001:],
            "too new": data[:8] + b"\x02" + data[9:],
        }
        if how in broken:
            path.write_bytes(broken[how])
        # The file in force may be removed too: its mapping remains.
        Path(lists["a"]["path"]).unlink()
        server.write(naming(server, lists["b"]))
        reply = server.reload()
        assert not reply.done
        assert f"registry.path = {path}: " in "\n".join(reply.lines)
        assert len(reply.lines) <= 24
        for name, expected in ((ONLY_A, 0), (ONLY_B, 3)):
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.sendto(dns.message.make_query(name, "A").to_wire(), ("127.0.0.1", server.port))
                assert dns.message.from_wire(sock.recv(4096)).rcode() == expected
        assert server.status()["generation"] == 1


def test_workers_share_it(tmp_path: Path) -> None:
    lists = registries(tmp_path)
    with running(tmp_path, registry=lists["a"]) as server:
        for pid in server.workers():
            maps = Path(f"/proc/{pid}/smaps").read_text().split("\n")
            at = next(number for number, line in enumerate(maps) if line.endswith("a.registry"))
            assert maps[at].split()[1] == "r--s"
            dirty = next(line for line in maps[at:] if line.startswith("Private_Dirty"))
            assert dirty.split()[1] == "0"
        assert server.status()["hostnames"] == MANY + 2 + 52


def test_a_server_does_not_begin_without_its_registry(tmp_path: Path) -> None:
    lists = registries(tmp_path)
    Path(lists["a"]["path"]).unlink()
    data = document(registry=lists["a"])
    server = Running(tmp_path, data)
    assert server.process.wait(20) == 2
    said = server.log.read_text()
    assert "No such file or directory" in said
    assert "Traceback" not in said
