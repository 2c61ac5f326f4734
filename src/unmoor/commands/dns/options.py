"""Options that several commands of `unmoor dns` have."""

from __future__ import annotations

from pathlib import Path

import click

from unmoor import paths

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=paths.DNS_DOCUMENT,
    show_default=True,
    help="The document.",
)

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=paths.DNS_STATE,
    show_default=True,
    help="Directory of the journal, and of the copies of transferred zones.",
)
