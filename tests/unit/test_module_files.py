"""The module that puts several files in place: run by Ansible here, in a directory of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*files: dict[str, Any], check: bool = False) -> dict[str, Any]:
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LIBRARY": str(ROOT / "plugins/modules"),
    }
    words = [str(Path(sys.executable).with_name("ansible")), "localhost", "-m", "unmoor_files", "--diff"]
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


def test_check_mode_writes_nothing_and_tells_the_same(tmp_path: Path) -> None:
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
