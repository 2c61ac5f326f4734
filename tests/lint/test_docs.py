"""The documentation names only what exists: links, headings, make targets, files of the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
TARGET = re.compile(r"^(?:[$#] )?make ([a-z][a-z-]*)", re.MULTILINE)
PLAYBOOK = re.compile(r"\bplaybooks/[\w/]+\.yml")


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split() if (ROOT / name).exists()]


PAGES = tracked("*.md")
FOLDERS = {name.split("/")[0] for name in tracked() if "/" in name}


def anchors(page: Path) -> set[str]:
    """Fragments of the headings of a page, as on GitHub."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (each := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(each)
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    for link in LINK.findall(CODE.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            yield f"{link}: no such file"
        elif fragment and fragment not in anchors(target):
            yield f"{link}: no such heading"


def ignored(name: str) -> bool:
    """Report whether git ignores a path, as it does files that programs write."""
    return subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT, check=False).returncode == 0


def missing_paths(text: str) -> Iterator[str]:
    """Files of the tree that a page names in code and that do not exist."""
    for code in CODE.findall(FENCE.sub("", text)):
        name = code.split()[0].rstrip(":,;")
        if "/" not in name or name.split("/")[0] not in FOLDERS:
            continue
        if not list(ROOT.glob(name.rstrip("/"))) and not ignored(name):
            yield name


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_what_exists(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    targets = set(
        re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    code = "\n".join([*CODE.findall(FENCE.sub("", text)), *FENCE.findall(text)])
    wrong = [
        *broken_links(path, text),
        *(f"make {name}: no such target" for name in TARGET.findall(code) if name not in targets),
        *(f"{name}: no such playbook" for name in PLAYBOOK.findall(text) if not (ROOT / name).exists()),
        *(f"{name}: no such file" for name in missing_paths(text)),
    ]
    assert not wrong


def test_the_terminal_shows_the_session_of_the_page() -> None:
    command = [sys.executable, "tools/terminal_svg.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[a](limits.md#nothing)", "no such heading"),
        ("[a](nothing.md)", "no such file"),
        ("[a](../../outside)", "no such file"),
    ],
)
def test_a_broken_link_is_found(text: str, what: str) -> None:
    assert [found.partition(": ")[2] for found in broken_links(ROOT / "docs/x.md", text)] == [what]


def test_a_missing_path_is_found() -> None:
    assert list(missing_paths("`src/unmoor/gone.py` `src/unmoor` `roles/*` `a/b`")) == ["src/unmoor/gone.py"]
