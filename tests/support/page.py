"""The commands of a page of the documentation, and what they print."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_MARK = "=== end of command"
_HERE = re.compile(r"<<'(\w+)'")


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of the page, and the lines that it must print."""
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        parts = re.split(r"^# ", block, flags=re.MULTILINE)
        for part in parts[1:]:
            first, *rest = part.rstrip("\n").split("\n")
            if here := _HERE.search(first):
                end = rest.index(here[1]) + 1
                first, rest = "\n".join([first, *rest[:end]]), rest[end:]
            yield first, rest


def install(directory: Path, programs: dict[str, str]) -> Path:
    """A directory for PATH with `unmoor` of this checkout, and these programs as shell commands."""
    texts = {name: f'#!/bin/sh\nexec {command} "$@"\n' for name, command in programs.items()}
    texts["unmoor"] = f"#!{sys.executable}\nfrom unmoor.commands import main\nmain()\n"
    directory.mkdir()
    for name, text in texts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    return directory


def check(page: Path, path: Path, before: Sequence[str]) -> int:
    """Run all commands in namespaces of their own, after `before`. Returns how many there are."""
    found = list(commands(page))
    lines = ["set -e", f"export PATH={path}:$PATH", *before, "trap 'kill $(jobs -p)' EXIT"]
    for command, _ in found:
        lines.append(command)
        if command.endswith("&") or "& echo" in command:
            lines.append("sleep 1")  # a server of the page: people take a second as well
        lines.append(f"echo '{_MARK}'")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "bash", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    printed = done.stdout.split(_MARK)
    for (command, wanted), output in zip(found, printed, strict=False):
        for line in wanted:
            assert line in output, f"{command}\nshould print: {line}\nbut printed: {output}\n{done.stderr}"
    assert done.returncode == 0, done.stderr
    assert len(printed) == len(found) + 1
    return len(found)
