"""Every command of docs/sockets.md prints what the page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.checkout import ROOT

DOCUMENT = ROOT / "docs" / "sockets.md"
MARK = "=== end of command"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page, and the lines that it must print."""
    for block in re.findall(r"^```console\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL):
        parts = re.split(r"^# ", block, flags=re.MULTILINE)
        for part in parts[1:]:
            first, *rest = part.rstrip("\n").split("\n")
            if "<<'JSON'" in first:
                end = rest.index("JSON") + 1
                first, rest = "\n".join([first, *rest[:end]]), rest[end:]
            yield first, rest


def test_the_page(tmp_path: Path) -> None:
    unmoor = tmp_path / "bin" / "unmoor"
    unmoor.parent.mkdir()
    unmoor.write_text(f"#!{sys.executable}\nfrom unmoor.commands import main\nmain()\n")
    unmoor.chmod(0o755)
    page = list(commands())
    assert len(page) > 25
    lines = [
        "set -e",
        f"export PATH={unmoor.parent}:$PATH",
        # Files that the page writes stay in this mount namespace.
        f"mkdir {tmp_path}/upper {tmp_path}/work; mount -t tmpfs tmpfs /run",
        f"mount -t overlay -o lowerdir=/etc,upperdir={tmp_path}/upper,workdir={tmp_path}/work overlay /etc",
        "trap 'kill $(jobs -p)' EXIT",
    ]
    for command, _ in page:
        lines.append(command)
        if command.endswith("&") or "& echo" in command:
            lines.append("sleep 1")  # a server of the page: people take a second as well
        lines.append(f"echo '{MARK}'")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "bash", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    printed = done.stdout.split(MARK)
    for (command, wanted), found in zip(page, printed, strict=False):
        for line in wanted:
            assert line in found, f"{command}\nshould print: {line}\nbut printed: {found}\n{done.stderr}"
    assert done.returncode == 0, done.stderr
    assert len(printed) == len(page) + 1
