"""Errors for operators: place, value, reason and fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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
