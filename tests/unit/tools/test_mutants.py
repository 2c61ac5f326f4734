"""Mutation tests: which modules and tests there are, and what is known to change nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from support.checkout import ROOT


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_pure_module_has_tests_that_mirror_it(mutants: ModuleType) -> None:
    found = {path: mutants.mirror(path) for path in mutants.modules(mutants.PURE)}
    assert len(found) > 50
    for path, tests in found.items():
        assert tests, path
        assert all((ROOT / each).is_file() for each in tests)
        own = ROOT / "tests/unit" / path.with_name(f"test_{path.stem}.py")
        assert not own.exists() or tests[0] == own.relative_to(ROOT)


def test_equivalent_mutants_are_of_lines_that_are_there(mutants: ModuleType) -> None:
    known = mutants.equivalents()
    assert known
    for (path, before, after), reason in known.items():
        lines = (mutants.SOURCE / path).read_text().splitlines()
        assert before in map(str.strip, lines), f"{path}: {before}"
        assert before != after
        assert reason


def test_a_module_that_is_none_is_an_error_with_its_fix() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/mutants.py", "dns/polcy"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "MODULES = dns/polcy: is no module below src/unmoor\nfix:" in done.stderr
    assert "Traceback" not in done.stderr
