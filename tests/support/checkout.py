"""The checkout under test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(path: str) -> ModuleType:
    """Import a file that no package contains, such as a plugin or a bench, by its path in the checkout."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(
        "_".join(file.relative_to(ROOT).with_suffix("").parts), file
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses find their module there
    spec.loader.exec_module(module)
    return module
