"""The collection: the same from any directory, installed or linked, and small."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.checkout import ROOT

BIN = Path(sys.executable).parent


def run(directory: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Run a program of Ansible in `directory`, without a configuration; return its status and output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"HOME": str(directory), "ANSIBLE_NOCOLOR": "1", **variables}
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An empty directory."""
    (tmp_path / "foreign").mkdir()
    return tmp_path / "foreign"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection's archive, built from this checkout."""
    directory = tmp_path_factory.mktemp("archive")
    status, shown = run(directory, "ansible-galaxy", "collection", "build", str(ROOT))
    assert status == 0, shown
    return next(directory.glob("unmoor-unmoor-*.tar.gz"))


@pytest.mark.parametrize("playbook", ["unmoor.unmoor.preflight", str(ROOT / "playbooks/preflight.yml")])
@pytest.mark.parametrize("inventory", ["lab", "example"])
def test_the_preflight_works_from_any_directory(foreign: Path, playbook: str, inventory: str) -> None:
    hosts = str(ROOT / "inventories" / inventory / "hosts.yml")
    status, shown = run(foreign, "ansible-playbook", "-i", hosts, playbook)
    assert status == 0, shown
    assert "ok=1 " in shown
    assert "WARNING" not in shown


def test_data_beside_the_hosts_is_not_taken_for_hosts(foreign: Path) -> None:
    status, shown = run(
        foreign, "ansible-playbook", "-i", str(ROOT / "inventories/lab"), "unmoor.unmoor.preflight"
    )
    assert status != 0
    assert "zones/registry.csv: is no inventory, but its lines were read as hosts" in shown
    assert "fix: name the inventory's file of hosts instead of its directory" in shown


@pytest.mark.parametrize("kind", ["module", "filter", "role"])
def test_everything_is_documented(foreign: Path, kind: str) -> None:
    names = {
        "module": [path.stem for path in (ROOT / "plugins/modules").glob("*.py")],
        "filter": [path.stem for path in (ROOT / "plugins/filter").glob("*.yml")],
        "role": [path.name for path in (ROOT / "roles").iterdir()],
    }[kind]
    words = [f"unmoor.unmoor.{name}" for name in names]
    status, shown = run(foreign, "ansible-doc", "-t", kind, *words)
    assert status == 0, shown
    assert "WARNING" not in shown
    for word in words:
        assert f"> {kind.upper()}" in shown
        assert word in shown
    if kind != "role":
        assert shown.count("EXAMPLES:") == len(words)


def test_every_filter_is_documented(foreign: Path) -> None:
    status, listed = run(foreign, "ansible-doc", "-t", "filter", "--list", "unmoor.unmoor")
    assert status == 0, listed
    assert {line.split()[0] for line in listed.splitlines()} == {
        f"unmoor.unmoor.{path.stem}" for path in (ROOT / "plugins/filter").glob("*.yml")
    }
    assert "UNDOCUMENTED" not in listed


def test_the_archive_is_the_collection_alone(archive: Path) -> None:
    assert archive.stat().st_size < 500_000
    with tarfile.open(archive) as tar:
        tops = {name.partition("/")[0] for name in tar.getnames()}
    files = {"CHANGELOG.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "SECURITY.md"}
    assert tops == files | {"inventories", "meta", "playbooks", "plugins", "requirements", "roles"}


def test_an_installed_archive_works(archive: Path, foreign: Path, tmp_path: Path) -> None:
    paths = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}
    install = ["ansible-galaxy", "collection", "install", "--force", "--offline", "-p", str(tmp_path)]
    status, shown = run(foreign, *install, str(archive), **paths)
    assert status == 0, shown
    installed = tmp_path / "ansible_collections/unmoor/unmoor"
    hosts = str(installed / "inventories/example/hosts.yml")
    status, shown = run(foreign, "ansible-playbook", "-vvv", "-i", hosts, "unmoor.unmoor.preflight", **paths)
    assert status == 0, shown
    assert str(installed / "playbooks/preflight.yml") in shown
