"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their heading, in aligned columns."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    format_row: Callable[[Sequence[str]], str] = lambda row: "  ".join(  # noqa: E731 - one expression
        cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    click.echo("\n".join(("", *map(format_row, (heading, *rows)))))
