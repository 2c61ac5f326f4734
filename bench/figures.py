"""Figures of a bench: ratios to a baseline, the table that is printed, and the file of results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """A measurement. `goal` is for the ratio, or for the value without a baseline.

    A goal that this run did not measure has no value, and is neither met nor missed.
    """

    name: str
    value: float | None
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None


def beside(name: str, value: float, unit: str, baseline: float, at_least: float | None = None) -> Figure:
    """Return a figure with its ratio to a baseline, and the goal of the ratio, if any."""
    ratio = value / baseline
    if at_least is None:
        return Figure(name, value, unit, baseline, ratio)
    return Figure(name, value, unit, baseline, ratio, f">= {at_least}", ratio >= at_least)


def read(path: Path) -> list[Figure]:
    """Read the figures that another script wrote; none if it has not run on this machine."""
    if not path.exists():
        return []
    return [Figure(**each) for each in json.loads(path.read_text(encoding="utf-8"))]


def write(path: Path, figures: Iterable[Figure]) -> None:
    """Replace the figures in a file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([asdict(each) for each in figures], indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {os.path.relpath(path)}")


def show(figures: Iterable[Figure]) -> None:
    """Print the figures as a table."""
    print(f"{'ratio':>7}  {'value':>10}  {'baseline':>10}  {'unit':<6}  {'goal':<8}  {'met':<4}  name")
    for each in figures:
        ratio = f"{each.ratio:.2f}" if each.ratio is not None else ""
        met = {True: "yes", False: "NO", None: "?" if each.goal else ""}[each.met]
        print(
            f"{ratio:>7}  {_number(each.value):>10}  {_number(each.baseline):>10}  {each.unit:<6}  "
            f"{each.goal:<8}  {met:<4}  {each.name}"
        )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
