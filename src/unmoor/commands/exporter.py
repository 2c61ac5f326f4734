"""What both halves' `metrics` commands do: print what is counted, or serve it to Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

import click
from prometheus_client import CollectorRegistry, generate_latest

from unmoor import systemd
from unmoor.commands.endpoints import Endpoint
from unmoor.errors import UnmoorError
from unmoor.scrape import server


def tell(registry: CollectorRegistry, listen: Sequence[Endpoint]) -> None:
    """Print what is counted; with an endpoint, serve it there and tell systemd when that has begun.

    Raises UnmoorError where it cannot listen.
    """
    if not listen:
        click.echo(generate_latest(registry).decode(), nl=False)
        return
    host, port = listen[0]
    try:
        door = server(registry, str(host), port)
    except OSError as error:
        raise UnmoorError(f"cannot listen at {host} port {port}: {error.strerror}") from None
    systemd.notify("READY=1")
    door.serve_forever()
