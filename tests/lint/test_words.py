"""Texts for operators are plain English: task names begin with a verb, messages use no known dialect."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
#: Verbs that begin the names of tasks, handlers and plays. A new one is added here.
VERBS = re.compile(
    r"(?:"
    r"Activate|Add|Apply|Attempt|Build|Change|Check|Clean|Collect|Compare|Compile|Complete|Configure|"
    r"Confirm|Copy|Create|Destroy|Detach|Disable|Enable|End|Fail|Find|Install|Interrupt|Keep|Kill|List|"
    r"Load|Make|Measure|Move|Ping|Plan|Prepare|Probe|Prove|Query|Read|Record|Reload|Remove|Repeat|"
    r"Replace|Restart|Restore|Roll|Run|Show|Shrink|Sign|Start|Stop|Summarize|Switch|Take|Tear|Unpack|"
    r"Update|Upgrade|Upload|Validate|Wait|Write"
    r") "
)
#: Words and phrases that are not plain English in messages; CONTRIBUTING.md describes the language.
DIALECT = re.compile(
    r"\b(?:is|are|was|be|been|being) told\b|\btells?\b|\banew\b|\bstands? (?:where|in|behind|beside)\b"
    r"|\beach (?:is|by) itself\b|\bby itself\b|\bwho(?:ever)? (?:does|may|is)\b|\bsays? (?:so|it)\b"
    r"|\bwhat there is\b|\bwhat is asked for\b|\bdoors?\b|\bheirs?\b|\bestates?\b|\bpatience\b"
    r"|\bthis computer is out of\b|\ba defect of unmoor\b|\bof ours\b|\bof its own\b|\bgoes? away\b"
    r"|\bholds? us up\b|\bmend(?:ed)?\b",
    re.IGNORECASE,
)
#: Files of src that are not clean yet. A file that is clean leaves the list; none is added.
STILL_TO_CLEAN: frozenset[str] = frozenset()
#: Keywords of calls whose value an operator reads.
READ_BY_OPERATORS = frozenset(("help", "short_help", "epilog", "fix", "hint", "msg", "why"))
#: Calls whose strings an operator reads.
REPORTS = frozenset(("Problem", "echo", "secho", "fail", "fail_json", "BadParameter", "UsageError", "log"))

Text = tuple[str, str, str]  # path, line or name, text


def playbooks() -> list[Path]:
    paths = [*(ROOT / "playbooks").rglob("*.yml"), *(ROOT / "molecule").rglob("*.yml")]
    paths += [path for part in ("tasks", "handlers") for path in (ROOT / "roles").glob(f"*/{part}/*.yml")]
    return sorted(path for path in paths if path.name != "molecule.yml")


def blocks(node: Any) -> Iterator[dict[str, Any]]:
    """Plays and tasks of a playbook or a list of tasks, at any depth."""
    for each in node if isinstance(node, list) else ():
        if isinstance(each, dict):
            yield each
            for part in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
                yield from blocks(each.get(part))


def entries() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in playbooks():
        for block in blocks(yaml.safe_load(path.read_text(encoding="utf-8"))):
            yield str(path.relative_to(ROOT)), block


def ansible_texts() -> Iterator[Text]:
    for path, block in entries():
        for topic in ("name", "listen"):
            names = block.get(topic) or []
            for name in [names] if isinstance(names, str) else names:
                yield path, block.get("name", ""), name
        for arguments in block.values():
            if isinstance(arguments, dict):
                for key in ("msg", "fail_msg", "success_msg"):
                    if isinstance(arguments.get(key), str):
                        yield path, block.get("name", ""), arguments[key]


def descriptions(path: Path) -> Iterator[Text]:
    """Descriptions of a YAML file of documentation, at any depth."""
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        yield from ((str(path.relative_to(ROOT)), "", text) for text in _descriptions(document))


def _descriptions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("description", "short_description"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from _descriptions(value)


def python_texts(path: Path) -> Iterator[Text]:
    """Strings of a Python file that reach an operator: errors, reports, help texts and documentation."""
    tree, name = ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(ROOT))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc:
            yield from _strings(node.exc, name)
        elif isinstance(node, ast.Call):
            if _called(node.func) in REPORTS:
                yield from _strings(node, name)
            for keyword in node.keywords:
                if keyword.arg in READ_BY_OPERATORS:
                    yield from _strings(keyword.value, name)
        elif isinstance(node, ast.FunctionDef) and any(_is_command(each) for each in node.decorator_list):
            yield name, str(node.lineno), ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id in ("DOCUMENTATION", "RETURN") for each in node.targets
        ):
            yield from _strings(node.value, name)


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_command(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and _called(decorator.func) in ("command", "group")


def _strings(node: ast.expr, name: str) -> Iterator[Text]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield name, str(each.lineno), each.value


def dialect(texts: Iterator[Text]) -> dict[str, str]:
    """Map each place to the words found in its text."""
    found = {}
    for path, line, text in texts:
        if match := DIALECT.search(" ".join(text.split())):
            found[f"{path}:{line}"] = f"{match[0]!r} in {' '.join(text.split())[:90]!r}"
    return found


def listed(found: dict[str, str]) -> str:
    return "\n".join(f"{place}: {what}" for place, what in sorted(found.items()))


def test_names_of_tasks_begin_with_a_verb() -> None:
    names = [f"{path}: {block.get('name')}" for path, block in entries()]
    assert len(names) > 100
    assert [name for name in names if not VERBS.match(name.split(": ", 1)[1] + " ")] == []


def test_playbooks_and_roles_speak_plainly() -> None:
    found = dialect(ansible_texts())
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        found |= dialect(descriptions(path))
    assert not found, listed(found)


def test_plugins_speak_plainly() -> None:
    found: dict[str, str] = {}
    for path in (ROOT / "plugins").rglob("*.py"):
        found |= dialect(python_texts(path))
    for path in (ROOT / "plugins").rglob("*.yml"):
        found |= dialect(descriptions(path))
    assert not found, listed(found)


def test_the_program_speaks_plainly() -> None:
    found: dict[str, str] = {}
    for path in (ROOT / "src").rglob("*.py"):
        found |= dialect(python_texts(path))
    found = {place: what for place, what in found.items() if place.split(":")[0] not in STILL_TO_CLEAN}
    assert not found, listed(found)


def test_files_still_to_clean_are_not_clean() -> None:
    clean = [path for path in sorted(STILL_TO_CLEAN) if not dialect(python_texts(ROOT / path))]
    assert not clean, f"remove from STILL_TO_CLEAN: {clean}"
