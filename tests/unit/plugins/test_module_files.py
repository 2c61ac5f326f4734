"""The module that installs several files together, run by Ansible in a temporary directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.checkout import ROOT


def run(*files: dict[str, Any], check: bool = False, within: tuple[str | Path, ...] = ()) -> dict[str, Any]:
    """Run the module and return its result; `within` is a command that runs Ansible, such as unshare."""
    environment = os.environ | {
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
    }
    words = [*map(str, within), str(Path(sys.executable).with_name("ansible"))]
    words += ["localhost", "-m", "unmoor.unmoor.files", "--diff"]
    words += ["-a", json.dumps({"files": files})] + (["--check"] if check else [])
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    start = done.stdout.index("{\n")
    result: dict[str, Any] = json.loads(done.stdout[start : done.stdout.rindex("}") + 1])
    return result


def test_files_land_with_their_mode_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    files = (
        {"path": str(tmp_path / "new/deep/one"), "content": "1\n", "mode": "0600"},
        {"path": str(tmp_path / "two"), "content": "2\n"},
    )
    assert run(*files)["changed"] is True
    assert (tmp_path / "new/deep/one").read_text() == "1\n"
    assert (tmp_path / "new/deep/one").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "two").stat().st_mode & 0o777 == 0o644
    assert run(*files)["changed"] is False
    (tmp_path / "two").chmod(0o600)
    again = run(*files)
    assert (again["changed"], again["paths"]) == (True, [str(tmp_path / "two")])


def test_check_mode_writes_nothing_and_returns_the_same(tmp_path: Path) -> None:
    file = {"path": str(tmp_path / "not/there/file"), "content": "x\n", "validate": "false %s"}
    result = run(file, check=True)
    assert result["changed"] is True
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [0, 1])
def test_one_file_that_is_refused_keeps_all_others_from_landing(tmp_path: Path, bad: int) -> None:
    (tmp_path / "a").write_text("before\n")
    files = [{"path": str(tmp_path / name), "content": "after\n", "validate": "true %s"} for name in "ab"]
    files[bad]["validate"] = "sh -c 'echo no good; grep -q never $1' x %s"
    result = run(*files)
    assert result["rc"] == 1
    assert "no good" in result["msg"]
    assert (tmp_path / "a").read_text() == "before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def on_small_disk(size: str, directory: Path, log: Path) -> tuple[str | Path, ...]:
    """A command that runs another with a file system of `size` at `directory`, and lists that in `log`."""
    script = f'mount -t tmpfs -o {size} none "$0"; "$@"; status=$?; ls -A "$0" > {log}; exit $status'
    return ("unshare", "--mount", "sh", "-c", script, directory)


def test_a_full_disk_names_the_file_and_the_file_system_and_leaves_nothing(tmp_path: Path) -> None:
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    files = (
        {"path": str(disk / "small"), "content": "1\n"},
        {"path": str(disk / "new/large.json"), "content": "secret" * 16_000, "mode": "0640"},
    )
    result = run(*files, within=on_small_disk("size=64k", disk, log))
    assert result["msg"].startswith(f"{disk}/new/large.json: cannot be written: No space left on device")
    assert "it has 96000 bytes" in result["msg"]
    assert f"the file system at {disk} has" in result["msg"]
    assert "fix: free space there" in result["msg"]
    assert log.read_text().split() == ["new"]


def test_a_disk_without_inodes_is_reported(tmp_path: Path) -> None:
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    files = [{"path": str(disk / name), "content": "1\n"} for name in "abc"]
    result = run(*files, within=on_small_disk("nr_inodes=3", disk, log))
    assert result["msg"].startswith(f"{disk}/c: cannot be written: No space left on device")
    assert "0 inodes free" in result["msg"]
    assert log.read_text() == ""


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    file = {"path": str(tmp_path / "file"), "content": "secret\n"}
    run({**file, "validate": "sh -c 'kill -9 $PPID' %s"})
    (left,) = names_in(tmp_path)
    assert left.startswith(".unmoor-")
    assert run(file)["changed"] is True
    assert names_in(tmp_path) == ["file"]
    (tmp_path / left).write_text("secret\n")
    assert run(file)["changed"] is False
    assert names_in(tmp_path) == ["file"]


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    assert run({"path": str(tmp_path), "content": ""})["msg"] == f"{tmp_path}: Is a directory"
    (tmp_path / "file").write_text("")
    result = run({"path": str(tmp_path / "file/below"), "content": ""})
    assert result["msg"] == f"{tmp_path}/file/below: Not a directory"


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = run({"path": str(tmp_path / "file"), "content": "", "group": "nobody-has-it"})
    assert result["msg"].startswith(f"{tmp_path}/file: no such group: 'nobody-has-it'")
    assert names_in(tmp_path) == []
