"""After an interrupted change was run again, both edges answer only from the new pool."""

from __future__ import annotations

import hashlib
import json

import pytest
from testinfra.host import Host

from conftest import SERVERS, answered_only_from


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("qtype", "pool"), [("A", "198.18.5.0/24"), ("AAAA", "2001:db8:105::/64")])
def test_only_the_new_pool_is_answered(client: Host, server: str, qtype: str, pool: str) -> None:
    answered_only_from(client, server, qtype, pool)


def test_every_worker_answers_from_the_document_on_disk(edge: Host) -> None:
    on_disk = hashlib.sha256(edge.file("/etc/unmoor/dns.json").content).hexdigest()
    status = json.loads(edge.check_output("unmoor dns status --json"))
    assert {worker["document"] for worker in status["workers"]} == {on_disk}
