"""The role's part in a registry: brought to the edge once, the old one removed afterwards, nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    dns_randomizer_document: '{"registry": {"path": "/var/lib/unmoor/registry/{{ name }}.registry"}}'
    dns_randomizer_registry: "{{ file }}"
  tasks:
    - name: Bring it
      ansible.builtin.include_role:
        name: unmoor.unmoor.dns_randomizer
        tasks_from: registry.yml
    - name: Stand for the document that changes with it
      ansible.builtin.command: "true"
      changed_when: name != in_force
      notify: Clean up registries
"""


def roll_out(directory: Path, *runs: dict[str, str]) -> list[tuple[int, list[str]]]:
    """Run the play repeatedly on one fresh /var/lib; returns the number of changes, and the files there."""
    (directory / "play.yml").write_text(PLAY)
    script = ["set -e", "mount -t tmpfs none /var/lib", "mkdir /var/lib/unmoor"]
    for run in runs:
        check = ["--check", "--diff"] if run.pop("check", "") else []
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        words = [playbook, "-i", "localhost,", "play.yml", *check, "-e", f"'{json.dumps(run)}'"]
        script += [" ".join(words), "echo lies: $(ls /var/lib/unmoor/registry 2>/dev/null)"]
    environment = os.environ | {
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_LOCAL_TEMP": str(directory / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(directory / "tmp"),
        "ANSIBLE_NOCOLOR": "1",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", "\n".join(script)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"changed=(\d+).*?lies: ?([^\n]*)", done.stdout, re.DOTALL)
    return [(int(changed), lies.split()) for changed, lies in found]


def test_a_registry_is_brought_once_and_the_old_one_goes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    one = {"name": "one", "file": str(tmp_path / "one")}
    two = {"name": "two", "file": str(tmp_path / "two")}
    found = roll_out(
        tmp_path,
        {**one, "in_force": "", "check": "yes"},
        {**one, "in_force": ""},
        {**one, "in_force": "one"},
        {**two, "in_force": "one"},
        {**two, "in_force": "two"},
    )
    changed, lies = zip(*found, strict=True)
    assert lies == ([], ["one.registry"], ["one.registry"], ["two.registry"], ["two.registry"])
    assert changed[0] > 0
    assert changed[2] == changed[4] == 0


if os.geteuid():
    pytestmark = pytest.mark.skip(reason="mounts in a namespace of its own need root")
