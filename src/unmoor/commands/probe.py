"""`unmoor probe`: tests of a PoP from outside."""

from __future__ import annotations

import json
import os
import secrets
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from math import inf
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, TypeVar

import click

from unmoor.errors import InvalidInputError, Problem, UnmoorError
from unmoor.probe import reach as reach_probe
from unmoor.probe import uniformity as uniformity_probe
from unmoor.probe import watch as watch_probe
from unmoor.probe.clients.answer import Check, Expectation
from unmoor.probe.clients.dnsclient import DnsClient
from unmoor.probe.clients.dnswire import QueryType, question
from unmoor.probe.clients.engine import Settings
from unmoor.probe.clients.targets import blocks, check_size, read_ports, read_prefixes
from unmoor.probe.clients.via import read_gateways, via
from unmoor.probe.progress import progress
from unmoor.probe.results import chart, report
from unmoor.probe.results.pool import read_pool
from unmoor.probe.stop import stop_signals

F = TypeVar("F", bound=Callable[..., Any])

# The options of both commands that make connections.
_CONNECTION_OPTIONS = (
    click.option("--tcp", metavar="PORTS", default="", help="Ports without TLS: 80,8080,9000-9009."),
    click.option("--tls", metavar="PORTS", default="", help="Ports with TLS."),
    click.option(
        "--sni", metavar="NAME", default="", help="Server name to send, for which certificates must be valid."
    ),
    click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Certificates to trust (PEM) instead of the system's.",
    ),
    click.option(
        "--check",
        type=click.Choice(["http", "connect", "banner"]),
        default="http",
        show_default=True,
        help="What counts as an answer: an HTTP response, the connection (or handshake), a line on connect.",
    ),
    click.option(
        "--service",
        metavar="LABEL=PORTS",
        multiple=True,
        help="The service that must answer on these ports; repeatable.",
    ),
    click.option("--edge", metavar="NAME", default="", help="Require that this edge answers everything."),
    click.option(
        "--anonymous",
        is_flag=True,
        help="Accept answers without the names of edge, service and address.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0.01, 600),
        default=5.0,
        show_default=True,
        help="Seconds for one whole exchange.",
    ),
)
_VIA = click.option(
    "--via",
    "gateways",
    metavar="GATEWAY",
    multiple=True,
    help="Send this probe's packets through this on-link next hop; one for each family. Needs root.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _connection_options(function: F) -> F:
    for option in reversed(_CONNECTION_OPTIONS):
        function = option(function)
    return function


def _server_options(*, required: bool) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        function = click.option(
            "--port", type=click.IntRange(1, 65535), default=53, show_default=True, help="The servers' port."
        )(function)
        return click.option(
            "--server", metavar="ADDRESS", multiple=True, required=required, help="A DNS server; repeatable."
        )(function)

    return decorate


@click.group()
def cli() -> None:
    """Test a PoP from outside: whether every address answers, and whether DNS answers are spread evenly."""


@cli.command()
@click.argument("prefixes", metavar="PREFIX...", nargs=-1, required=True)
@_connection_options
@_VIA
@click.option(
    "--sample",
    type=click.IntRange(1),
    help="Addresses of each prefix, besides the ends of its range, instead of every IPv4 one.",
)
@click.option(
    "--sample6", type=click.IntRange(1), help="Addresses of each IPv6 prefix.  [default: --sample, or 256]"
)
@click.option("--seed", metavar="TEXT", help="Seed of the sample, to repeat it.  [default: random]")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4096),
    default=128,
    show_default=True,
    help="Connections at once, in all processes together.",
)
@click.option(
    "--processes", type=click.IntRange(1, 256), help="Worker processes.  [default: one for each core]"
)
@click.option(
    "--examples", type=click.IntRange(0), default=3, show_default=True, help="Examples shown for each cause."
)
@_JSON
@click.option("--quiet", is_flag=True, help="Show no progress.")
def reach(
    *,
    prefixes: Sequence[str],
    gateways: Sequence[str],
    sample: int | None,
    sample6: int | None,
    seed: str | None,
    concurrency: int,
    processes: int | None,
    examples: int,
    as_json: bool,
    quiet: bool,
    **connection: Any,
) -> None:
    """Connect to every (address, port) pair of PREFIX... and check that the right service answers.

    Every address of an IPv4 prefix is probed; of an IPv6 prefix, a seeded random sample and the ends of the
    range. The exit status is 1 if anything failed.
    """
    wanted = read_prefixes(prefixes)
    next_hops = read_gateways(gateways, wanted)
    plain, tls, settings = _connection(connection)
    seed = seed or secrets.token_hex(4)
    chosen = blocks(wanted, sample4=sample, sample6=sample6 or sample or 256, seed=seed)
    pairs = check_size(chosen, len(plain) + len(tls))
    with stop_signals() as stop, via(next_hops) as mark:
        plan = reach_probe.Plan(
            chosen,
            plain,
            tls,
            replace(settings, mark=mark),
            concurrency,
            min(processes or len(os.sched_getaffinity(0)), concurrency),
            examples,
        )
        with progress("reach", pairs, quiet=quiet) as show:
            tally = reach_probe.run(plan, show, stop)
    reached = report.Reached(tally, pairs, seed, stop.requested)
    _print(report.as_json(reached) if as_json else "\n".join(report.as_text(reached)))
    sys.exit(0 if reached.passed else 1)


