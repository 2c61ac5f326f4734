"""Every command of docs/listeners.md does what the page says, with Debian's programs."""

from __future__ import annotations

from pathlib import Path

from support import other_servers
from support.checkout import ROOT
from support.page import check, install

PROGRAMS = ("/usr/sbin/nginx", "/usr/sbin/haproxy", "/usr/bin/caddy", "/usr/sbin/unbound", "/usr/bin/dnsdist")


def test_the_page(tmp_path: Path) -> None:
    programs = {
        Path(each).name: " ".join(map(str, other_servers.command(Path(each).name, path=each)))
        for each in PROGRAMS
    }
    before = ["mount -t tmpfs tmpfs /run"]
    assert check(ROOT / "docs" / "listeners.md", install(tmp_path / "bin", programs), before) > 50
