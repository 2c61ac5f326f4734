"""Mutation tests: changes one place of a pure module and runs the unit tests that mirror the module.

    tools/mutants.py [--sample N] [--seed N] [--jobs N] [MODULE...]

A MODULE is a file or folder below src/unmoor, as in dns/policy or model/change.py; without any, all of PURE.
Prints each mutant that the tests let through, with its file, line and change, then the numbers.

cosmic-ray makes the mutants. Its own runner has one test command for all modules, and neither a sample nor a
seed; so this chooses the mutants and the tests. Everything runs in copies of the checkout.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/unmoor"
EQUIVALENT = ROOT / "tools/mutants-equivalent.txt"
#: Modules without sockets, processes and kernel, whose behaviour unit tests can observe completely.
PURE = (
    "model",
    "in_use.py",
    "dns/protocol",
    "dns/policy",
    "dns/zones/catalog.py",
    "dns/zones/static_zone.py",
    "dns/zones/zone_file.py",
    "dns/hostnames/hostnames.py",
    "dns/hostnames/registry.py",
    "dns/hostnames/registry_build.py",
    "dns/hostnames/registry_list.py",
    "dns/hostnames/registry_update.py",
    "dns/hostnames/registry_view.py",
    "dns/check",
    "dns/answer",
    "dns/counters/address_counters.py",
    "dns/counters/rates.py",
    "dns/observe/history.py",
    "dns/observe/sampling.py",
    "sockets/table",
    "probe/results",
)
#: Of cosmic-ray's operators those whose changes tests may overlook: a comparison and its border, an operation
#: and its nearest, numbers by one, conditions. `x ** y` for `x + y` fails everywhere and shows nothing.
OPERATORS = (
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Div_Mul", "Mod_FloorDiv", "Pow_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("LShift_RShift", "RShift_LShift")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitOr")),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "AddNot"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"),
    *("ExceptionReplacer", "RemoveDecorator"),
)
#: Tests that mirror nothing and are the only ones of a module or package, or of a part of it.
ELSEWHERE = {
    "model/secrets.py": ("tests/unit/plugins/test_secrets.py",),
    "dns/zones/static_zone.py": (
        "tests/unit/dns/check/test_check.py",
        "tests/unit/dns/answer/test_resolver.py",
    ),
    "dns/zones/zone_file.py": ("tests/unit/dns/check/test_check.py",),
}
#: A mutant that takes this many times as long as its tests alone, and 10 s more, does not end.
SLOWER = 3

KILLED, SURVIVED, ENDLESS, KNOWN = "killed", "survived", "endless", "equivalent"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one place: path below src/unmoor, line, the line before and after, the mutated module."""

    path: Path
    line: int
    before: str
    after: str
    code: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the mutant after lines have moved."""
        return str(self.path), self.before, self.after


class MutantsError(Exception):
    """Mutants cannot be tried; the message gives the reason and the fix."""


def modules(wanted: Iterable[str]) -> list[Path]:
    """Return the modules below src/unmoor that are named, or are in a folder that is. Raises MutantsError."""
    found: set[Path] = set()
    for name in wanted:
        path = SOURCE / name.removeprefix("src/").removeprefix("unmoor/")
        paths = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not all(each.is_file() for each in paths):
            raise MutantsError(
                f"MODULES = {name}: is no module below src/unmoor\nfix: as in dns/policy or in_use.py"
            )
        found.update(each.relative_to(SOURCE) for each in paths if each.name != "__init__.py")
    return sorted(found)


def mirror(module: Path) -> list[Path]:
    """Return the tests of a module: its own, then the others of its package, then those of ELSEWHERE.

    The tests of a package without a folder of its own are in that of the package above it.
    """
    folder = ROOT / "tests/unit" / module.parent
    while not folder.is_dir():
        folder = folder.parent
    found = sorted(folder.glob("test_*.py"))
    own = f"test_{module.stem}.py"
    if module.parent == Path():
        found = [each for each in found if each.name == own]
    mirrors = sorted((each.relative_to(ROOT) for each in found), key=lambda each: each.name != own)
    others = (ELSEWHERE.get(str(each), ()) for each in (module, *module.parents))
    return mirrors + [Path(each) for each in chain.from_iterable(others)]


def equivalents() -> dict[tuple[str, str, str], str]:
    """Return the mutants that are known to change no behaviour, each with the reason."""
    found = {}
    blocks = [
        block.splitlines() for block in EQUIVALENT.read_text(encoding="utf-8").split("\n\n") if block.strip()
    ]
    for head, before, after in (block for block in blocks if not block[0].startswith("#")):
        path, _, reason = head.partition(": ")
        found[path, before.removeprefix("- "), after.removeprefix("+ ")] = reason
    return found


def _not_observable(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations, assertions and arguments like `slots` and `strict` begin and end."""
    parts: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assert):
            parts.append(node.test)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            parts.append(node.value)
        parts += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for each in getattr(node, "decorator_list", []):
            if isinstance(each, ast.Call) and ast.unparse(each.func) == "dataclass":
                parts += [keyword.value for keyword in each.keywords]
    return [
        ((part.lineno, part.col_offset), (part.end_lineno or part.lineno, part.end_col_offset or 0))
        for part in parts
        if part is not None
    ]


