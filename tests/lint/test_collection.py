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
LOOKUPS = sorted(path.stem for path in (ROOT / "plugins/lookup").glob("*.py"))
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))


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
    specs = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    if "main" in specs:
        assert meta["galaxy_info"]["description"] == specs["main"]["short_description"]
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
    known = {*ROLES, *MODULES, *FILTERS, *LOOKUPS, *PLAYBOOKS}
    unknown = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in yaml_files()
        for found in re.finditer(r"\bunmoor\.unmoor\.(\w+)", path.read_text(encoding="utf-8"))
        if found[1] not in known
    ]
    assert not unknown


def role_files(role: str) -> list[Path]:
    return sorted(path for path in (ROOT / "roles" / role).rglob("*") if path.suffix in (".yml", ".j2"))


@pytest.mark.parametrize("role", ROLES)
def test_no_role_reads_what_another_registers_or_derives(role: str) -> None:
    """`__ROLE_x` is registered by a role, `_ROLE_x` derived by it; other roles share the variables ROLE_x."""
    own = re.compile(rf"__?{role.lstrip('_')}_")
    foreign = re.compile(
        rf"(?<![\w.])(?:__\w+|_(?:{'|'.join(each for each in ROLES if each != '_common')})_\w+)"
    )
    wrong = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in role_files(role)
        for found in foreign.finditer(path.read_text(encoding="utf-8"))
        if not own.match(found[0])
    ]
    assert not wrong


def test_no_playbook_reads_what_a_role_registers_or_derives() -> None:
    internal = re.compile(rf"(?<![\w.])__?(?:{'|'.join(role.lstrip('_') for role in ROLES)})_\w+")
    wrong = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in sorted((ROOT / "playbooks").rglob("*.yml"))
        for found in internal.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not wrong


def test_nothing_is_found_or_built_by_the_place_of_a_role_or_a_playbook() -> None:
    """An installed collection may be read-only, and the program's source is not beside it."""
    path = re.compile(r"\b(?:role_path|playbook_dir|inventory_dir)\b.*")
    wrong = [
        f"{file.relative_to(ROOT)}: {found[0]}"
        for folder in ("playbooks", "roles")
        for file in sorted((ROOT / folder).rglob("*.*"))
        if file.suffix in (".yml", ".j2")
        for found in path.finditer(file.read_text(encoding="utf-8"))
    ]
    assert not wrong
