"""After turns that failed at the gate, in a task and in a handler: both edges are as before."""

from __future__ import annotations

import pytest
from testinfra.host import Host

KINDS = [
    "release",
    "files",
    "routes4",
    "routes6",
    "bindings",
    "dns_program",
    "units",
    "failed",
    "checkpoints",
]


@pytest.mark.parametrize("kind", KINDS)
def test_as_before(edge: Host, kind: str) -> None:
    done = edge.run("diff -u /root/before-failures/%s /root/after-failures/%s", kind, kind)
    assert done.rc == 0, done.stdout


def test_what_was_compared_is_not_empty(edge: Host) -> None:
    for kind in ("release", "files", "routes4", "routes6", "bindings", "dns_program", "units"):
        assert edge.file(f"/root/before-failures/{kind}").size > 0


def test_turns_on_the_first_edge_really_began(hosts: dict[str, Host]) -> None:
    releases = {name: len(hosts[name].file("/opt/unmoor/releases").listdir()) for name in ("edge1", "edge2")}
    assert releases["edge1"] > releases["edge2"]


def test_no_unit_has_failed(edge: Host) -> None:
    assert edge.check_output("cat /root/after-failures/failed") == ""
