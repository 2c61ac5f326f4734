"""Set-up on a machine that lacks something fails, with a fix."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.checkout import ROOT

MISSING = "unmoor-no-such-package"
# apt-get without any source needs no network, and does not lock another apt-get out.
APT = """
Debug::NoLocking "true";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "{directory}";
Dir::Cache "{directory}";
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A list of packages, the first of which cannot be installed."""
    path = tmp_path / "debian.txt"
    path.write_text(f"{MISSING}\nbash\n")
    return path


def install(packages: Path, **environment: str) -> tuple[int, str]:
    """Run tools/install where /dev has only `null`; returns exit status and messages."""
    config = packages.with_name("apt.conf")
    config.write_text(APT.format(directory=packages.parent))
    run = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", run, "sh", ROOT / "tools" / "install", packages],
        env={**os.environ, "APT_CONFIG": str(config), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_package_that_cannot_be_installed_ends_set_up(packages: Path) -> None:
    status, messages = install(packages)
    assert status == 1
    assert f"Unable to locate package {MISSING}" in messages
    assert f"tools/install: apt-get cannot install: {MISSING}\nfix: " in messages


def test_packages_that_cannot_be_listed_end_set_up(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("this is not a list of packages\n")
    status, messages = install(packages, DPKG_ADMINDIR=str(tmp_path))
    assert status == 1
    assert "dpkg-query cannot list what is installed\nfix: " in messages


def test_what_is_installed_is_left_alone(packages: Path) -> None:
    packages.write_text("bash\n")
    assert install(packages) == (0, "")
