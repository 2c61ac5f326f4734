"""How hypothesis searches: the same examples on every run, or new ones with HYPOTHESIS_PROFILE=explore.

A run that judges a change tries what the run before it tried, whatever the machine is busy with; looking for
examples that nobody thought of is a run of its own, and what it finds becomes a case.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A failed assertion of a shared helper shows its values too. Before any test module imports one.
pytest.register_assert_rewrite("support")

settings.register_profile("repeat", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", max_examples=5000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
