"""Edges that become unreachable in their turn: the shipped task files, with ssh to a closed port."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.checkout import ROOT

#: Three edges on this machine; the connection to the one in `lost` is ssh to port 9, which is closed.
#: So does vantage `far`; `near` has a probe in $PATH.
INVENTORY = """
edges:
  hosts:
    edge1:
    edge2:
    edge3:
  vars:
    ansible_connection: local
    ansible_python_interpreter: PYTHON
vantage:
  hosts:
    near: {ansible_connection: local, ansible_python_interpreter: PYTHON}
    far:
all:
  vars:
    ansible_host: 127.0.0.1
    ansible_port: 9
    ansible_ssh_args: -F /dev/null -o BatchMode=yes -o ConnectTimeout=5
"""

#: The frame of site.yml, with a role of two tasks: each edge leaves a file when it was touched.
PLAYBOOK = """
- name: Edges
  hosts: edges
  gather_facts: false
  serial: "{{ batch | default(1) }}"
  any_errors_fatal: true
  vars_files: [ROOT/playbooks/vars/gate.yml]
  vars:
    __edges_of_run: "{{ ansible_play_hosts_all }}"
    __proved: {}
  tasks:
    - name: Check earlier turns
      ansible.builtin.include_tasks: ROOT/playbooks/tasks/stop_if_unfinished.yml
    - name: Vantage
      ansible.builtin.include_tasks: ROOT/playbooks/tasks/vantage.yml
    - name: The edge's turn
      block:
        - name: Begin
          ansible.builtin.command: {argv: [touch, "DIRECTORY/{{ inventory_hostname }}"]}
          register: __begun
        - name: A task of a role
          ansible.builtin.ping:
          vars:
            ansible_connection: "{{ (inventory_hostname == lost | default('')) | ternary('ssh', 'local') }}"
        - name: Prove
          ansible.builtin.command: {argv: [unmoor, probe, --help]}
          loop: [{title: web}]
          delegate_to: "{{ proved_by | default('near') }}"
          register: __gate
          failed_when: false
          ignore_unreachable: true
          any_errors_fatal: false
        - name: Check that every probe succeeded
          ansible.builtin.assert:
            that: __gate.results | selectattr('unreachable', 'defined') | length == 0
            fail_msg: "{{ __gate.results | unmoor.unmoor.probe_failures | join }}"
        - name: End
          ansible.builtin.ping:
          register: __ended
      rescue:
        - name: Fail the run
          ansible.builtin.fail:
            msg: "{{ inventory_hostname }} was put back: {{ ansible_failed_result.msg | default('another') }}"
          register: __reported
- name: Check the last turn
  hosts: localhost
  gather_facts: false
  vars:
    __edges_of_run: "{{ groups['edges'] }}"
  tasks:
    - name: Check earlier turns
      ansible.builtin.include_tasks: ROOT/playbooks/tasks/stop_if_unfinished.yml
"""


class Result:
    """Ansible's output without line breaks, its exit status, and the edges that were touched."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        inventory, playbook = directory / "hosts.yml", directory / "playbook.yml"
        inventory.write_text(INVENTORY.replace("PYTHON", sys.executable))
        playbook.write_text(PLAYBOOK.replace("ROOT", str(ROOT)).replace("DIRECTORY", str(directory)))
        binaries = Path(sys.executable).parent
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{binaries}:{os.environ['PATH']}",
        }
        command = [str(binaries / "ansible-playbook"), "-i", str(inventory), str(playbook)]
        for argument in ("unmoor_gate_vantage=near", *arguments):
            command += ["-e", argument]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        self.said = " ".join((done.stdout + done.stderr).split())
        self.status = done.returncode
        self.touched = sorted(path.name for path in directory.glob("edge*"))


def test_all_go_when_all_answer(tmp_path: Path) -> None:
    result = Result(tmp_path)
    assert (result.status, result.touched) == (0, ["edge1", "edge2", "edge3"]), result.said


def test_an_edge_that_is_lost_in_its_turn_stops_the_run(tmp_path: Path) -> None:
    result = Result(tmp_path, "lost=edge1")
    assert result.touched == ["edge1"]
    assert result.status != 0
    assert "edge1: was lost in its turn: it is unreachable" in result.said
    assert "have the new state: none." in result.said
    assert "not touched: edge2, edge3." in result.said
    assert "fix: withdraw the routes to edge1" in result.said


def test_so_does_one_of_a_larger_batch_and_its_neighbour_is_put_back(tmp_path: Path) -> None:
    result = Result(tmp_path, "lost=edge1", "batch=2")
    assert result.touched == ["edge1", "edge2"]
    assert "edge2 was put back" in result.said
    assert "edge1: was lost in its turn" in result.said
    assert "edge2: failed, as reported above." in result.said
    assert "not touched: edge3." in result.said


def test_one_that_is_lost_in_the_last_turn_is_reported(tmp_path: Path) -> None:
    result = Result(tmp_path, "lost=edge3")
    assert result.status != 0
    assert "edge3: was lost in its turn" in result.said
    assert "have the new state: edge1, edge2." in result.said


def test_a_vantage_that_does_not_answer_keeps_all_edges_from_being_touched(tmp_path: Path) -> None:
    result = Result(tmp_path, "unmoor_gate_vantage=far")
    assert result.touched == []
    assert result.status != 0
    assert "far, the vantage of edge1, is unreachable" in result.said
    assert "Nothing was changed on edge1." in result.said


def test_a_vantage_that_is_not_in_the_inventory_is_named_with_its_variable(tmp_path: Path) -> None:
    result = Result(tmp_path, "unmoor_gate_vantage=naer")
    assert result.touched == []
    assert "unmoor_gate_vantage = naer: is not a host of the inventory" in result.said
    assert "such as near or far" in result.said


@pytest.mark.parametrize("batch", ["1", "3"])
def test_a_vantage_that_is_lost_at_the_proof_puts_the_edge_back(tmp_path: Path, batch: str) -> None:
    result = Result(tmp_path, "proved_by=far", f"batch={batch}")
    assert len(result.touched) == int(batch)
    assert "edge1 was put back: web: the vantage host is unreachable" in result.said


def test_a_teardown_that_cannot_reach_an_edge_leaves_the_vantage_hosts(tmp_path: Path) -> None:
    """The shipped playbook, in check mode: vantage `near` is this machine."""
    inventory, ansible = tmp_path / "hosts.yml", str(Path(sys.executable).with_name("ansible-playbook"))
    local = f"{{ansible_connection: local, ansible_python_interpreter: {sys.executable}}}"
    inventory.write_text(
        "edges: {children: {pop_lab: {hosts: {edge1: {ansible_host: 127.0.0.1, ansible_port: 9}}}}}\n"
        f"vantage: {{hosts: {{near: {local}}}}}\n"
        "all: {vars: {ansible_ssh_args: -F /dev/null -o BatchMode=yes}}\n"
    )
    playbook = str(ROOT / "playbooks/teardown.yml")
    done = subprocess.run(
        [ansible, "-i", str(inventory), "--check", playbook, "-e", "confirm=lab"],
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "edge1: not removed, so the vantage hosts stay" in done.stdout + done.stderr
    assert "Remove the authority" not in done.stdout
