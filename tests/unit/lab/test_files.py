"""What the lab writes and keeps: names, the image's cache, the ssh configuration."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.checkout import ROOT
from unmoor import paths
from unmoor.errors import UnmoorError
from unmoor.lab import image, ssh, topology
from unmoor.lab.layout import Layout

DEFAULT = ROOT / topology.DEFAULT


@pytest.fixture
def spec() -> topology.Image:
    return topology.load(DEFAULT).image


@pytest.mark.parametrize("name", ["", "a-b", "Pop", "1st", "../up", "averylongnameforalab"])
def test_names_that_would_be_ambiguous_are_refused(name: str) -> None:
    with pytest.raises(UnmoorError, match="cannot be the name of a lab"):
        Layout(name)


def test_the_image_depends_on_every_input(spec: topology.Image) -> None:
    def changed(base: list[str], golden: list[str], suite: str) -> str:
        return image.key(
            topology.Image.model_validate({"suite": suite, "packages": {"base": base, "golden": golden}})
        )

    keys = {
        changed(["a1"], ["b1"], "bookworm"),
        changed(["a1"], ["b1"], "trixie"),
        changed(["a1", "b1"], [], "bookworm"),
        changed(["a1", "c1"], ["b1"], "bookworm"),
        changed(["a1"], ["b1", "c1"], "bookworm"),
    }
    assert len(keys) == 5
    assert changed(["a1", "c1"], ["b1"], "bookworm") == changed(["c1", "a1", "c1"], ["b1"], "bookworm")


def test_the_cache_keeps_what_is_wanted_or_in_use(
    spec: topology.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, state = tmp_path / "cache", tmp_path / "state"
    monkeypatch.setenv("UNMOOR_LAB_CACHE", str(cache))
    monkeypatch.setattr(paths, "LAB_STATE", state)
    kept = {image.key(spec), "in-use", "disks"}
    for name in (*kept, "old", "interrupted.new"):
        (cache / name / "base").mkdir(parents=True)
    (state / "other").mkdir(parents=True)
    (state / "other/lab.json").write_text(json.dumps({"image": str(cache / "in-use")}), encoding="utf-8")
    with image.ready(spec) as path:
        assert path == cache / image.key(spec)
    assert {directory.name for directory in cache.iterdir() if directory.is_dir()} == kept


def test_ssh_itself_reads_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "ssh_config"
    path.write_text(ssh.config(Layout("unit"), topology.load(DEFAULT)), encoding="utf-8")
    shown = subprocess.run(
        ["ssh", "-G", "-F", path, "edge2"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    settings = dict(line.split(" ", 1) for line in shown)
    assert settings["hostname"] == "198.19.255.12"
    assert settings["user"] == "root"
    assert settings["proxycommand"] == "ip netns exec unmoor-unit-mgmt socat - TCP:%h:%p"
    assert settings["stricthostkeychecking"] == "true"
    assert settings["userknownhostsfile"] == "/run/unmoor-lab/unit/known_hosts"
    assert settings["controlpath"] == "/run/unmoor-lab/unit/cm/edge2"
