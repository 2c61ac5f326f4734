"""How Unmoor says that something is wrong: the place, the value, the reason and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and how to mend it.

    `place` names the file (with its line where known), `key` the path of the value inside it,
    `value` what stands there, `why` what is wrong with it, `fix` what to write instead.
    """

    place: str
    key: str
    value: str
    why: str
    fix: str

    def __str__(self) -> str:
        """Two short lines: what is wrong where, then the fix."""
        shown = f" = {self.value}" if self.value else ""
        head = ": ".join(part for part in (self.place, f"{self.key}{shown}", self.why) if part)
        return f"{head}\n    fix: {self.fix}"


class UnmoorError(Exception):
    """Something an operator can mend; the command line prints it without a traceback, exit status 2."""


class InvalidInputError(UnmoorError):
    """One or more problems of an input, all reported at once."""

    # A screen has 24 lines and a problem takes two of them.
    SHOWN = 10

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """Every problem up to one screen, then how many more there are."""
        count = len(self.problems)
        lines = [f"{count} problem{'s' * (count != 1)}; nothing was changed:"]
        lines += [str(problem) for problem in self.problems[: self.SHOWN]]
        if count > self.SHOWN:
            lines.append(f"... and {count - self.SHOWN} more")
        return "\n".join(lines)
