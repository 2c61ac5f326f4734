"""Undeliverable replies do not delay others.

Spoofed senders in the server's own subnet have no neighbour entry. The kernel queues replies to them for
seconds, and counts them against the socket.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dns.message
import pytest

from support.dns_server import running
from unmoor import udp

SERVER = "198.51.100.1"
MAC = bytes.fromhex("020000000001")
#: Spoofed packets a second, and in all: ten seconds of them at most.
RATE = 3_000
MAX_SPOOFED = 10 * RATE
ASKED = 40
#: Seconds that a client waits for an answer. The kernel drops an unreachable neighbour after three.
TIMEOUT = 0.5
QUERY = dns.message.make_query("host0.example.com", "A").to_wire()


@pytest.fixture
def subnet(netns: None) -> None:
    """An interface to a subnet without any host, so that ARP gets no answer."""
    for command in (
        f"link add near address {MAC.hex(':')} type veth peer name far",
        f"address add {SERVER}/24 dev near",
        "link set near up",
        "link set far arp off up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _frame(source: int, port: int, data: bytes) -> bytes:
    """An Ethernet frame with a UDP datagram from 198.51.100.`source`; without a UDP checksum."""
    size = 28 + len(data)
    addresses = socket.inet_aton(f"198.51.100.{source}") + socket.inet_aton(SERVER)
    header = struct.pack("!BBHHHBBH8s", 0x45, 0, size, 0, 0, 64, socket.IPPROTO_UDP, 0, addresses)
    header = header[:10] + _checksum(header).to_bytes(2, "big") + header[12:]
    return MAC + bytes(6) + b"\x08\x00" + header + struct.pack("!4H", 5353, port, size - 20, 0) + data


@contextmanager
def spoofed(port: int, data: bytes) -> Iterator[None]:
    """A flow to the server from 200 addresses of its subnet."""
    frames = [_frame(2 + number, port, data) for number in range(200)]
    enough = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("far", 0))
            began, sent = time.monotonic(), 0
            while not enough.wait(0.002) and sent < MAX_SPOOFED:
                due = int((time.monotonic() - began) * RATE) - sent
                for number in range(sent, sent + min(due, 100)):
                    with suppress(OSError):
                        sock.send(frames[number % len(frames)])
                sent += min(due, 100)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        time.sleep(0.5)
        yield
    finally:
        enough.set()
        thread.join()


def answered(port: int) -> int:
    """Send ASKED queries, one after another; returns the number of answers."""
    count = 0
    for _ in range(ASKED):
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect((SERVER, port))
            sock.send(QUERY)
            with suppress(TimeoutError):
                count += bool(sock.recv(4096))
        time.sleep(0.05)
    return count


def test_the_dns_server_answers_while_replies_cannot_be_delivered(subnet: None, tmp_path: Path) -> None:
    with running(tmp_path, listen=[SERVER], workers=1) as server:
        without = answered(server.port)
        with spoofed(server.port, QUERY):
            beside = answered(server.port)
        print(f"batches: answered {without} of {ASKED}, beside the spoofed flow {beside}")
        assert beside >= without * 0.8


def test_a_server_that_uses_unmoor_udp_answers_as_well(subnet: None) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        udp.prepare(sock)
        sock.bind((SERVER, 0))
        port = sock.getsockname()[1]

        def serve() -> None:
            while True:
                datagram = udp.receive(sock)
                if not datagram.data:
                    return
                with suppress(OSError):
                    udp.reply(sock, datagram, datagram.data + bytes(16))

        thread = threading.Thread(target=serve)
        thread.start()
        without = answered(port)
        with spoofed(port, QUERY):
            beside = answered(port)
        print(f"unmoor.udp: answered {without} of {ASKED}, beside the spoofed flow {beside}")
        with socket.socket(type=socket.SOCK_DGRAM) as stopper:
            stopper.sendto(b"", (SERVER, port))
        thread.join()
        assert beside >= without * 0.8


def test_a_full_send_buffer_costs_a_reply_and_no_time(subnet: None) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        udp.prepare(sock)
        sock.bind((SERVER, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = udp.Datagram(b"", ("198.51.100.77", 5353), ipaddress.IPv4Address(SERVER), 53)
        with pytest.raises(BlockingIOError):
            _send(sock, client, 100)


def _send(sock: socket.socket, client: udp.Datagram, times: int) -> None:
    for _ in range(times):
        udp.reply(sock, client, bytes(500))
