"""Registration starts without click, and means what click would make of the same command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.program import UNMOOR, run
from unmoor.commands import sockets
from unmoor.commands.registration import fast
from unmoor.commands.registration.options import REGISTER, UNREGISTER
from unmoor.sockets.activation.protocol import Reply

OPTIONS = {"register": REGISTER, "unregister": UNREGISTER}
SLOW = ("click", "pydantic", "rich", "importlib.metadata", "argparse")


def by_click(verb: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The values that click passes on, or None where it refuses the command line or prints help."""
    try:
        values = sockets.cli.commands[verb].make_context(verb, list(arguments)).params
    except (click.ClickException, click.exceptions.Exit):
        return None
    return dict(values)


def same(values: dict[str, Any], others: dict[str, Any] | None) -> bool:
    """Whether click passes on the same; what only click knows, such as --follow, is not given."""
    if others is None or others.get("follow"):
        return False
    return all(others[name] == (list(value) if name == "listen" else value) for name, value in values.items())


def line(text: str) -> tuple[str, list[str]]:
    verb, *arguments = text.split(" ")
    return verb, arguments


@pytest.mark.parametrize(
    "text",
    [
        "register web",
        "register web --pidfile /run/nginx.pid --listen 127.0.0.1:80 --listen [::1]:80",
        "register --pid 7 --wait=0.2 web --listen=127.0.0.1:80 --protocol udp",
        "register web --pid 7 --protocol tcp --protocol udp --unit x.service",
        "register web --pid 7 --pid 8 --socket /run/other.sock",
        "unregister web",
        "unregister --socket=/run/other.sock web",
    ],
)
def test_valid_lines_need_no_click(text: str) -> None:
    verb, arguments = line(text)
    values = fast.parse(arguments, OPTIONS[verb])
    assert values is not None
    assert same(values, by_click(verb, arguments))


@pytest.mark.parametrize(
    "text",
    [
        "register",
        "register web other",
        "register web --help",
        "register web --pid",
        "register web --pid x",
        "register web --pid 7x",
        "register web --wait soon",
        "register web --listen 127.0.0.1",
        "register web --listen 127.0.0.1:80:80",
        "register web --protocol sctp",
        "register web --bogus 7",
        "register web --listen",
        "unregister web --pid 7",
    ],
)
def test_mistakes_and_help_are_left_to_click(text: str) -> None:
    verb, arguments = line(text)
    assert fast.parse(arguments, OPTIONS[verb]) is None
    assert by_click(verb, arguments) is None


TOKENS = st.sampled_from(
    [option.flag for option in REGISTER]
    + ["--pid=7", "--wait=1e1", "--listen=[::1]:80", "--protocol=udp", "--pidfile=", "--socket=/", "--wai"]
    + ["web", "7", "-7", "0.5", "127.0.0.1:80", "[::1]:443", "::1", "udp", "/dev/null", "", "-", "--", "-h"]
)


@given(st.sampled_from(sorted(OPTIONS)), st.lists(TOKENS, max_size=6))
def test_what_is_parsed_is_what_click_parses(verb: str, arguments: list[str]) -> None:
    values = fast.parse(arguments, OPTIONS[verb])
    if values is not None:
        assert same(values, by_click(verb, arguments))


def test_it_imports_nothing_slow(tmp_path: Path) -> None:
    code = f"""
import sys
from unmoor.commands import main
sys.argv = ["unmoor", "sockets", "register", "web", "--pid", "1", "--listen", "127.0.0.1:1", "--wait", "0",
            "--socket", {str(tmp_path / "none")!r}]
try:
    main()
except SystemExit:
    print([name for name in {SLOW!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_a_mistake_has_clicks_message_and_status() -> None:
    done = run("sockets", "register", "web", "--wait", "soon")
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "'soon' is not a valid float" in done.stderr


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    path = tmp_path / "activation.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        read, write = os.pipe()
        os.close(read)
        command = [*UNMOOR, "sockets", "unregister", "web", "--socket", str(path)]
        with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True) as process:
            client, _ = server.accept()
            with client:
                assert client.recv(4096)
                client.sendall(Reply(ok=True).encode())
            assert process.communicate(timeout=120)[1] == ""
    os.close(write)
    assert process.returncode == 1
