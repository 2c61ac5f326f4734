"""After the change to 198.18.0.77/32: that is the only answer, and every address is reachable."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from conftest import SERVERS, answered_only_from, every_address_reaches


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("qtype", "pool"), [("A", "198.18.0.77/32"), ("AAAA", "2001:db8:100::77/128")])
def test_only_the_new_pool_is_answered(client: Host, server: str, qtype: str, pool: str) -> None:
    answered_only_from(client, server, qtype, pool)


def test_every_address_still_reaches_the_service(client: Host) -> None:
    every_address_reaches(client)
