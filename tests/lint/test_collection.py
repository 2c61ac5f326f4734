"""The collection's metadata agree with the program's, and its content uses fully qualified names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.checkout import ROOT

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
FILTERS = sorted(path.stem for path in (ROOT / "plugins/filter").glob("*.yml"))


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_collection_has_the_version_of_the_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert load("galaxy.yml")["version"] == project["version"]


def test_the_oldest_ansible_is_the_one_that_the_preflight_accepts() -> None:
    source = (ROOT / "plugins/action/preflight.py").read_text(encoding="utf-8")
    found = re.search(r"^MIN_ANSIBLE = \((\d+), (\d+)\)$", source, re.MULTILINE)
    assert found
    oldest = ".".join(found.groups())
    assert load("meta/runtime.yml")["requires_ansible"] == f">={oldest}.0"
    for role in ROLES:
        assert load(f"roles/{role}/meta/main.yml")["galaxy_info"]["min_ansible_version"] == oldest


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_described_once(role: str) -> None:
    meta = load(f"roles/{role}/meta/main.yml")
    spec = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"]
    assert meta["galaxy_info"]["description"] == spec["short_description"]
    assert meta["dependencies"] == []


def yaml_files() -> list[Path]:
    folders = ("playbooks", "roles", "molecule", "plugins")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.yml"))


def test_names_of_the_collection_are_fully_qualified() -> None:
    """ansible-lint checks names of actions; this checks those of roles and filters."""
    role = re.compile(rf"(?:_role:\n\s+name:|- role:) *[\"']?({'|'.join(ROLES)})\b")
    filters = re.compile(rf"\|\s*({'|'.join(FILTERS)})\b")
    short = [
        f"{path.relative_to(ROOT)}: {found[1]}"
        for path in yaml_files()
        for pattern in (role, filters)
        for found in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not short


def test_qualified_names_exist() -> None:
    known = {*ROLES, *MODULES, *FILTERS, *(path.stem for path in (ROOT / "playbooks").glob("*.yml"))}
    unknown = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in yaml_files()
        for found in re.finditer(r"\bunmoor\.unmoor\.(\w+)", path.read_text(encoding="utf-8"))
        if found[1] not in known
    ]
    assert not unknown
