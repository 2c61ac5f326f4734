"""`unmoor schema`: the JSON Schema of the documents and of the inventory's variables."""

from __future__ import annotations

import json

import click

from unmoor.model import DnsDocument, Document, EdgeDocument
from unmoor.model.variables import Variables

DOCUMENTS: dict[str, type[Document]] = {"edge": EdgeDocument, "dns": DnsDocument}
SCHEMAS = DOCUMENTS | {"inventory": Variables}


@click.command()
@click.argument("document", type=click.Choice(sorted(SCHEMAS)), required=False)
def cli(document: str | None) -> None:
    """Print the JSON Schema of DOCUMENT (edge.json, dns.json, or the inventory's variables), or of all.

    The schema omits the prefix `unmoor_` of the variables.
    """
    schemas = {name: kind.model_json_schema() for name, kind in SCHEMAS.items()}
    click.echo(json.dumps(schemas[document] if document else schemas, indent=2))
