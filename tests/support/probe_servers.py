"""Real servers for the probe's tests, on loopback addresses, each ended with its block."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

#: Called with the accepted connection and the address and port that the client dialled.
Handler = Callable[[socket.socket, str, int], None]


def answer(
    address: str,
    port: int,
    *,
    edge: str = "edge1",
    service: str = "web",
    said_address: str = "",
    status: str = "200 OK",
) -> bytes:
    """The reply of the lab's listener."""
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: 3\r\nConnection: close\r\nUnmoor-Edge: {edge}\r\n"
        f"Unmoor-Service: {service}\r\nUnmoor-Address: {said_address or address}\r\n"
        f"Unmoor-Port: {port}\r\n\r\nok\n"
    ).encode()


def web(**said: str) -> Handler:
    def handle(connection: socket.socket, address: str, port: int) -> None:
        read_request(connection)
        connection.sendall(answer(address, port, **said))

    return handle


def raw(data: bytes) -> Handler:
    """Answer every request with these bytes."""

    def handle(connection: socket.socket, _address: str, _port: int) -> None:
        read_request(connection)
        connection.sendall(data)

    return handle


def reset(connection: socket.socket, _address: str, _port: int) -> None:
    """Take the request, then abort."""
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(4096)
        if not more:
            break
        data += more
    return data


@contextmanager
def listening(
    handler: Handler,
    addresses: Sequence[str] = ("127.0.0.1",),
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """Serve on all `addresses`; the value is the port, the same on each."""
    listeners: list[socket.socket] = []
    port = 0
    try:
        for address in addresses:
            listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(128)
            port = listener.getsockname()[1]
            threading.Thread(target=_accept, args=(listener, handler, tls), daemon=True).start()
        yield port
    finally:
        for listener in listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
            listener.close()


def _accept(listener: socket.socket, handler: Handler, tls: ssl.SSLContext | None) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.settimeout(5)
            address, port = connection.getsockname()[:2]
            if tls is None:
                handler(connection, address, port)
                continue
            with tls.wrap_socket(connection, server_side=True) as secured:
                handler(secured, address, port)


def make_certificate(folder: Path, name: str = "www.unmoor.test") -> tuple[ssl.SSLContext, Path]:
    """A server's context for `name`, and the file of the authority that signed its certificate."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test CA")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={name}")
    (folder / "san").write_text(f"subjectAltName=DNS:{name}\n")
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", "1", "-extfile", "san")
    openssl("x509", "-req", "-in", "server.csr", *sign, "-out", "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context, folder / "ca.pem"


@contextmanager
def answering(
    reply: Callable[[bytes], bytes | None],
    address: str = "127.0.0.1",
    seen: Callable[[object], None] = lambda _: None,
) -> Iterator[int]:
    """A UDP server that sends the result of `reply` for each datagram, if any; the value is its port.

    `seen` is called with each client's address.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        server.bind((address, 0))
        server.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                with suppress(TimeoutError):
                    data, client = server.recvfrom(4096)
                    seen(client)
                    answered = reply(data)
                    if answered is not None:
                        server.sendto(answered, client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            thread.join()


def dns_answer(query: bytes, *addresses: str, rcode: int = 0, flags: int = 0x8400) -> bytes:
    """A reply to `query` with one record for each address."""
    kind = int.from_bytes(query[-4:-2], "big")
    family = socket.AF_INET6 if kind == 28 else socket.AF_INET
    head = query[:2] + struct.pack("!HHHHH", flags | rcode, 1, len(addresses), 0, 0)
    records = b""
    for address in addresses:
        data = socket.inet_pton(family, address)
        records += struct.pack("!HHHIH", 0xC00C, kind, 1, 30, len(data)) + data
    return head + query[12:] + records
