"""The state in force on an edge, compared with its files."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from support.checkout import load
from support.dns_server import running
from support.plugins import run_module

module = load("plugins/modules/in_force.py")

#: Exit status, output, errors.
Answer = tuple[int, str, str]

OLD, NEW = '{"pools": "old"}\n', '{"pools": "new"}\n'
NO_CHANGE = (0, "no change\n", "")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def server(text: str, *workers: str) -> Answer:
    """Output of `dns status --json --text` for a server with `text` in force and these workers."""
    status = {
        "release": "0.1.0",
        "document": digest(text),
        "text": text,
        "workers": [{"pid": 7 + place, "document": digest(each)} for place, each in enumerate(workers)],
    }
    return 0, json.dumps(status), ""


def in_force(file: str, *answers: Answer) -> dict[str, Any]:
    found: dict[str, Any] = module.in_force({"edge": "{}", "dns": file}, list(answers))
    return found


def test_files_that_are_in_force_differ_in_nothing() -> None:
    found = in_force(OLD, server(OLD, OLD, OLD), NO_CHANGE, NO_CHANGE)
    assert found == {"documents": {"edge": "{}", "dns": OLD}, "dns": [], "edge": [], "down": []}


def test_a_file_that_was_not_reloaded_is_not_in_force() -> None:
    found = in_force(NEW, server(OLD, OLD, OLD), NO_CHANGE, NO_CHANGE)
    assert found["documents"]["dns"] == OLD
    assert found["dns"] == [
        "DNS: dns.json on the edge is not in force: a run was cut short before the reload"
    ]


def test_a_worker_with_another_document_shows() -> None:
    found = in_force(OLD, server(OLD, NEW, OLD), NO_CHANGE, NO_CHANGE)
    assert found["dns"] == ["DNS: workers 7 answer from another document than the others"]


def test_a_release_that_does_not_report_is_reloaded() -> None:
    older = (0, json.dumps({"release": "0.0.9", "workers": []}), "")
    found = in_force(NEW, older, NO_CHANGE, NO_CHANGE)
    assert found["documents"]["dns"] == NEW
    assert found["dns"] == ["DNS: the release 0.0.9 does not report its document, so it is reloaded"]


def test_so_is_one_whose_program_cannot_query() -> None:
    older = (2, "", "Error: No such option: --text Did you mean --metrics?")
    found = in_force(NEW, older, NO_CHANGE, NO_CHANGE)
    assert (len(found["dns"]), found["down"]) == (1, [])


def test_a_server_that_does_not_answer_and_a_table_that_is_not_in_force() -> None:
    down = (1, "", "control.sock: Connection refused")
    table = (1, "+ tcp 198.18.0.0/24 80 -> web\n1 bindings added, 0 removed\n", "")
    found = in_force(OLD, down, table, NO_CHANGE)
    assert found["down"] == ["the DNS server does not answer: control.sock: Connection refused"]
    assert found["edge"] == [
        "dispatch table: edge.json is not in force (1 bindings added, 0 removed)",
    ]


def test_nothing_is_compared_where_nothing_is_rolled_out() -> None:
    found = module.in_force({"edge": "", "dns": ""}, [])
    assert found["dns"] == found["edge"] == found["down"] == []


def test_a_running_server_is_asked_and_not_its_file(tmp_path: Path) -> None:
    """The module as a program, on an edge whose `unmoor` is this checkout's, with this server."""
    with running(tmp_path) as server:
        program = tmp_path / "unmoor"
        program.write_text(
            "#!/bin/sh\n"
            f'[ "$1" = dns ] || {{ echo no change; exit 0; }}\n'
            f'exec {Path(sys.executable).with_name("unmoor")} "$@" --control {server.control}\n'
        )
        program.chmod(0o755)
        (tmp_path / "edge.json").write_text("{}")
        before = server.config.read_text()

        def result() -> dict[str, Any]:
            arguments = {"edge": f"{tmp_path}/edge.json", "dns": str(server.config), "program": str(program)}
            return run_module("in_force", arguments)

        assert result()["dns"] == []
        server.write({**server.data, "rate_limit": 7})
        found = result()
        assert found["documents"] == {"edge": "{}", "dns": before}
        assert len(found["dns"]) == 1
        assert server.reload().done
        found = result()
        assert (found["dns"], found["documents"]["dns"]) == ([], server.config.read_text())
    assert "No such file" in result()["down"][0]
