"""Reloads and restarts of real listeners under load, as docs/listeners.md describes them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import control_group, other_servers
from support.checkout import ROOT
from support.program import UNMOOR
from support.sockets import Bed, activation
from support.waiting import wait_until

PAGE = (ROOT / "docs" / "listeners.md").read_text()
WEB = {"label": "web", "ports": [80]}
CADDYFILE = """
{
	admin unix//DIRECTORY/caddy.sock
	auto_https off
	storage file_system DIRECTORY
}
:8083 {
	respond "NUMBER"
}
"""
NGINX = """
pid DIRECTORY/nginx.pid;
daemon off;
error_log DIRECTORY/nginx.log;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen [::1]:8080;
        listen 127.0.0.1:8080;
        return 200 "NUMBER";
    }
}
"""


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(WEB)
    return bed


@pytest.fixture
def sock_path(tmp_path: Path, bed: Bed) -> Iterator[Path]:
    path = tmp_path / "activation.sock"
    with activation(bed.pins, path):
        yield path


def unit(name: str) -> str:
    """A unit of the page."""
    return next(block for block in re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL) if name in block)


def setting(name: str, key: str) -> str:
    return re.findall(rf"^{key}=(.+)$", unit(name), re.MULTILINE)[-1]


def register(line: str, process: int, *options: str) -> list[str]:
    """A command of a unit, with this checkout's program, for a process of the test."""
    _, *arguments = shlex.split(line)
    at = next(arguments.index(option) for option in ("--unit", "--pid") if option in arguments)
    arguments[at : at + 2] = ["--pid", str(process)]
    return [*UNMOOR, *arguments, *options]


class Clients:
    """Clients that connect again and again. What they got is in `answers`, what went wrong in `errors`."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.errors: list[OSError] = []
        self._done = threading.Event()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                self.answers.append(get())
            except OSError as error:
                self.errors.append(error)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()


def get() -> str:
    with socket.create_connection(("198.18.3.7", 80), timeout=60) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        text = b""
        while more := sock.recv(4096):
            text += more
    return text.rpartition(b"\r\n")[2].decode()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_caddy_reloads_and_refuses_nobody(bed: Bed, sock_path: Path, group: Path, tmp_path: Path) -> None:
    config = tmp_path / "Caddyfile"

    def write(number: int) -> None:
        text = CADDYFILE.replace("/DIRECTORY", f"/{tmp_path}").replace("DIRECTORY", str(tmp_path))
        config.write_text(text.replace("NUMBER", str(number)))

    def caddy(*arguments: str) -> list[str]:
        command = [*other_servers.command("caddy", *arguments, "--config", config)]
        return ["env", f"HOME={tmp_path}", *map(str, command)]

    write(0)
    log = (tmp_path / "caddy.log").open("w")
    process = subprocess.Popen([*control_group.entering(group), *caddy("run")], stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(8083))
        options = ("--socket", str(sock_path), "--pins", str(bed.pins.root))
        command = register(setting("caddy-follow.service", "ExecStart"), process.pid, *options)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
            assert follower.stdout
            assert follower.stdout.readline() == "web: tcp [::]:8083\n"
            clients = Clients()
            with clients.running():
                for number in range(1, 6):
                    write(number)
                    subprocess.run(caddy("reload"), check=True, capture_output=True)
                    wait_until(lambda number=number: clients.answers[-1:] == [str(number)])
            follower.kill()
    finally:
        process.kill()
        process.wait()
        log.close()
    # Caddy resets connections that wait in the queue of the socket that it closes.
    assert not [error for error in clients.errors if isinstance(error, ConnectionRefusedError)]
    assert set(clients.answers) == set("012345")


def test_nginx_restarts_and_loses_nothing(bed: Bed, sock_path: Path, tmp_path: Path) -> None:
    held = [socket.socket(family) for family in (socket.AF_INET, socket.AF_INET6)]
    for sock, host in zip(held, ("127.0.0.1", "::1"), strict=True):
        sock.bind((host, 8080))
        sock.listen(8192)
    variable = setting("zz-held.conf", "Environment")

    def start(number: int) -> subprocess.Popen[bytes]:
        config = tmp_path / "nginx.conf"
        config.write_text(NGINX.replace("DIRECTORY", str(tmp_path)).replace("NUMBER", str(number)))
        nginx = other_servers.command("nginx", "-p", tmp_path, "-e", "nginx.log", "-c", config)
        # Numbers as systemd passes them; the programs in between inherit them.
        passing = 'exec 3<&"$0" 4<&"$1"; shift; exec "$@"'
        numbers = [str(sock.fileno()) for sock in held]
        return subprocess.Popen(
            ["bash", "-c", passing, *numbers, "env", variable, *map(str, nginx)],
            pass_fds=[sock.fileno() for sock in held],
        )

    process = start(0)
    line = (
        setting("nginx-held.service: ", "ExecStart").replace(":80 ", ":8080 ").removesuffix(":80") + ":8080"
    )
    done = subprocess.run(
        [*register(line, os.getpid()), "--socket", str(sock_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "web: tcp 127.0.0.1:8080, tcp [::1]:8080\n", done.stderr
    clients = Clients()
    try:
        with clients.running():
            for number in range(1, 4):
                wait_until(lambda number=number: clients.answers[-1:] == [str(number - 1)])
                process.send_signal(signal.SIGQUIT)
                assert process.wait() == 0
                process = start(number)
            wait_until(lambda: clients.answers[-1:] == ["3"])
    finally:
        process.terminate()  # with its workers
        process.wait()
    assert not clients.errors
    assert set(clients.answers) == set("0123")
