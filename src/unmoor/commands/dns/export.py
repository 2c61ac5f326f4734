"""`unmoor dns export`: policies as zone files for any other server."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import click

from unmoor.commands.dns.options import config_option, state_option
from unmoor.errors import UnmoorError
from unmoor.model import DnsDocument, load


@click.command()
@config_option
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Directory: one file for each zone."
)
@click.option(
    "--addresses", type=click.IntRange(1, 1000), default=8, show_default=True, help="Of each family."
)
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same files.  [default: drawn]")
@click.option("--pop", help="The PoP that answers, instead of the document's own.")
@click.option("--serial", type=click.IntRange(0, 2**32 - 1), help="Of each SOA, instead of the zone's own.")
@state_option
def export(
    config: Path,
    output: Path,
    addresses: int,
    seed: int | None,
    pop: str | None,
    serial: int | None,
    state: Path,
) -> None:
    """Write zone files in which each hostname has some addresses of its policy's pool.

    For servers that know no policies: they answer with all addresses of a name, until the next export.
    """
    from unmoor.dns.answer.export import Export  # noqa: PLC0415
    from unmoor.dns.answer.snapshot import build  # noqa: PLC0415
    from unmoor.dns.zones.catalog import served  # noqa: PLC0415 - dnspython is loaded only where it is needed
    from unmoor.dns.zones.zone_store import Store  # noqa: PLC0415

    document = load(DnsDocument, config)
    if pop:
        document = document.model_copy(update={"pop": pop})
    document, copies = served(document, Store(state), time.time())
    counters = {policy.name: at for at, policy in enumerate(document.policies)}
    snapshot = build(document, str(config), counters, copies)
    drawn = secrets.randbits(64) if seed is None else seed
    work = Export(snapshot, addresses, drawn, serial)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnmoorError(f"{output}: cannot be made: {error.strerror}") from None
    click.echo(f"seed {drawn}, PoP {document.pop}")
    for each in work.write(output):
        click.echo(f"{each.path}: {each.names} names, {each.records} records, {each.size:,} octets")
    for warning in work.warnings:
        click.echo(f"warning: {warning}", err=True)
