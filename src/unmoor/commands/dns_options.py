"""Options that several commands of `unmoor dns` have."""

from __future__ import annotations

from pathlib import Path

import click

DEFAULT_CONFIG = Path("/etc/unmoor/dns.json")

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The document.",
)

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default="/var/lib/unmoor-dns",
    show_default=True,
    help="Directory of the journal, and of the copies of transferred zones.",
)
