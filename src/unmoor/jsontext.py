"""JSON from untrusted sources: every defect raises ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError, also when it is nested too deeply for Python's stack."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: Any) -> str:
    """Format a value for an error message as JSON: other objects by str(), deeply nested ones as '...'."""
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return "..."
