"""The watch: what it repairs, and what it reports when a repair does not help."""

from __future__ import annotations

import json
from itertools import repeat
from pathlib import Path

import pytest

from unmoor.rollout import host, lock, manifest
from unmoor.rollout.store import State, Store
from unmoor.rollout.watch import watch


def confirmed(tmp_path: Path, repair: str) -> Store:
    """A store whose confirmed generation has one part: `effect` exists."""
    part = {
        "name": "a",
        "verify": [["/bin/test", "-e", str(tmp_path / "effect")]],
        "repair": [["/bin/sh", "-c", repair]],
    }
    found, _ = manifest.parse(json.dumps({"format": 1, "parts": [part]}))
    store = Store(tmp_path / "home")
    store.add(found, {})
    store.save(State(found.id))
    return store


def test_a_lost_effect_is_repaired_once_and_counted(tmp_path: Path) -> None:
    store = confirmed(tmp_path, f"echo ran >> {tmp_path}/log; touch {tmp_path}/effect")
    reported: list[str] = []
    watch(store, host.run, reported.append, 0, repeat(None, 3))
    assert (tmp_path / "log").read_text() == "ran\n"
    assert len(reported) == 1
    assert store.state().repairs == 1


def test_a_repair_that_does_not_help_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmoor.rollout.edge._GRACE", 0)
    store = confirmed(tmp_path, f"echo ran >> {tmp_path}/log")
    reported: list[str] = []
    watch(store, host.run, reported.append, 0, repeat(None, 2))
    assert (tmp_path / "log").read_text() == "ran\nran\n"
    assert "part a is not in force" in "".join(reported)


def test_another_process_that_changes_the_edge_is_reported_once(tmp_path: Path) -> None:
    store = confirmed(tmp_path, f"touch {tmp_path}/effect")
    reported: list[str] = []
    with lock.held(store, "apply"):
        watch(store, host.run, reported.append, 0, repeat(None, 3))
    assert len(reported) == 1
    assert "(apply)" in reported[0]
    watch(store, host.run, reported.append, 0, repeat(None, 1))
    assert (tmp_path / "effect").exists()
