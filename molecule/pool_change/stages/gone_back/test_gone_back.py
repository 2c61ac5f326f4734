"""After the rollback of a good change, both edges are as before it."""

from __future__ import annotations

import pytest
from testinfra.host import Host

KINDS = ["release", "files", "routes4", "routes6", "bindings", "dns_program", "units", "failed"]


@pytest.mark.parametrize("kind", KINDS)
def test_as_before(edge: Host, kind: str) -> None:
    done = edge.run("diff -u /root/before-change/%s /root/after-change/%s", kind, kind)
    assert done.rc == 0, done.stdout


def test_the_step_back_is_used_up(edge: Host) -> None:
    assert edge.file("/var/lib/unmoor/checkpoint").listdir() == []
