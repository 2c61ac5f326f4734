"""Every command of docs/sockets.md prints what the page shows."""

from __future__ import annotations

from pathlib import Path

from support.checkout import ROOT
from support.page import check, install


def test_the_page(tmp_path: Path) -> None:
    before = [
        # Files that the page writes stay in this mount namespace.
        f"mkdir {tmp_path}/upper {tmp_path}/work; mount -t tmpfs tmpfs /run",
        f"mount -t overlay -o lowerdir=/etc,upperdir={tmp_path}/upper,workdir={tmp_path}/work overlay /etc",
    ]
    assert check(ROOT / "docs" / "sockets.md", install(tmp_path / "bin", {}), before) > 25
