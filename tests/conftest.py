"""Profiles of hypothesis: the same examples on every run, or new ones with HYPOTHESIS_PROFILE=explore.

A run that judges a change tries the same examples as the run before, on a busy machine too. The search for
new examples is a separate run, and what it finds becomes a test case.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# So that a failed assertion of a shared helper shows its values. This precedes the first import of one.
pytest.register_assert_rewrite("support")

settings.register_profile("repeat", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", max_examples=5000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
