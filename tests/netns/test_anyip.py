"""Prefixes are made local: only differences are applied, and routes of others stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

UNMOOR = str(Path(sys.executable).with_name("unmoor"))


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"unmoor-anyip-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def run(namespace: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *words], capture_output=True, text=True, check=False
    )


def document(path: Path, *prefixes: str) -> str:
    path.write_text(json.dumps({"pop": "lab", "edge": "e", "prefixes": prefixes}))
    return str(path)


def test_prefixes_become_local_and_a_second_run_changes_nothing(namespace: str, tmp_path: Path) -> None:
    config = document(tmp_path / "edge.json", "198.18.0.0/20", "2001:db8:100::/44")
    assert run(namespace, "ping", "-c1", "-W1", "198.18.3.7").returncode != 0
    assert "198.18.0.0/20: local" in run(namespace, UNMOOR, "anyip", "apply", "--config", config).stdout
    for address in ("198.18.0.0", "198.18.15.255", "2001:db8:10f:ffff::1"):
        shown = run(namespace, "ip", "route", "get", address).stdout
        assert shown.startswith("local "), shown
    assert run(namespace, UNMOOR, "anyip", "apply", "--config", config).stdout == "no change\n"


def test_only_the_difference_is_applied_and_other_routes_stay(namespace: str, tmp_path: Path) -> None:
    run(namespace, "ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo")
    config = document(tmp_path / "edge.json", "198.18.0.0/20", "198.18.32.0/24")
    run(namespace, UNMOOR, "anyip", "apply", "--config", config)
    config = document(tmp_path / "edge.json", "198.18.0.0/20", "2001:db8:100::/44")
    checked = run(namespace, UNMOOR, "anyip", "apply", "--config", config, "--check").stdout
    applied = run(namespace, UNMOOR, "anyip", "apply", "--config", config).stdout
    assert checked == applied == "2001:db8:100::/44: local\n198.18.32.0/24: no longer local\n"
    run(namespace, UNMOOR, "anyip", "remove")
    left = run(namespace, "ip", "route", "show", "table", "local").stdout
    assert "198.18." not in left
    assert "local 198.51.100.0/24" in left


def test_a_bad_document_changes_nothing(namespace: str, tmp_path: Path) -> None:
    config = document(tmp_path / "edge.json", "198.18.0.1/20")
    done = run(namespace, UNMOOR, "anyip", "apply", "--config", config)
    assert done.returncode == 2
    assert "did you mean 198.18.0.0/20?" in done.stderr
    assert "198.18." not in run(namespace, "ip", "route", "show", "table", "local").stdout