@cli.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_server_options(required=True)
@click.option("--type", "kind", type=click.Choice(["A", "AAAA"]), default="A", show_default=True)
@click.option(
    "--queries",
    type=click.IntRange(1, 10_000_000),
    default=50_000,
    show_default=True,
    help="Number of queries.",
)
@click.option("--pool", metavar="PREFIX", multiple=True, help="A prefix of the expected pool; repeatable.")
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write a chart of the load to this file.",
)
@_VIA
@_JSON
@click.option("--quiet", is_flag=True, help="Show no progress.")
def uniformity(
    *,
    names: Sequence[str],
    server: Sequence[str],
    port: int,
    kind: QueryType,
    queries: int,
    pool: Sequence[str],
    svg: Path | None,
    gateways: Sequence[str],
    as_json: bool,
    quiet: bool,
) -> None:
    """Query NAME... repeatedly, and test that answers are spread evenly over the pool (chi-square).

    Several names, which must share a pool, are queried in turn. The exit status is 1 if a datagram was lost,
    an answer had no address or one outside of the pool, or p is below 1e-6.
    """
    numbered = read_pool(read_prefixes(pool, "--pool"), kind)
    questions = [question(name, kind) for name in names]
    servers = _servers(server)
    with (
        stop_signals() as stop,
        via(read_gateways(gateways, [ip_network(address) for address in servers])) as mark,
        closing(DnsClient(servers, port, mark=mark)) as client,
        progress("uniformity", queries, quiet=quiet) as show,
    ):
        spread = uniformity_probe.ask(client, questions, queries, show, stop)
    verdict = uniformity_probe.judge(spread, numbered)
    loads = verdict.loads
    over = verdict.cells[0].over if verdict.cells else "addresses seen"
    if svg is not None and loads:
        subtitle = f"{spread.answered:,} answers to {kind} queries, over {len(loads):,} {over}"
        svg.write_text(chart.svg(loads, "DNS answers for each address, sorted", subtitle, over), "utf-8")
    if as_json:
        _print(uniformity_probe.as_json(verdict))
    else:
        drawn = chart.terminal(loads, f"answers for each of {len(loads)} {over}, sorted") if loads else ()
        _print("\n".join([*uniformity_probe.as_text(verdict), *drawn]))
    sys.exit(0 if verdict.passed else 1)


