"""`unmoor lab`: virtual hosts on one computer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from unmoor.errors import UnmoorError
from unmoor.lab import guest, image, lab, topology
from unmoor.lab.layout import Layout
from unmoor.lab.requirements import require_programs, require_root

F = TypeVar("F", bound=Callable[..., Any])


def _name(function: F) -> F:
    return click.option(
        "--name", envvar="UNMOOR_LAB", default="pop", show_default=True, help="Name of the lab ($UNMOOR_LAB)."
    )(function)


def _topology(function: F) -> F:
    return click.option(
        "--topology",
        "topology_file",
        type=click.Path(path_type=Path),
        help=f"File of the hosts and networks. Default: {topology.DEFAULT}, in this directory or above.",
    )(function)


def _report(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def cli() -> None:
    """Virtual hosts on one computer: edges, a router, a client."""


@cli.command()
@_name
@_topology
@click.option(
    "--image",
    "kind",
    type=click.Choice(["golden", "bare"]),
    default="golden",
    show_default=True,
    help="Boot with the roles' packages installed, or as a fresh machine.",
)
def up(name: str, topology_file: Path | None, kind: lab.Kind) -> None:
    """Build the lab if it does not exist, and wait until every host has booted."""
    place, wanted = Layout(name), topology.load(topology.find(topology_file))
    begun = time.monotonic()
    lab.up(place, wanted, kind, _report)
    click.echo(f"lab {name}: {len(wanted.hosts)} hosts up in {time.monotonic() - begun:.1f} s")
    click.echo(f"  unmoor lab shell {next(iter(wanted.hosts))}" + f" --name {name}" * (name != "pop"))
    click.echo(f"  ssh -F {place.ssh_config} {next(iter(wanted.hosts))}")


@cli.command()
@_name
@click.option("--all", "everything", is_flag=True, help="Every lab on this computer.")
def down(name: str, everything: bool) -> None:
    """Remove the lab completely, even if it is broken."""
    for each in lab.names() if everything else [name]:
        lab.down(Layout(each))
        click.echo(f"lab {each} is down")


@cli.command()
@_name
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str, as_json: bool) -> None:
    """Show the state of the hosts; exit with status 1 unless all are running."""
    place = Layout(name)
    try:
        hosts = lab.status(place)
    except UnmoorError as error:
        hosts = []
        _report(f"unmoor: {error}")
    if as_json:
        shown = {
            "lab": name,
            "ssh_config": str(place.ssh_config),
            "hosts": [asdict(host) for host in hosts],
        }
        click.echo(json.dumps(shown, indent=2))
    else:
        for host in hosts:
            addresses = " ".join(address for group in host.addresses.values() for address in group)
            click.echo(f"{host.host:14} {host.phase:8} {host.system:9} boots {host.boots:<3} {addresses}")
    sys.exit(not hosts or any(host.phase != "ready" for host in hosts))


@cli.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_name
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND as root in HOST and return its exit status."""
    # Options end at HOST, so a '--' between HOST and COMMAND is not removed by click.
    _enter(name, host, command[command[0] == "--" :])


@cli.command()
@_name
@click.argument("host")
def shell(name: str, host: str) -> None:
    """Open a login shell in HOST."""
    _enter(name, host, ("bash", "--login"))


def _enter(name: str, host: str, command: tuple[str, ...]) -> None:
    place = Layout(name)
    hosts = lab.record(place).topology.hosts
    if host not in hosts:
        raise UnmoorError(f"lab {name} has no host '{host}': it has {', '.join(hosts)}")
    guest.execute(place, host, command)


@cli.command("image")
@_topology
def image_(topology_file: Path | None) -> None:
    """Build the image of the hosts if it does not exist, and print its path."""
    require_root()
    require_programs()
    with image.ready(topology.load(topology.find(topology_file)).image) as path:
        click.echo(path)
