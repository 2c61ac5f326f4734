"""The `metrics` commands of both halves: print metrics, or serve them to Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

import click
from prometheus_client import CollectorRegistry, generate_latest

from unmoor import systemd
from unmoor.commands.endpoints import Endpoint
from unmoor.errors import UnmoorError
from unmoor.scrape import server


def expose(registry: CollectorRegistry, listen: Sequence[Endpoint]) -> None:
    """Print the metrics; with an endpoint, serve them there without end and notify systemd (READY=1).

    Raises UnmoorError when it cannot listen there.
    """
    if not listen:
        click.echo(generate_latest(registry).decode(), nl=False)
        return
    host, port = listen[0]
    try:
        httpd = server(registry, str(host), port)
    except OSError as error:
        raise UnmoorError(f"cannot listen at {host} port {port}: {error.strerror}") from None
    systemd.notify("READY=1")
    httpd.serve_forever()
