"""`unmoor dns`: the authoritative randomizer."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unmoor import paths
from unmoor.commands.dns import registry
from unmoor.commands.dns.export import export
from unmoor.commands.dns.options import config_option, state_option
from unmoor.commands.endpoints import Endpoint, endpoints
from unmoor.commands.table import print_table
from unmoor.errors import InvalidInputError, UnmoorError
from unmoor.model import DnsDocument, load

if TYPE_CHECKING:
    from unmoor.dns.counters.rates import Rates

_control_option = click.option(
    "--control",
    type=click.Path(path_type=Path),
    default=paths.DNS_CONTROL_SOCKET,
    show_default=True,
    help="The server's control socket.",
)


@click.group()
def cli() -> None:
    """The authoritative DNS randomizer: policies answer with a fresh address of a pool."""


cli.add_command(registry.cli, "registry")
cli.add_command(export)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default=paths.DNS_DOCUMENT)
@click.option("--all", "everything", is_flag=True, help="List every problem, not the first screen of them.")
def check(file: Path, everything: bool) -> None:
    """Validate all of FILE: schema, zones, hostnames, pools, policies. Exit status 2 if anything is wrong."""
    from unmoor.dns.check import check  # noqa: PLC0415 - dnspython is loaded only where it is needed
    from unmoor.dns.parse.document import parse  # noqa: PLC0415

    document = load(DnsDocument, file)
    parsed = parse(document)
    problems = check.check(parsed).problems(str(file))
    if everything and problems:
        for problem in problems:
            click.echo(problem, err=True)
        sys.exit(2)
    if problems:
        raise InvalidInputError(problems)
    click.echo(
        f"{file}: correct: {len(parsed.content.zones)} zones, {parsed.count} hostnames, "
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
    """Show which policy answers a query for NAME, why, and with what.

    Reads the document, not the server, so it can be used before a document is in force.
    """
    from unmoor.dns.answer.explain import explain  # noqa: PLC0415
    from unmoor.dns.zones.catalog import served  # noqa: PLC0415 - dnspython is loaded only where it is needed
    from unmoor.dns.zones.zone_store import Store  # noqa: PLC0415

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
@click.option("--resume", type=int, hidden=True, help="Descriptor of the running server's handover.")
def serve(config: Path, control: Path, state: Path, resume: int | None) -> None:
    """Answer queries until SIGTERM; SIGHUP reloads."""
    from unmoor.dns.server.server import Server  # noqa: PLC0415 - the other commands need none of it

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    Server(config, control, resume, state).run()


@cli.command()
@_control_option
def reload(control: Path) -> None:
    """Bring the document on disk into force, wait until it is, and show what changed.

    Exit status 1, with the reasons, if the document is refused: the old one stays in force.
    """
    from unmoor.dns.server.control import ask  # noqa: PLC0415 - keeps `unmoor --help` quick

    reply = ask(control, "reload")
    for line in reply.lines:
        click.echo(line, err=not reply.done)
    if not reply.done:
        click.echo("refused: the old configuration stays in force", err=True)
        sys.exit(1)
    with suppress(UnmoorError):  # a server of an older release passes no sockets
        _enlarge(control)


@cli.command()
@_control_option
def buffers(control: Path) -> None:
    """Give the server's UDP sockets buffers of 4 MB. Requires CAP_NET_ADMIN, which the server lacks.

    `reload` and `upgrade` do the same if run as root. Exit status 1 if a buffer stays smaller.
    """
    from unmoor.dns.server.control import ask  # noqa: PLC0415 - keeps `unmoor --help` quick

    _enlarge(control)
    found = ask(control, "status").data
    if found["shortage"]:
        click.echo(found["shortage"], err=True)
        sys.exit(1)
    click.echo("UDP buffers: " + ", ".join(f"{name} {size:,}" for name, size in found["buffers"].items()))


def _enlarge(control: Path) -> None:
    """Enlarge the buffers of the server's UDP sockets, as far as this user may."""
    from unmoor.dns.server.control import borrow  # noqa: PLC0415 - keeps `unmoor --help` quick
    from unmoor.udp import enlarge_buffers  # noqa: PLC0415 - likewise

    for sock in borrow(control):
        with sock:
            enlarge_buffers(sock)


@cli.command()
@_control_option
@click.option(
    "--program",
    type=click.Path(path_type=Path),
    help="bin/unmoor of another release than that of this command.",
)
def upgrade(control: Path, program: Path | None) -> None:
    """Replace the running server by this release, without losing a query.

    Exit status 1, with the reasons, if the new release fails: the old one stays in force. Exit status 3 if
    the running server is too old to be replaced: restart it.
    """
    from unmoor.dns.server.control import ask  # noqa: PLC0415 - keeps `unmoor --help` quick

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
        click.echo("refused: the old release stays in force", err=True)
        sys.exit(1)
    with suppress(UnmoorError):  # a release from before this one passes no sockets
        _enlarge(control)


