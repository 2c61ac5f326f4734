"""Errors for operators: place, value, reason and fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: The keys and indices that lead to a value inside a document.
Key = tuple[int | str, ...]


def dotted(path: Key) -> str:
    """Return a path as messages show it, as in `zones.0.name`."""
    return ".".join(map(str, path))


@dataclass(frozen=True, slots=True)
class Fault:
    """One defect of a document, and how to fix it. Checks find faults; a Problem is a fault with its place.

    `path` leads to the value inside the document. `line`, from 1, is the line of a value that is a text, such
    as a zone file; 0 if it is unknown or the value is none. The other fields are as in Problem.
    """

    path: Key
    value: str
    why: str
    fix: str
    line: int = 0

    def at(self, place: str) -> Problem:
        """Return the problem for a document in the file `place`."""
        return Problem(place, dotted(self.path), self.value, self.why, self.fix)


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect of an input, and how to fix it.

    `place` is the file (with its line if known), `key` the path of the value inside it, `value` the value
    itself, `why` what is wrong with it, and `fix` what to do.
    """

    place: str
    key: str
    value: str
    why: str
    fix: str

    def __str__(self) -> str:
        """Return two lines: `PLACE: KEY = VALUE: WHY`, then the fix."""
        shown = f" = {self.value}" if self.value else ""
        head = ": ".join(part for part in (self.place, f"{self.key}{shown}", self.why) if part)
        return f"{head}\n    fix: {self.fix}"


class UnmoorError(Exception):
    """An error that an operator can fix. Commands print it without a traceback and exit with status 2."""


class InvalidInputError(UnmoorError):
    """An input with one or more problems, which are reported together."""

    # A terminal has 24 lines, and a problem takes two.
    SHOWN = 10

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """Return the problems, at most one screen, and the number of further ones."""
        count = len(self.problems)
        lines = [f"{count} problem{'s' * (count != 1)}; nothing was changed:"]
        lines += [str(problem) for problem in self.problems[: self.SHOWN]]
        if count > self.SHOWN:
            lines.append(f"... and {count - self.SHOWN} more")
        return "\n".join(lines)
