"""`unmoor anyip`: make the edge's prefixes local to this host."""

from __future__ import annotations

from pathlib import Path

import click

from unmoor import anyip, paths
from unmoor.model import EdgeDocument, load


@click.group()
def cli() -> None:
    """Make the edge's prefixes local to this host (AnyIP routes)."""


@cli.command()
@click.option("--config", type=click.Path(path_type=Path), default=paths.EDGE_DOCUMENT, show_default=True)
@click.option("--check", is_flag=True, help="Only print what would change.")
def apply(config: Path, check: bool) -> None:
    """Make the prefixes of the document local, and remove routes of prefixes that it no longer has."""
    _run(anyip.plan(load(EdgeDocument, config)), check)


@cli.command()
def remove() -> None:
    """Remove all routes that `apply` added."""
    _run(anyip.plan(None), check=False)


def _run(change: anyip.Change, check: bool) -> None:
    if not check:
        anyip.apply(change)
    for word, prefixes in (("local", change.added), ("no longer local", change.removed)):
        for prefix in prefixes:
            click.echo(f"{prefix}: {word}")
    if change == anyip.Change((), ()):
        click.echo("no change")
