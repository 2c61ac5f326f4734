"""Whether a handler still has to reload a unit, by the result of the task that starts it."""

from __future__ import annotations

from typing import Any

import pytest

from support.checkout import load

filters = load("plugins/filter/rollout.py").FilterModule().filters()


@pytest.mark.parametrize(
    ("started", "ran"),
    [
        ({"status": {"ActiveState": "inactive"}}, False),
        ({"status": {"ActiveState": "failed"}}, False),
        ({"status": {"ActiveState": "active"}}, True),
        ({"status": {"ActiveState": "reloading"}}, True),
        ({"skipped": True}, True),  # nothing is known, so it must be reloaded
    ],
)
def test_a_unit_that_was_just_started_need_not_be_reloaded(started: dict[str, Any], ran: bool) -> None:
    assert filters["was_running"](started) is ran
