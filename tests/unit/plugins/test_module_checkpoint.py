"""The module that keeps checkpoints and restores them, in a temporary directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.plugins import run_module


class Host:
    """A host's files below `root`; file `told` lists the parts whose command ran, in order."""

    def __init__(self, root: Path) -> None:
        self.root, self.told = root, root / "told"
        (root / "etc").mkdir()
        (root / "releases/1").mkdir(parents=True)
        (root / "etc/a.json").write_text("a1")
        (root / "etc/b.json").write_text("b1")
        (root / "etc/b.json").chmod(0o640)
        (root / "current").symlink_to("releases/1")

    def act(self, state: str, command: str = "", within: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
        tell = command or f"echo %s >> {self.told}"
        parts = [
            {"paths": [f"{self.root}/etc/a*"], "command": tell.replace("%s", "a")},
            {"paths": [f"{self.root}/etc/b*"], "command": tell.replace("%s", "b")},
            {"paths": [f"{self.root}/current"], "command": tell.replace("%s", "current")},
        ]
        arguments = {
            "state": state,
            "parts": parts,
            "documents": {"a": f"{self.root}/etc/a.json"},
            "directory": f"{self.root}/kept",
            "_ansible_remote_tmp": str(self.root),
            **more,
        }
        return run_module("checkpoint", arguments, within)

    def change(self) -> None:
        (self.root / "etc/b.json").write_text("b2")
        (self.root / "etc/later.json").write_text("not kept")
        (self.root / "etc/a2.json").write_text("came later")
        (self.root / "releases/2").mkdir(exist_ok=True)
        (self.root / "current").unlink()
        (self.root / "current").symlink_to("releases/2")

    def state(self) -> dict[str, str]:
        found = {path.name: path.read_text() for path in sorted((self.root / "etc").iterdir())}
        return found | {"current": str((self.root / "current").readlink())}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_changed_files_are_restored_and_only_their_commands_run(host: Host) -> None:
    assert host.act("begun")["fresh"] is False
    host.change()
    result = host.act("restored")
    assert {Path(path).name for path in result["paths"]} == {"b.json", "a2.json", "current"}
    expected = {"a.json": "a1", "b.json": "b1", "later.json": "not kept", "current": "releases/1"}
    assert host.state() == expected
    assert (host.root / "etc/b.json").stat().st_mode & 0o777 == 0o640
    assert host.told.read_text().split() == ["a", "b", "current"]
    again = host.act("restored")
    assert (again["changed"], again["paths"]) == (False, [])
    assert host.told.read_text().split() == ["a", "b", "current"]


def test_a_turn_that_was_cut_short_keeps_the_older_state(host: Host) -> None:
    assert host.act("begun")["interrupted"] is False
    host.change()
    assert host.act("begun")["interrupted"] is True
    host.act("restored")
    assert host.state()["b.json"] == "b1"


def test_a_fresh_host_stays_as_it_is(host: Host) -> None:
    (host.root / "etc/a.json").unlink()
    assert host.act("begun")["fresh"] is True
    host.change()
    assert host.act("restored")["fresh"] is True
    assert host.state()["b.json"] == "b2"


def test_one_step_back_is_kept_over_turns_that_change_nothing(host: Host) -> None:
    host.act("begun", run="one")
    host.change()
    host.act("kept")
    host.act("begun", run="two")
    host.act("kept")
    assert host.act("read")["before"] == {"run": "one", "documents": {"a": "a1"}}
    host.act("begun", run="three")
    host.act("restored", name="before")
    host.act("back")
    assert host.state()["b.json"] == "b1"
    assert host.act("read")["before"] == {}


def test_all_commands_run_and_every_failure_is_reported(host: Host) -> None:
    host.act("begun")
    host.change()
    result = host.act("restored", command="echo %s is no good; false")
    assert result["failed"] is True
    assert [name for name in ("a", "b", "current") if f"{name} is no good" in result["msg"]] == [
        "a",
        "b",
        "current",
    ]
    assert host.state()["b.json"] == "b1"


def test_a_missing_release_is_reported_before_anything_changes(host: Host) -> None:
    host.act("begun")
    host.change()
    (host.root / "releases/1").rmdir()
    assert "releases/1, which no longer exists" in host.act("restored")["msg"]
    assert host.state()["b.json"] == "b2"


def test_check_mode_keeps_nothing(host: Host) -> None:
    host.act("begun", _ansible_check_mode=True)
    assert not (host.root / "kept").exists()


def test_a_full_disk_is_the_checkpoint_s_and_not_that_of_what_is_kept(host: Host) -> None:
    (host.root / "etc/b.json").write_text("b" * 100_000)
    (host.root / "kept").mkdir()
    mount = f'mount -t tmpfs -o size=64k none {host.root}/kept; exec "$@"'
    result = host.act("begun", within=("unshare", "--mount", "sh", "-c", mount, "sh"))
    assert result["msg"] == (f"{host.root}/kept/new/files{host.root}/etc/b.json: No space left on device")
