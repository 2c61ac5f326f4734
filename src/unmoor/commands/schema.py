"""`unmoor schema`: the JSON Schema of what an edge is told."""

from __future__ import annotations

import json

import click

from unmoor.model import DnsDocument, Document, EdgeDocument

DOCUMENTS: dict[str, type[Document]] = {"edge": EdgeDocument, "dns": DnsDocument}


@click.command()
@click.argument("document", type=click.Choice(sorted(DOCUMENTS)), required=False)
def cli(document: str | None) -> None:
    """Print the JSON Schema of DOCUMENT (edge.json or dns.json), or of both."""
    schemas = {name: kind.model_json_schema() for name, kind in DOCUMENTS.items()}
    click.echo(json.dumps(schemas[document] if document else schemas, indent=2))
