"""The collection: the same from any directory, installed or linked, and small."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import unmoor
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


def test_what_ansible_only_warns_of_is_refused(foreign: Path, tmp_path: Path) -> None:
    """The configuration of the checkout makes it an error; elsewhere, the preflight does."""
    shutil.copytree(ROOT / "inventories/lab", tmp_path / "lab")
    hosts, edges = tmp_path / "lab/hosts.yml", tmp_path / "lab/group_vars/edges.yml"
    line = len(edges.read_text().splitlines()) + 1
    edges.write_text(edges.read_text() + "unmoor_prefixes: [198.18.0.0/20]\n")
    (tmp_path / "more.yml").write_text("edges:\n  hosts: [edge3\n")
    words = ["-i", str(hosts), "-i", str(tmp_path / "more.yml"), "unmoor.unmoor.preflight"]
    status, shown = run(foreign, "ansible-playbook", *words)
    assert status != 0
    assert f"{edges}:{line}: unmoor_prefixes: is set twice, first in line 2; only the last counts" in shown
    assert f"{tmp_path}/more.yml:3: is not YAML" in shown


@pytest.mark.parametrize("kind", ["module", "filter", "lookup", "role"])
def test_everything_is_documented(foreign: Path, kind: str) -> None:
    names = {
        "module": [path.stem for path in (ROOT / "plugins/modules").glob("*.py")],
        "filter": [path.stem for path in (ROOT / "plugins/filter").glob("*.yml")],
        "lookup": ["cache"],
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


@pytest.fixture
def installed(archive: Path, tmp_path: Path) -> Path:
    """The collection, installed from its archive."""
    words = ["ansible-galaxy", "collection", "install", "--force", "--offline", "-p", str(tmp_path)]
    paths = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}
    status, shown = run(tmp_path, *words, str(archive), **paths)
    assert status == 0, shown
    return tmp_path / "ansible_collections/unmoor/unmoor"


def test_an_installed_archive_works(installed: Path, foreign: Path) -> None:
    paths = {"ANSIBLE_COLLECTIONS_PATH": str(installed.parents[2])}
    hosts = str(installed / "inventories/example/hosts.yml")
    status, shown = run(foreign, "ansible-playbook", "-vvv", "-i", hosts, "unmoor.unmoor.preflight", **paths)
    assert status == 0, shown
    assert str(installed / "playbooks/preflight.yml") in shown


BUNDLE = ["ansible", "localhost", "-m", "unmoor.unmoor.bundle", "--check"]
BUNDLE += ["-a", f"python=3.{sys.version_info.minor} architecture={platform.machine()}"]


def test_an_installed_archive_makes_the_release_that_the_checkout_makes(
    installed: Path, foreign: Path
) -> None:
    """Without the source, the release has the package that is installed on the controller."""
    found = {}
    for name, path in (("checkout", ""), ("installed", str(installed.parents[2]))):
        status, shown = run(foreign, *BUNDLE, ANSIBLE_COLLECTIONS_PATH=path)
        assert status == 0, shown
        found[name] = json.loads(shown[shown.index("{") : shown.rindex("}") + 1])
    assert found["checkout"]["id"] == found["installed"]["id"]
    assert found["checkout"]["path"].startswith(str(ROOT / ".cache/bundles"))
    assert found["installed"]["path"].startswith(str(foreign / ".cache/unmoor/bundles"))


def test_an_installed_archive_refuses_another_program(installed: Path, foreign: Path) -> None:
    paths = {"ANSIBLE_COLLECTIONS_PATH": str(installed.parents[2])}
    manifest = installed / "MANIFEST.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(f'"version": "{unmoor.__version__}"', '"version": "99.1.0"'))
    hosts = str(installed / "inventories/example/hosts.yml")
    status, shown = run(foreign, "ansible-playbook", "-i", hosts, "unmoor.unmoor.preflight", **paths)
    assert status != 0
    assert f"controller: unmoor = {unmoor.__version__}: is not 99.1.0, the version of the collection" in shown
    assert "fix: install the package in that version" in shown


def test_a_controller_without_the_program_is_told_what_to_install(installed: Path, foreign: Path) -> None:
    """A package that cannot be imported hides the one of this environment."""
    (foreign / "hide/unmoor").mkdir(parents=True)
    (foreign / "hide/unmoor/__init__.py").write_text("raise ModuleNotFoundError('No module named unmoor')")
    paths = {"ANSIBLE_COLLECTIONS_PATH": str(installed.parents[2]), "PYTHONPATH": str(foreign / "hide")}
    hosts = str(installed / "inventories/example/hosts.yml")
    status, shown = run(foreign, "ansible-playbook", "-i", hosts, "unmoor.unmoor.preflight", **paths)
    assert status != 0
    assert "the Python package unmoor is missing" in shown
    assert "fix: install it there" in shown
    assert "Traceback" not in shown
