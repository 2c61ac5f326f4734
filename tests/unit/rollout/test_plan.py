"""Changes from one generation to another, made on real files below a temporary directory."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from unmoor.rollout import execute, host, manifest, plan
from unmoor.rollout.execute import Executor
from unmoor.rollout.manifest import ZERO, Manifest
from unmoor.rollout.store import Original, Store

NAMES = st.sampled_from(["a", "b", "c", "d/e"])
ENTRIES = st.one_of(
    st.tuples(st.just("file"), st.sampled_from(["", "1", "2"]), st.sampled_from(["0644", "0600"])),
    st.tuples(st.just("link"), st.sampled_from(["x", "y"]), st.just("")),
    st.tuples(st.just("absent"), st.just(""), st.just("")),
)
#: Which entry each name has, and in which of two parts it is.
TREES = st.dictionaries(NAMES, st.tuples(ENTRIES, st.sampled_from(["one", "two"])), max_size=4)
Tree = dict[str, tuple[tuple[str, str, str], str]]


def generation(root: str, tree: Tree) -> tuple[Manifest, dict[str, bytes]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for name, ((kind, value, mode), part) in tree.items():
        keys: dict[str, dict[str, Any]] = {
            "file": {"content": value, "mode": mode},
            "link": {"link": value},
            "absent": {"absent": True},
        }
        file = {"path": f"{root}/{name}", **keys[kind]}
        parts.setdefault(part, []).append(file)
    document = {"format": 1, "parts": [{"name": name, "files": files} for name, files in parts.items()]}
    return manifest.parse(json.dumps(document))


def picture(root: str) -> dict[str, tuple[str, int]]:
    found = {}
    for path in Path(root).rglob("*"):
        if path.is_symlink():
            found[str(path)] = (str(path.readlink()), 0)
        elif path.is_file():
            found[str(path)] = (path.read_text(), path.stat().st_mode)
    return found


def change(store: Store, target: Manifest, base: Manifest) -> list[str]:
    """Make the change from `base` to `target`; return its lines."""
    original = execute.capture(target, store.original(), store)
    store.save_original(original)
    changes = plan.changes(target, [base], original)
    with execute.staged(changes, store.blob) as place:
        executor = Executor(original, lambda _: None)
        for each in changes:
            executor.make(each, place[each.name])
    return [line for each in changes for line in each.lines]


@settings(deadline=None)
@given(TREES, TREES, TREES)
def test_every_change_can_be_undone(host_has: Tree, first: Tree, second: Tree) -> None:
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as root:
        store = Store(Path(home))
        # The host's own files, which no generation knows.
        own, blobs = generation(root, {name: (entry, "one") for name, (entry, _) in host_has.items()})
        store.add(own, blobs)
        with execute.staged(plan.changes(own, [ZERO], Original()), store.blob) as place:
            for put in place.values():
                put()
        before = picture(root)
        one, one_blobs = generation(root, first)
        two, two_blobs = generation(root, second)
        store.add(one, one_blobs)
        store.add(two, two_blobs)
        change(store, one, ZERO)
        after_one = picture(root)
        assert all(host.current(path) == entry for path, entry in one.entries.items())
        assert change(store, one, one) == [], "applied again, nothing changes"
        change(store, two, one)
        assert all(host.current(path) == entry for path, entry in two.entries.items())
        after_two = picture(root)
        for path in before.keys() - two.entries.keys():
            assert after_two[path] == before[path]
        change(store, one, two)
        assert picture(root) == after_one
        change(store, ZERO, one)
        assert picture(root) == before
        assert not list(Path(root).rglob(f"{host.TEMPORARY}*"))


def rule_parts(root: Path, number: int) -> Manifest:
    """A part whose rules log that they ran: a restart before a reload of a unit, and others."""
    log = root / "log"
    note = ["/bin/sh", "-c", f'echo "$1" >> {log}', "sh"]
    part = {
        "name": "a",
        "files": [
            {"path": f"{root}/{each}", "link": f"{each}{number}"} for each in ("unit", "conf", "other")
        ],
        "rules": [
            {"on": [f"{root}/unit"], "run": [*note, "restart"], "unit": "x"},
            {"on": [f"{root}/unit", f"{root}/conf"], "run": [*note, "reload"], "unit": "x"},
            {"on": [f"{root}/other"], "run": [*note, "other"]},
            {"on": [f"{root}/conf"], "run": [*note, "other"]},
        ],
    }
    return manifest.parse(json.dumps({"format": 1, "parts": [part]}))[0]


def test_a_restart_replaces_a_reload_and_no_command_runs_twice(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = Store(tmp_path / "home")
    root.mkdir()
    change(store, rule_parts(root, 1), ZERO)
    assert (root / "log").read_text().split() == ["restart", "other"]
    (root / "conf").unlink()
    change(store, rule_parts(root, 1), rule_parts(root, 1))
    assert (root / "log").read_text().split()[2:] == ["reload", "other"]


def test_an_interrupted_part_is_activated_although_its_files_are_in_place(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = Store(tmp_path / "home")
    root.mkdir()
    one, two = rule_parts(root, 1), rule_parts(root, 2)
    change(store, one, ZERO)
    (found,) = plan.changes(one, [one, two], store.original(), touched=["a"])
    assert not found.entries
    assert found.paths == {f"{root}/{each}" for each in ("unit", "conf", "other")}
    assert not plan.changes(one, [one, two], store.original())
