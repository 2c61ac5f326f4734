"""An edge that is powered off in its turn: the run stops, and the next edge is not touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from testinfra.host import Host

from conftest import eventually, lab_host, reach_edge

ROOT = Path(__file__).resolve().parents[3]

#: Times and names of everything that a turn could change.
FILES = (
    "find /etc/unmoor /etc/nginx /etc/systemd/system /opt/unmoor /var/lib/unmoor -xdev ! -type d"
    " -printf '%T@ %i %p\\n' | sort"
)


def site(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The operator's command."""
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    command = ["ansible-playbook", "-i", "inventories/lab", "playbooks/site.yml", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_next_edge_is_not_touched_and_the_lost_one_comes_back(
    hosts: dict[str, Host], router: Host
) -> None:
    before = hosts["edge2"].check_output(FILES)
    hosts["edge1"].check_output(
        "systemd-run --unit=power-cut sh -c"
        " 'until [ -d /var/lib/unmoor/checkpoint/turn ]; do sleep 0.05; done; systemctl poweroff -ff'"
    )
    try:
        done = site("--extra-vars", '{"listener_names": ["*.unmoor.test", "unmoor.test", "more.test"]}')
        said = " ".join(done.stdout.split())
        assert done.returncode != 0
        assert "edge1: was lost in its turn: it is unreachable, and its state is unknown." in said
        assert "Edges that were not touched: edge2." in said
        assert hosts["edge2"].check_output(FILES) == before
    finally:
        subprocess.run(["unmoor", "lab", "up"], check=True, cwd=ROOT)

    def booted() -> bool:
        return lab_host("edge1").run("systemctl is-system-running").stdout.strip() == "running"

    assert eventually(booted, 90)
    assert site().returncode == 0
    assert hosts["edge1"].run("test -d /var/lib/unmoor/checkpoint/turn").rc == 1
    for edge in ("edge1", "edge2"):
        assert reach_edge(router, edge)["failed"] == 0
