"""`unmoor validate`: check a document against its schema. The programs that read it check more."""

from __future__ import annotations

from pathlib import Path

import click

from unmoor.commands.schema import DOCUMENTS
from unmoor.model import load


@click.command()
@click.argument("document", type=click.Choice(sorted(DOCUMENTS)))
@click.argument("file", type=click.Path(path_type=Path))
def cli(document: str, file: Path) -> None:
    """Check FILE against the schema of DOCUMENT. With problems, print all and exit with status 2."""
    load(DOCUMENTS[document], file)