@cli.command()
@click.argument("prefixes", metavar="PREFIX...", nargs=-1, required=True)
@_connection_options
@_server_options(required=False)
@click.option("--name", "names", metavar="NAME", multiple=True, help="A hostname to query; repeatable.")
@click.option("--seconds", type=click.FloatRange(0.1), help="Stop after this time.  [default: on a signal]")
@click.option("--until-file", type=click.Path(path_type=Path), help="Stop when this file exists.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 2000),
    default=100.0,
    show_default=True,
    help="Connections per second.",
)
@click.option(
    "--query-rate",
    type=click.FloatRange(0.1, 2000),
    default=50.0,
    show_default=True,
    help="Queries per second.",
)
@click.option("--seed", metavar="TEXT", help="Seed of the addresses, to repeat them.  [default: random]")
@_VIA
@_JSON
def watch(
    *,
    prefixes: Sequence[str],
    server: Sequence[str],
    port: int,
    names: Sequence[str],
    seconds: float | None,
    until_file: Path | None,
    rate: float,
    query_rate: float,
    seed: str | None,
    gateways: Sequence[str],
    as_json: bool,
    **connection: Any,
) -> None:
    """Connect to random addresses of PREFIX..., query DNS, and connect to the answers, all the time.

    Stop after --seconds, when --until-file exists, or on SIGINT or SIGTERM; then print each failure with its
    time. The exit status is 1 if anything failed.
    """
    wanted = read_prefixes(prefixes)
    plain, tls, settings = _connection(connection)
    kinds: dict[int, QueryType] = {4: "A", 6: "AAAA"}
    questions = [
        question(name, kinds[version]) for name in names for version in sorted({p.version for p in wanted})
    ]
    servers = _servers(server)
    if bool(questions) != bool(servers):
        missing = "--server" if questions else "--name"
        raise InvalidInputError(
            [Problem("", missing, "", "is missing", "give both --server and --name, or none")]
        )
    next_hops = read_gateways(gateways, [*wanted, *(ip_network(address) for address in servers)])
    until = monotonic() + seconds if seconds else inf
    with stop_signals() as stop, via(next_hops) as mark, ExitStack() as stack:
        client = stack.enter_context(closing(DnsClient(servers, port, mark=mark))) if servers else None
        load = watch_probe.Load(wanted, plain, tls, questions, rate, query_rate, 256, Random(seed))  # noqa: S311 - repeatable by its seed
        click.echo("watching", err=True)
        watched = watch_probe.run(
            load,
            replace(settings, mark=mark),
            client,
            lambda: (
                stop.requested or monotonic() >= until or (until_file is not None and until_file.exists())
            ),
        )
    _print(watch_probe.as_json(watched) if as_json else "\n".join(watch_probe.as_text(watched)))
    sys.exit(0 if watched.passed else 1)


def _servers(texts: Sequence[str]) -> list[IPv4Address | IPv6Address]:
    servers = []
    for text in texts:
        try:
            servers.append(ip_address(text))
        except ValueError:
            raise InvalidInputError(
                [Problem("", "--server", text, "is not an IP address", "write it as in 198.51.100.53")]
            ) from None
    return servers


def _print(shown: dict[str, object] | str) -> None:
    click.echo(shown if isinstance(shown, str) else json.dumps(shown, indent=2))


def _connection(options: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], Settings]:
    """Return ports without TLS, ports with TLS, and settings. Raises InvalidInputError."""
    plain, tls = read_ports(options["tcp"], "--tcp"), read_ports(options["tls"], "--tls")
    problems = [
        Problem("", "--tls", str(port), "is also named by --tcp", "name each port once")
        for port in sorted(set(plain) & set(tls))
    ]
    if not plain and not tls:
        problems.append(Problem("", "--tcp", "", "no port to connect to", "name ports with --tcp or --tls"))
    if problems:
        raise InvalidInputError(problems)
    check: Check = options["check"]
    settings = Settings(
        check=check,
        expectation=Expectation(_services(options["service"]), options["edge"], options["anonymous"]),
        timeout=options["timeout"],
        tls=_tls_context(options["sni"], options["ca"]) if tls else None,
        name=options["sni"],
    )
    return plain, tls, settings


def _services(texts: Sequence[str]) -> dict[int, str]:
    services: dict[int, str] = {}
    for text in texts:
        label, equals, ports = text.partition("=")
        if not (label and equals and ports):
            raise InvalidInputError(
                [Problem("", "--service", text, "is not LABEL=PORTS", "write it as in web-http=80,8080")]
            )
        for port in read_ports(ports, "--service"):
            if services.setdefault(port, label) != label:
                raise InvalidInputError(
                    [
                        Problem(
                            "",
                            "--service",
                            text,
                            f"port {port} belongs to {services[port]} already",
                            "name it once",
                        )
                    ]
                )
    return services


def _tls_context(name: str, authority: Path | None) -> ssl.SSLContext:
    """Return a context that verifies certificates; without `name`, it verifies only their chain."""
    context = ssl.create_default_context()
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError:
            raise UnmoorError(
                f"--ca {authority}: has no certificate in PEM form; name the authority's file"
            ) from None
    context.check_hostname = bool(name)
    return context
