"""Problems of a document: each wrong value is reported once, at its own key."""

from __future__ import annotations

from typing import Any

import pytest

from unmoor.errors import InvalidInputError
from unmoor.model.common import validate
from unmoor.model.edge import ServiceBody


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ({"ports": []}, ["ports"]),
        # pydantic also reports a list as empty if all entries are wrong; only the entries are reported here.
        ({"ports": ["x", "y"]}, ["ports.0", "ports.1"]),
        ({"ports": [80, "y"]}, ["ports.1"]),
        # Wrong entries of one list do not hide that another one is empty.
        ({"ports": ["x"], "protocols": []}, ["ports.0", "protocols"]),
        ({"ports": [], "protocols": ["x"]}, ["ports", "protocols.0"]),
    ],
)
def test_an_empty_list_is_reported_unless_its_entries_are(data: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        validate(ServiceBody, data, "edge.json")
    assert sorted(problem.key for problem in caught.value.problems) == keys
    empty = [str(problem) for problem in caught.value.problems if problem.key in ("ports", "protocols")]
    assert all("is empty\n    fix: add at least one entry" in text for text in empty)
