"""After a change that could not be proved, both edges have the state before it."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from conftest import SERVERS, answered_only_from


@pytest.mark.parametrize("server", SERVERS)
def test_the_pool_from_before_is_answered(client: Host, server: str) -> None:
    answered_only_from(client, server, "A", "198.18.0.0/20")
    answers = client.check_output(
        "for i in $(seq 30); do dig +short +tries=1 @%s site0001.unmoor.test A; done", server
    ).split()
    assert any(not answer.startswith("198.18.3.") for answer in answers)


def test_the_document_is_the_one_from_before(edge: Host) -> None:
    pools = json.loads(edge.file("/etc/unmoor/dns.json").content_string)["pools"]
    assert pools["free"]["ipv4"] == ["198.18.0.0/20"]
