"""The layout shows the architecture: imports run one way, and no module, class or package is too large."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkout import ROOT

SOURCE = ROOT / "src"
UNIT = ROOT / "tests" / "unit"
#: Packages and modules of src/unmoor from the top down: each may import those in the lines below it.
#: Those of one line do not import one another.
FLOORS = (
    ("commands",),
    ("proof", "in_use"),
    ("probe", "lab", "rollout", "sockets.whoami", "dns.server", "sockets.observe", "sockets.activation"),
    ("dns.observe", "sockets.dispatch"),
    ("dns.answer",),
    ("dns.transfer", "sockets.table"),
    ("dns.counters",),
    ("dns.check",),
    ("dns.parse",),
    ("dns.hostnames",),
    ("dns.zones",),
    ("dns.policy",),
    ("dns.protocol",),
    ("bpf", "anyip", "scrape", "systemd", "udp"),
    ("model",),
    ("jsontext", "process"),
    ("errors", "paths"),
)
#: The only module that starts other programs.
STARTS_PROGRAMS = "unmoor.process"
#: Modules and functions of the standard library that start a program.
STARTERS = re.compile(
    r"subprocess\b|pty\b|_posixsubprocess\b|os\.(?:exec|spawn|posix_spawn|popen|system|startfile)"
    r"|asyncio\.(?:subprocess|create_subprocess)"
)
#: The only module that has default paths and names of units, and what they look like.
HAS_PATHS = "unmoor.paths"
DEFAULT_PATH = re.compile(
    r"/(?:etc|run|opt|var/\w+)/unmoor|/sys/fs/bpf"
    r"|\bunmoor-(?:activation|anyip|bpffs|dns|dns-metrics|sockets|sockets-metrics|whoami)\b(?!-)"
)
#: What only looks like that, with what it is.
NO_PATHS = {
    "unmoor-dns": "the name of a file in memory",
    "; the journal is for root and group unmoor-dns": "a group",
}
MAX_MODULE_LINES = 450
MAX_CLASS_LINES = 200
MAX_MODULES = 14
#: Exceptions, each with its reason.
LARGER: dict[str, str] = {}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def floor(module: str) -> int | None:
    """The line of FLOORS that a module belongs to; None for the packages above them, which import nothing."""
    for number, names in enumerate(FLOORS):
        if any(module == f"unmoor.{name}" or module.startswith(f"unmoor.{name}.") for name in names):
            return number
    return None


def room(module: str) -> str:
    for names in FLOORS:
        for name in names:
            if module == f"unmoor.{name}" or module.startswith(f"unmoor.{name}."):
                return name
    return module


def test_imports_run_down() -> None:
    known = modules()
    wrong = []
    for name, path in known.items():
        here = floor(name)
        for other in imports(path, known):
            there = floor(other)
            if there is None or room(name) == room(other):
                continue
            if here is None or here >= there:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_tests_mirror_the_source() -> None:
    folders = {path.parent.relative_to(UNIT) for path in UNIT.rglob("*.py")}
    others = {Path("plugins"), Path("tools")}
    assert not [str(each) for each in folders - others if not (SOURCE / "unmoor" / each).is_dir()]


def test_every_module_has_a_floor() -> None:
    homeless = [
        name for name, path in modules().items() if floor(name) is None and path.name != "__init__.py"
    ]
    assert not homeless


def test_modules_of_a_package_do_not_import_in_circles() -> None:
    known = modules()
    graph = {name: set(imports(path, known)) - {name} for name, path in known.items()}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph


@pytest.mark.parametrize("half", ["dns", "sockets"])
def test_either_half_is_useful_alone(half: str) -> None:
    known = modules()
    other = {"dns": "unmoor.sockets", "sockets": "unmoor.dns"}[half]
    wrong = [
        f"{name} imports {each}"
        for name, path in known.items()
        if name.startswith(f"unmoor.{half}.")
        for each in imports(path, known)
        if each.startswith(other)
    ]
    assert not wrong


def literals(path: Path) -> Iterator[str]:
    """The strings of a module, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_one_module_has_the_default_paths() -> None:
    repeated = {
        f"{name}: {text}": text
        for name, path in modules().items()
        for text in literals(path)
        if DEFAULT_PATH.search(text) and name != HAS_PATHS
    }
    assert set(repeated.values()) == NO_PATHS.keys(), "\n".join(repeated)


def used(path: Path) -> Iterator[str]:
    """What a module imports, and the dotted names in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_one_module_starts_programs() -> None:
    starters = {name for name, path in modules().items() if any(map(STARTERS.match, used(path)))}
    assert starters == {STARTS_PROGRAMS}


def test_nothing_is_too_large() -> None:
    large = {}
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_MODULE_LINES:
            large[name] = f"{lines} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > MAX_CLASS_LINES:
                    large[f"{name}.{node.name}"] = f"{size} lines"
    for folder in {path.parent for path in modules().values()}:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        if count > MAX_MODULES:
            large[".".join(folder.relative_to(SOURCE).parts)] = f"{count} modules"
    assert large.keys() == LARGER.keys(), "\n".join(f"{name}: {size}" for name, size in large.items())