@cli.command()
@_control_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--metrics", is_flag=True, help="Print Prometheus' text format.")
@click.option("--text", is_flag=True, help="With --json: the document in force as well. It may hold secrets.")
def status(control: Path, as_json: bool, metrics: bool, text: bool) -> None:
    """Show the generation in force, the workers, and what was answered."""
    from unmoor.dns.observe.metrics import exposition  # noqa: PLC0415 - likewise
    from unmoor.dns.server.control import ask  # noqa: PLC0415 - keeps `unmoor --help` quick

    data = ask(control, "status").data
    if metrics:
        click.echo(exposition(data), nl=False)
    elif as_json:
        if text and "document" in data:  # a server of an older release does not report it
            data["text"] = ask(control, "document").data
        click.echo(json.dumps(data, indent=2))
    else:
        _show(data)


@cli.command()
@_control_option
@click.option("--listen", multiple=True, callback=endpoints, help="Serve /metrics at ADDRESS:PORT.")
@click.option("--addresses", is_flag=True, help="A sample for each address, too.")
def metrics(control: Path, listen: list[Endpoint], addresses: bool) -> None:
    """Print the server's counters for Prometheus, or serve them over HTTP."""
    from unmoor.commands.exporter import expose  # noqa: PLC0415 - keeps `unmoor --help` quick
    from unmoor.dns.observe.metrics import registry  # noqa: PLC0415 - likewise
    from unmoor.dns.server.control import ask  # noqa: PLC0415 - likewise

    found = registry(
        lambda: ask(control, "status").data, (lambda: ask(control, "addresses").data) if addresses else None
    )
    expose(found, listen)


@cli.command()
@_control_option
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many screens.")
@click.option("--rows", type=click.IntRange(min=1), default=10, show_default=True, help="Addresses shown.")
@click.option("--total", is_flag=True, help="All since the server began, at once, instead of rates.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every address that was given.")
def top(control: Path, interval: float, count: int | None, rows: int, total: bool, as_json: bool) -> None:
    """Show how often policies answered and addresses were given, and how evenly."""
    from unmoor.dns.counters import rates  # noqa: PLC0415 - keeps `unmoor --help` quick
    from unmoor.dns.server.control import ask  # noqa: PLC0415 - likewise

    def read() -> Any:
        return ask(control, "addresses").data

    if not read()["counted"]:
        click.echo("addresses are not counted: count_addresses is false in the document", err=True)
    for number, found in enumerate([rates.total(read())] if total else rates.rates(read, interval), 1):
        if as_json:
            click.echo(json.dumps(found.as_json()))
        else:
            _show_rates(found, rows, clear=not total and sys.stdout.isatty())
        if number == count:
            return


def _show_rates(found: Rates, rows: int, clear: bool) -> None:
    if clear:
        click.clear()
    print_table(("policy", "answers", "per second"), found.policy_cells())
    if found.addresses:
        print_table(("address", "given", "per second"), found.address_cells(rows))
    if found.evenness:
        print_table(("pool", "family", "counted by", "least", "mean", "most"), found.evenness_cells())


@cli.command()
@click.argument("address", required=False)
@click.argument("time", required=False)
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def journal(address: str | None, time: str | None, state: Path, as_json: bool) -> None:
    """Show which policies answered with ADDRESS, when, or at TIME; without ADDRESS, list changes.

    TIME is a date or time of ISO 8601, in UTC unless it has an offset. The journal covers this edge only;
    other edges have their own.
    """
    from unmoor.dns.observe import history  # noqa: PLC0415 - keeps `unmoor --help` quick

    target, moment = _address(address), history.parse_time(time) if time else None
    found = history.read(state)
    for problem in found.unreadable:
        click.echo(f"warning: {problem}; it is left out", err=True)
    if as_json:
        click.echo(json.dumps(history.as_json(found, target, moment), indent=2))
        return
    for line in history.lines(found, target, moment) if target else history.change_lines(found):
        click.echo(line)


def _address(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text) if text else None
    except ValueError:
        raise UnmoorError(
            f"ADDRESS = {text}: is no IP address\n    fix: write one, as 198.18.3.7 or 2001:db8::1"
        ) from None


def _show(data: dict[str, Any]) -> None:
    pids = ", ".join(str(worker["pid"]) for worker in data["workers"])
    addresses = ", ".join(data["listen"])
    click.echo(f"{data['edge']} of PoP {data['pop']}, on {addresses} port {data['port']}")
    click.echo(f"generation {data['generation']}, up {data['uptime']:.0f} s")
    if "document" in data:
        click.echo(f"document {data['document']} (sha256)")
        if half := [each for each in data["workers"] if each["document"] != data["document"]]:
            click.echo(f"workers with another document: {', '.join(str(each['pid']) for each in half)}")
    click.echo(f"{len(data['workers'])} workers (pid {pids}), {data['restarts']} restarted")
    click.echo(f"{data['zones']} zones, {data['hostnames']} hostnames")
    for title in ("policies", "rcodes", "events"):
        click.echo(f"{title}:")
        for name, count in data[title].items():
            click.echo(f"  {name:<24} {count:>14,}")
    for name, state in data.get("transfers", {}).items():  # a server of an older release reports less
        click.echo(_transfer(name, state))
    if data.get("journal", {}).get("failure"):
        click.echo(data["journal"]["failure"])
    if data.get("shortage"):
        click.echo(data["shortage"])
    if data["refused"]:
        click.echo(f"the last reload was refused: {data['refused']}")


def _transfer(name: str, state: dict[str, Any]) -> str:
    """Describe a transferred zone or catalog in one line."""
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
