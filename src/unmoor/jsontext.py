"""Reading JSON that others wrote: whatever is wrong with it is one exception."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """Read a JSON text. Raises ValueError, also for one that is nested deeper than Python's stack allows."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: Any) -> str:
    """Write a value for an error message; other objects as their text, what is nested too deeply as dots."""
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return "..."
