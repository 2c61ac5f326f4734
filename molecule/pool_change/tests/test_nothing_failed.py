"""The watch through all changes: no connection or query failed, and the changes took effect."""

from __future__ import annotations

import json

from testinfra.host import Host

from conftest import eventually


def test_nothing_failed_through_all_changes(client: Host) -> None:
    client.check_output("systemctl stop watch")
    assert eventually(lambda: client.file("/run/watch.json").size > 0)
    result = json.loads(client.file("/run/watch.json").content_string)
    assert (result["connected"], result["lost"]) == (result["connections"], 0), result
    # For a while DNS deliberately answers from a prefix that is not among the watch's arguments.
    assert result["failed"] == result["causes"].get("outside of the prefixes", 0), result
    assert all(each["detail"].startswith("198.18.16.") for each in result["failures"]), result
    assert result["connections"] > 1000
    assert result["queries"] > 1000