def _places(code: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Return the operators that apply at each place of a module, with the number of the occurrence."""
    from cosmic_ray.ast import ast_nodes, get_ast  # noqa: PLC0415 - an optional requirement
    from cosmic_ray.plugins import get_operator  # noqa: PLC0415

    tree, hidden = get_ast(code), _not_observable(code)
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in OPERATORS:
        operator: Any = get_operator(f"core/{name}")()
        at = (start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(at):
            if not any(first <= start < last for first, last in hidden):
                found.setdefault(start, []).append((name, occurrence))
    return found


def _mutant(path: Path, code: str, line: int, name: str, occurrence: int) -> Mutant | None:
    from cosmic_ray.mutating import mutate_code  # noqa: PLC0415 - an optional requirement
    from cosmic_ray.plugins import get_operator  # noqa: PLC0415

    operator: Any = get_operator(f"core/{name}")()
    try:
        changed = mutate_code(code, operator, occurrence)
    except AttributeError:  # cosmic-ray cannot replace an exception with a dotted name
        return None
    if name == "ExceptionReplacer":
        # A class that a test of ours raises nowhere, and that the module need not import.
        changed = changed.replace("CosmicRayTestingException", "GeneratorExit")
    before, after = (text.splitlines()[line - 1].strip() for text in (code, changed))
    return Mutant(path, line, before, "no decorator" if name == "RemoveDecorator" else after, changed)


def chosen(paths: list[Path], sample: int, seed: int) -> list[Mutant]:
    """Return mutants of `sample` places (0: of all), at most one each, drawn with `seed`."""
    codes = {path: (SOURCE / path).read_text(encoding="utf-8") for path in paths}
    places = [(path, *each) for path in paths for each in sorted(_places(codes[path]).items())]
    rng = random.Random(seed)  # noqa: S311 - a sample that can be repeated
    rng.shuffle(places)
    picks = [(path, at[0], rng.choice(options)) for path, at, options in places[: sample or None]]
    made = (_mutant(path, codes[path], line, *pick) for path, line, pick in picks)
    return [each for each in made if each]


class Copy:
    """A copy of the checkout in which one module at a time is changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        for name in (".cache", ".venv"):
            if (ROOT / name).exists():
                (root / name).symlink_to(ROOT / name)
        self._env = {
            **os.environ,
            # Before the checkout that .venv refers to, also in subprocesses; and this file, as a plugin.
            "PYTHONPATH": f"{root / 'src'}:{root / 'tools'}",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def test(self, tests: list[Path], timeout: float) -> int | None:
        """Run tests until the first fails; return the exit status of pytest, None if they do not end."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "mutants"]
        command += map(str, tests)
        with subprocess.Popen(
            command,
            cwd=self.root,
            env=self._env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as running:
            try:
                return running.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            finally:
                # What a failed test has started and not ended.
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)

    def outcome(self, mutant: Mutant, tests: list[Path], timeout: float) -> str:
        """Return what the tests make of a mutant. Raises MutantsError if something kills them."""
        path = self.root / "src/unmoor" / mutant.path
        before = path.read_text(encoding="utf-8")
        path.write_text(mutant.code, encoding="utf-8")
        try:
            status = self.test(tests, timeout)
        finally:
            path.write_text(before, encoding="utf-8")
        if status is not None and status < 0:
            raise MutantsError(f"the tests of {mutant.path} were killed by signal {-status}\nfix: run again")
        return {0: SURVIVED, None: ENDLESS}.get(status, KILLED)


def pytest_configure() -> None:
    """As a plugin of pytest: the same examples in each run, and none made smaller when they fail."""
    from hypothesis import Phase, settings  # noqa: PLC0415 - not needed otherwise

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", database=None, deadline=None, derandomize=True, phases=phases)
    settings.load_profile("mutants")


def limits(copy: Copy, suites: Iterable[list[Path]]) -> dict[str, float]:
    """Return the timeouts of lists of tests, in seconds, from a run without a mutant.

    Raises MutantsError if one fails.
    """
    found: dict[str, float] = {}
    for tests in suites:
        if str(tests) in found:
            continue
        began = time.monotonic()
        if copy.test(tests, 600) != 0:
            raise MutantsError(
                f"without a mutant these fail: {' '.join(map(str, tests))}\nfix: repair them first"
            )
        found[str(tests)] = 10 + SLOWER * (time.monotonic() - began)
    return found


def outcomes(mutants: list[Mutant], jobs: int, scratch: Path) -> Iterator[tuple[Mutant, str]]:
    """Try the mutants in `jobs` copies at a time; yield each with its outcome."""
    suites = {path: mirror(path) for path in sorted({each.path for each in mutants})}
    copies: SimpleQueue[Copy] = SimpleQueue()
    for number in range(jobs):
        copies.put(first := Copy(scratch / str(number)))
    timeouts = limits(first, suites.values())

    def outcome(mutant: Mutant) -> tuple[Mutant, str]:
        copy, tests = copies.get(), suites[mutant.path]
        try:
            return mutant, copy.outcome(mutant, tests, timeouts[str(tests)])
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(outcome, each) for each in mutants]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run(options: argparse.Namespace) -> int:
    """Try mutants and print what came of them. Raises MutantsError."""
    known = equivalents()
    mutants = chosen(modules(options.modules or PURE), options.sample, options.seed)
    counts = Counter({KNOWN: sum(each.key in known for each in mutants)})
    mutants = [each for each in mutants if each.key not in known]
    with tempfile.TemporaryDirectory(prefix="unmoor-mutants-") as scratch:
        for number, (mutant, outcome) in enumerate(outcomes(mutants, options.jobs, Path(scratch)), 1):
            counts[outcome] += 1
            if outcome == SURVIVED:
                print(f"src/unmoor/{mutant.path}:{mutant.line}\n- {mutant.before}\n+ {mutant.after}")
            if number % 25 == 0:
                print(f"{number} of {len(mutants)} tried", file=sys.stderr)
            sys.stdout.flush()
    print(
        f"{counts.total()} mutants, seed {options.seed}: "
        + ", ".join(f"{counts[each]} {each}" for each in (KILLED, ENDLESS, KNOWN, SURVIVED))
    )
    return 0


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--sample", type=int, default=0, help="number of places to change; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    try:
        return run(parser.parse_args())
    except MutantsError as error:
        print(f"tools/mutants.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
