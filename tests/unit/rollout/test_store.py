"""The store of generations: state, blobs, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmoor.rollout import manifest
from unmoor.rollout.manifest import Absent, Entry, File, Link, Manifest
from unmoor.rollout.store import KEPT, Original, Pending, Record, Returned, State, Store, StoreError


def generation(number: int) -> tuple[Manifest, dict[str, bytes]]:
    part = {"name": "a", "files": [{"path": "/etc/x", "content": f"{number}"}]}
    return manifest.parse(json.dumps({"format": 1, "parts": [part]}))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "generations")


def test_a_state_survives_its_file(store: Store) -> None:
    assert store.state() == State()
    pending = Pending("t", "p", "boot", 12.5, back=True, touched=("a", "b"), holder="ann", since=1, pid=2)
    state = State("c", pending, (Record("r", 3, "bob"),), Returned("s", "t", 4, "why", ("x",)), 7)
    store.save(state)
    assert store.state() == state
    assert (store.home / "pending").exists()
    store.save(State("c"))
    assert not (store.home / "pending").exists()


def test_the_state_of_a_newer_release_can_be_read(store: Store) -> None:
    store.save(State("c", Pending("t", "p", "boot", 1)))
    path = store.home / "state.json"
    document = json.loads(path.read_text())
    document["new"] = document["pending"]["new"] = 1
    path.write_text(json.dumps(document))
    assert store.state().pending == Pending("t", "p", "boot", 1)


def test_what_the_host_had_survives_its_file(store: Store) -> None:
    entries: dict[str, Entry] = {
        "/a": File("/a", "00", 0o4755, "daemon", "adm"), "/b": Link("/b", "c"), "/c": Absent("/c"),
    }  # fmt: skip
    original = Original(entries, {"x.service": (True, False, True)}, {"net.x": "1 2"}, ("/etc/new",))
    store.save_original(original)
    assert store.original() == original


def test_collect_keeps_what_can_be_restored(store: Store) -> None:
    stored = []
    for number in range(KEPT + 4):
        each, blobs = generation(number)
        store.add(each, blobs)
        stored.append(each)
    before = store.add_blob(b"of the host")
    store.save_original(Original({"/etc/x": File("/etc/x", before)}))
    history = tuple(Record(each.id, 0) for each in stored[1:-1])
    kept = store.collect(State(stored[0].id, Pending(stored[-1].id, stored[0].id, "b", 1), history))
    assert [each.id for each in kept.history] == [each.id for each in stored[1 : KEPT + 1]]
    for each in [stored[0], stored[-1], *stored[1 : KEPT + 1]]:
        assert store.generation(each.id) == each
        assert all(map(store.has_blob, each.digests))
    assert store.has_blob(before)
    gone = stored[KEPT + 1]
    assert not any(map(store.has_blob, gone.digests))
    with pytest.raises(StoreError, match="fix: choose one"):
        store.generation(gone.id)


def test_prefixes_of_ids(store: Store) -> None:
    each, blobs = generation(1)
    store.add(each, blobs)
    assert store.resolve(each.id[:8]) == each.id
    assert store.resolve("zero") == ""
    for wrong in ("", "xyz"):
        with pytest.raises(StoreError, match="names no generation"):
            store.resolve(wrong)


def test_damage_is_found(store: Store) -> None:
    each, blobs = generation(1)
    with pytest.raises(StoreError, match="its content is missing"):
        store.add(each, {})
    store.add(each, blobs)
    (digest,) = each.digests
    (store.home / "blobs" / digest).write_bytes(b"2")
    with pytest.raises(StoreError, match="is damaged"):
        store.blob(digest)
    path = store.home / "manifests" / f"{each.id}.json"
    path.write_text(path.read_text().replace("/etc/x", "/etc/y"))
    with pytest.raises(StoreError, match="is damaged"):
        store.generation(each.id)
    (store.home / "state.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        store.state()


def test_only_root_reads_the_store(store: Store) -> None:
    store.add_blob(b"secret")
    assert store.home.stat().st_mode & 0o077 == 0
    (blob,) = (store.home / "blobs").iterdir()
    assert blob.stat().st_mode & 0o077 == 0
