"""Faults in an inventory's YAML files that Ansible passes over with a warning by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

#: Suffixes of YAML files. Files of variables may have none.
SUFFIXES = (".yaml", ".yml")
VARIABLES = ("group_vars", "host_vars")


def faults(sources: Iterable[Path]) -> Iterator[tuple[str, str, str, str]]:
    """Yield place, key, fault and fix: for keys that a mapping has twice, and for files that are no YAML.

    Of a key that is there twice, Ansible uses the last; of a file that is no YAML, nothing.
    """
    for file in dict.fromkeys(file for source in sources for file in _files(source)):
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{file}:{mark.line + 1}" if mark else str(file)
            why = getattr(error, "problem", None) or str(error).splitlines()[0]
            yield place, "", f"is not YAML: {why}", "correct the file"
            continue
        for key, line, first in _twice(root):
            why = f"is set twice, first in line {first}; only the last counts"
            yield f"{file}:{line}", key, why, "remove one, or merge their contents"


def _files(source: Path) -> Iterator[Path]:
    if not source.exists():  # a list of hosts
        return
    directory = source if source.is_dir() else source.parent
    if source.is_dir():
        yield from sorted(path for path in source.iterdir() if path.suffix in SUFFIXES and path.is_file())
    elif source.suffix in SUFFIXES and source.is_file():
        yield source
    for folder in VARIABLES:
        for path in sorted((directory / folder).rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
            if path.suffix in (*SUFFIXES, "") and path.is_file() and not hidden:
                yield path


def _twice(root: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Yield each key that a mapping below `root` has twice, with the lines of both."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if node is None or id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                todo.append(value)
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    if key.value in lines and key.value != "<<":
                        yield key.value, line, lines[key.value]
                    lines[key.value] = line
