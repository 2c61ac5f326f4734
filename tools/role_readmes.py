"""Generates each role's README.md from its meta/argument_specs.yml; with --check, lists those out of date."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def readme(role: Path) -> str:
    """Return the README of one role: its description, and its variables as a table."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    lines = [f"# Role `{role.name}`", ""]
    if "main" in specs:
        lines += _entry_point(specs["main"])
    else:
        description = yaml.safe_load((role / "meta/main.yml").read_text())["galaxy_info"]["description"]
        lines += [f"{description}, one for each value of `tasks_from`."]
        for name, spec in specs.items():
            lines += ["", f"## `{name}`", "", *_entry_point(spec)]
    return "\n".join(lines) + "\n"


def _entry_point(spec: dict[str, Any]) -> list[str]:
    lines = [f"{spec['short_description']}.", ""]
    lines += [_plain(paragraph) + "\n" for paragraph in spec["description"]]
    options: dict[str, Any] = spec.get("options", {})
    if options:
        lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name, option) for name, option in options.items()]
    else:
        lines += ["There are no variables."]
    return lines


def _row(name: str, option: dict[str, Any]) -> str:
    default = "**required**" if option.get("required") else f"`{option['default']!r}`".replace("'", '"')
    choices = f" One of: {', '.join(option['choices'])}." if "choices" in option else ""
    return f"| `{name}` | {option['type']} | {default} | {_plain(option['description'])}{choices} |"


def _plain(text: str) -> str:
    return re.sub(r"[CO]\(([^)]*)\)", r"`\1`", " ".join(text.split()))


def main() -> int:
    """Write or compare the READMEs; with --check, return the number of those out of date."""
    stale = 0
    for role in sorted((ROOT / "roles").iterdir()):
        path, want = role / "README.md", readme(role)
        if path.exists() and path.read_text() == want:
            continue
        stale += 1
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is out of date: run make readmes")
        else:
            path.write_text(want)
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
