"""Where the collection is, which program belongs to it, and where the controller keeps what it builds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ansible.errors import AnsibleError

try:
    import unmoor
except ModuleNotFoundError as error:
    raise AnsibleError(
        f"{sys.executable}: the Python package unmoor is missing ({error})\n"
        "    fix: install it there, in the version of the collection unmoor.unmoor"
    ) from error

#: The root of the collection.
ROOT = Path(__file__).resolve().parents[2]
#: The program's source, when the collection is a checkout.
SOURCE = ROOT / "src" / "unmoor"


def version() -> str:
    """Return the version of the collection, which is also that of the program that belongs to it."""
    if SOURCE.is_dir():
        return unmoor.__version__
    found: str = json.loads((ROOT / "MANIFEST.json").read_text())["collection_info"]["version"]
    return found


def package() -> Path:
    """Return the directory of the program that the roles install: the checkout's, or the controller's own."""
    return SOURCE if SOURCE.is_dir() else Path(unmoor.__file__).parent


def cache() -> Path:
    """Return the directory of what the controller builds; it may not exist.

    Beside the source in a checkout, so that checkouts do not share it; else the user's own
    (XDG Base Directory Specification).
    """
    if SOURCE.is_dir():
        return ROOT / ".cache"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "unmoor"
