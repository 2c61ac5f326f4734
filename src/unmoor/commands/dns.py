"""`unmoor dns`: the authoritative randomizer."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from unmoor.commands import registry
from unmoor.commands.dns_export import export
from unmoor.commands.dns_options import DEFAULT_CONFIG, config_option, state_option
from unmoor.errors import InvalidInputError, UnmoorError
from unmoor.model import DnsDocument, load

_CONTROL = "/run/unmoor-dns/control.sock"

_control_option = click.option(
    "--control",
    type=click.Path(path_type=Path),
    default=_CONTROL,
    show_default=True,
    help="The server's control socket.",
)


@click.group()
def cli() -> None:
    """The authoritative DNS randomizer: policies answer with a fresh address of a pool."""


cli.add_command(registry.cli, "registry")
cli.add_command(export)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_CONFIG)
@click.option("--all", "everything", is_flag=True, help="List every problem, not the first screen of them.")
def check(file: Path, everything: bool) -> None:
    """Validate FILE wholly: schema, zones, hostnames, pools, policies. Exit status 2 if anything is wrong."""
    from unmoor.dns.check import inspect  # noqa: PLC0415 - dnspython is loaded only where it is needed

    document = load(DnsDocument, file)
    found = inspect(document, str(file))
    if everything and found.problems:
        for problem in found.problems:
            click.echo(problem, err=True)
        sys.exit(2)
    if found.problems:
        raise InvalidInputError(found.problems)
    click.echo(
        f"{file}: correct: {len(found.zones)} zones, {found.count} hostnames, "
        f"{len(document.pools)} pools, {len(document.policies)} policies"
    )


@cli.command()
@click.argument("name")
@click.argument("qtype", metavar="[TYPE]", default="A")
@config_option
@click.option("--pop", help="The PoP that answers, instead of the document's own.")
@click.option("--client", help="Address or network of the client, or of its resolver.")
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    name: str, qtype: str, config: Path, pop: str | None, client: str | None, state: Path, as_json: bool
) -> None:
    """Say which policy answers a query for NAME, why, and with what.

    Reads the document, not the server: it shows what a document would do before it is in force.
    """
    from unmoor.dns.catalog import served  # noqa: PLC0415 - dnspython is loaded only where it is needed
    from unmoor.dns.copies import Store  # noqa: PLC0415
    from unmoor.dns.explain import explain  # noqa: PLC0415

    try:
        network = ip_network(client, strict=False) if client else None
    except ValueError:
        raise UnmoorError(
            f"--client {client} is no address; write one, or a network, as 198.51.100.0/24"
        ) from None
    document, copies = served(load(DnsDocument, config), Store(state), time.time())
    found = explain(document, str(config), name, qtype, pop, network, copies)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        for line in found.lines():
            click.echo(line)


@cli.command()
@config_option
@_control_option
@state_option
@click.option("--resume", type=int, hidden=True, help="Descriptor of what the server before us leaves.")
def serve(config: Path, control: Path, state: Path, resume: int | None) -> None:
    """Answer queries until SIGTERM; SIGHUP reloads."""
    from unmoor.dns.server import Server  # noqa: PLC0415 - the other commands need none of it

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    Server(config, control, resume, state).run()


@cli.command()
@_control_option
def reload(control: Path) -> None:
    """Bring the document on disk into force, wait until it is, and say what changed.

    Exit status 1, with the reasons, when the document was refused: the old one goes on answering.
    """
    from unmoor.dns.control import ask  # noqa: PLC0415 - keeps `unmoor --help` quick

    reply = ask(control, "reload")
    for line in reply.lines:
        click.echo(line, err=not reply.done)
    if not reply.done:
        click.echo("refused: the old configuration goes on answering", err=True)
        sys.exit(1)


@cli.command()
@_control_option
@click.option(
    "--program",
    type=click.Path(path_type=Path),
    help="The release's bin/unmoor, if it is not the one that asks.",
)
def upgrade(control: Path, program: Path | None) -> None:
    """Have the running server replaced by this release, without losing a query.

    Exit status 1, with the reasons, when the new release failed: the old one goes on answering. Exit status
    3 when the running server is too old to be replaced: restart it.
    """
    from unmoor.dns.control import ask  # noqa: PLC0415 - keeps `unmoor --help` quick

    wanted = (program or Path(sys.argv[0])).resolve()
    running = ask(control, "status").data
    if "program" not in running:
        click.echo("the running server cannot be replaced while it runs; restart it", err=True)
        sys.exit(3)
    if running["program"] == str(wanted):
        click.echo(f"no change: {wanted} is in force")
        return
    reply = ask(control, "upgrade", str(wanted))
    for line in reply.lines:
        click.echo(line, err=not reply.done)
    if not reply.done:
        click.echo("refused: the old release goes on answering", err=True)
        sys.exit(1)


@cli.command()
@_control_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--metrics", is_flag=True, help="Print Prometheus' text format.")
def status(control: Path, as_json: bool, metrics: bool) -> None:
    """Show the generation in force, the workers, and what was answered."""
    from unmoor.dns.control import ask  # noqa: PLC0415 - keeps `unmoor --help` quick
    from unmoor.dns.metrics import exposition  # noqa: PLC0415 - and this one

    data = ask(control, "status").data
    if metrics:
        click.echo(exposition(data), nl=False)
    elif as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        _show(data)


def _show(data: dict[str, Any]) -> None:
    pids = ", ".join(str(worker["pid"]) for worker in data["workers"])
    addresses = ", ".join(data["listen"])
    click.echo(f"{data['edge']} of PoP {data['pop']}, on {addresses} port {data['port']}")
    click.echo(f"generation {data['generation']}, up {data['uptime']:.0f} s")
    click.echo(f"{len(data['workers'])} workers (pid {pids}), {data['restarts']} restarted")
    click.echo(f"{data['zones']} zones, {data['hostnames']} hostnames")
    for title in ("policies", "rcodes", "events"):
        click.echo(f"{title}:")
        for name, count in data[title].items():
            click.echo(f"  {name:<24} {count:>14,}")
    for name, state in data.get("transfers", {}).items():  # a server of an older release says less
        click.echo(_transfer(name, state))
    if data["refused"]:
        click.echo(f"the last reload was refused: {data['refused']}")


def _transfer(name: str, state: dict[str, Any]) -> str:
    """One line about a zone or catalog that is transferred."""
    now, parts = time.time(), []
    if state["serial"] is None:
        parts.append("no copy yet")
    else:
        age, left = now - state["refreshed"], state["expires"] - now
        parts.append(f"serial {state['serial']}")
        parts.append(f"confirmed {age:.0f} s ago by {state['primary'] or 'a primary'}")
        parts.append("EXPIRED" if state["expired"] else f"expires in {left:.0f} s")
    parts.append(f"next check in {max(0.0, state['next'] - now):.0f} s")
    if state["error"]:
        parts.append(f"failed {state['failures']} times: {state['error']}")
    return f"{state['kind']} {name}: {', '.join(parts)}"
