"""Whether a handler still has something to tell a unit, by what the task that starts it reported."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from support.checkout import ROOT

PLUGIN = ROOT / "plugins/filter/rollout.py"


@pytest.mark.parametrize(
    ("started", "ran"),
    [
        ({"status": {"ActiveState": "inactive"}}, False),
        ({"status": {"ActiveState": "failed"}}, False),
        ({"status": {"ActiveState": "active"}}, True),
        ({"status": {"ActiveState": "reloading"}}, True),
        ({"skipped": True}, True),  # nothing is known, so it must be told
    ],
)
def test_a_unit_that_was_just_started_need_not_be_told_anew(started: dict[str, Any], ran: bool) -> None:
    spec = importlib.util.spec_from_file_location("unmoor_filters", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FilterModule().filters()["was_running"](started) is ran
