"""Draw the session of docs/sockets.md, which a test runs, as docs/terminal.svg.

With --check, fail if the drawing is out of date.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs/sockets.md"
DRAWING = ROOT / "docs/terminal.svg"
SECTION = re.compile(r"^## A first try$(.*?)^## ", re.DOTALL | re.MULTILINE)
SESSION = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: An image in a page cannot load fonts.
FONT = re.compile(r"^ *@font-face \{.*?\}\n", re.DOTALL | re.MULTILINE)


def session() -> list[str]:
    """The lines of the section's sessions; the first one only prepares a namespace."""
    section = SECTION.search(SOURCE.read_text(encoding="utf-8"))
    if section is None:
        raise SystemExit(f"{SOURCE}: no section '## A first try'\nfix: name the section in {__file__}")
    return [
        line.removesuffix(" || true")
        for text in SESSION.findall(section[1])[1:]
        for line in text.splitlines()
    ]


def draw(lines: list[str]) -> str:
    """These lines as a terminal in SVG; commands are highlighted."""
    console = Console(record=True, width=max(map(len, lines)) + 2, file=io.StringIO(), highlight=False)
    for line in lines:
        console.print(Text(line, style="bold green" if line.startswith("# ") else ""))
    svg = console.export_svg(title="edge", theme=MONOKAI, unique_id="terminal")
    return "\n".join(line.rstrip() for line in FONT.sub("", svg).splitlines()) + "\n"


def main() -> None:
    """Write the drawing, or compare it."""
    drawn = draw(session())
    if "--check" not in sys.argv[1:]:
        DRAWING.write_text(drawn, encoding="utf-8")
    elif not DRAWING.exists() or DRAWING.read_text(encoding="utf-8") != drawn:
        raise SystemExit(f"{DRAWING}: differs from {SOURCE}\nfix: make readmes")


if __name__ == "__main__":
    main()
