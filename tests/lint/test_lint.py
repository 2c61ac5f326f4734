"""Every linter is a test; its output is in the failure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.checkout import ROOT

BIN = Path(sys.executable).parent
#: For tests, mypy checks that names exist, and is less strict about types than for the program.
LOOSE = [
    "--allow-untyped-defs",
    "--allow-untyped-calls",
    "--allow-incomplete-defs",
    "--allow-subclassing-any",
    "--implicit-reexport",
    "--no-warn-return-any",
    "--no-warn-unused-ignores",
    *(
        f"--disable-error-code={code}"
        for code in ("arg-type", "index", "misc", "union-attr", "var-annotated")
    ),
]
PYTHON = ["src", "plugins", "tests", "tools", "bench", "molecule"]


def tracked(*patterns: str) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split() if (ROOT / name).exists()]


def shell_scripts() -> list[str]:
    return [name for name in tracked() if (ROOT / name).read_bytes()[:64].startswith(b"#!/usr/bin/env bash")]


COMMANDS: dict[str, Callable[[], list[str | Path]]] = {
    "ruff check": lambda: [BIN / "ruff", "check", *PYTHON],
    "ruff format": lambda: [BIN / "ruff", "format", "--check", *PYTHON],
    "mypy --strict": lambda: [BIN / "mypy"],
    "mypy of tests": lambda: [BIN / "mypy", *LOOSE, "tests"],
    "mypy of scenarios": lambda: [BIN / "mypy", *LOOSE, "molecule"],
    # Separately, since names of their files clash.
    "mypy of bench/dns": lambda: [BIN / "mypy", "bench/dns", "bench/figures.py"],
    "mypy of bench/sockets": lambda: [BIN / "mypy", "bench/sockets"],
    "yamllint": lambda: [BIN / "yamllint", "--strict", "--config-file", ".config/yamllint.yml", "."],
    "ansible-lint": lambda: [BIN / "ansible-lint", "--offline", "--strict", "-c", ".config/ansible-lint.yml"],
    "shellcheck": lambda: ["shellcheck", *shell_scripts()],
    "clang-format": lambda: ["clang-format", "--dry-run", "--Werror", *tracked("*.c", "*.h")],
    "READMEs of the roles": lambda: [sys.executable, "tools/role_readmes.py", "--check"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_lint(name: str) -> None:
    done = subprocess.run(
        [str(word) for word in COMMANDS[name]()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"


ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_agree(role: str) -> None:
    spec = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())
    options = spec["argument_specs"].get("main", {}).get("options", {})
    path = ROOT / "roles" / role / "defaults/main.yml"
    defaults = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
    assert {
        name: option["default"] for name, option in options.items() if not option.get("required")
    } == defaults


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_their_scope(role: str) -> None:
    for folder, prefix in (("defaults", f"{role}_"), ("vars", f"_{role}_")):
        path = ROOT / "roles" / role / folder / "main.yml"
        names = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
        assert all(name.startswith(prefix) for name in names), names


def test_lock_files_name_versions_and_hashes_but_no_index() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        if path.name.startswith("debian"):
            continue
        text = path.read_text()
        assert "index-url" not in text
        assert "find-links" not in text
        assert "--hash=sha256:" in text


def test_no_path_of_a_machine_is_committed() -> None:
    words = ("/wo" + "rk/", "/fa" + "rm/")
    found = [name for name in tracked() for word in words if word.encode() in (ROOT / name).read_bytes()]
    assert not found
