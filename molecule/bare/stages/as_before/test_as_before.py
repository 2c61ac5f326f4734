"""After teardown the hosts are as they were before the rollout."""

from __future__ import annotations

import pytest
from testinfra.host import Host

KINDS = [
    "packages",
    "users",
    "groups",
    "routes4",
    "routes6",
    "mounts",
    "unit-files",
    "units",
    "sysctls",
    "listening",
    "files",
    "directories",
]


@pytest.mark.parametrize("name", ["edge1", "edge2", "client", "router"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_before(hosts: dict[str, Host], name: str, kind: str) -> None:
    done = hosts[name].run("diff -u /root/before/%s /root/after/%s", kind, kind)
    assert done.rc == 0, done.stdout
    assert hosts[name].file(f"/root/before/{kind}").exists
