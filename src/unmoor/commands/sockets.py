"""`unmoor sockets`: the dispatch table, registered sockets, and counters."""

from __future__ import annotations

import gc
import ipaddress
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unmoor import paths, systemd
from unmoor.bpf import pins as pinned
from unmoor.bpf.kernel import kernel_error
from unmoor.commands.endpoints import Endpoint, endpoints, parse_endpoint
from unmoor.commands.registration import command as registration
from unmoor.commands.registration.options import ACTIVATION, REGISTER, UNREGISTER, Option
from unmoor.commands.table import print_table as _print_table
from unmoor.errors import UnmoorError

if TYPE_CHECKING:
    from unmoor.model import EdgeDocument
    from unmoor.sockets.dispatch.generation import Change

_PATH = click.Path(path_type=Path)
_pins = click.option(
    "--pins",
    type=click.Path(path_type=Path, readable=False),  # without permission, the error names the fix
    default=paths.PINS,
    show_default=True,
    help="Directory of the pins, on a bpffs.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_TYPES: dict[Any, Any] = {int: int, float: float, Path: _PATH}


def _options(options: Sequence[Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the service and these options to a command."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = _option(option)(function)
        return click.argument("service")(function)

    return add


def _option(option: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        option.flag,
        option.name,
        type=click.Choice(option.choices) if option.choices else _TYPES.get(option.parse),
        callback=endpoints if option.parse is parse_endpoint else None,
        default=option.default,
        show_default=option.default is not None,
        multiple=option.multiple,
        help=option.help,
    )


class _Sockets(click.Group):
    """Reports an error of the kernel in one line with its fix."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise kernel_error(error) from None


@click.group(cls=_Sockets)
def cli() -> None:
    """The sk_lookup half: dispatch table, sockets, counters."""


@cli.command("compile")
@click.option(
    "--output", type=_PATH, default=Path("dispatch.o"), show_default=True, help="The file to write."
)
@click.option("--follow", is_flag=True, help="Compile the program for register --follow instead.")
def compile_command(output: Path, follow: bool) -> None:
    """Compile the dispatch program to a BPF object."""
    from unmoor.bpf.compiler import compile_program  # noqa: PLC0415 - a listener's unit needs none of it
    from unmoor.sockets.activation.follow import SOURCE  # noqa: PLC0415 - see load

    compile_program(output, source=SOURCE if follow else None)
    click.echo(f"compiled {output} ({output.stat().st_size} bytes)")


@cli.command()
@click.option(
    "--config", type=_PATH, default=paths.EDGE_DOCUMENT, show_default=True, help="The document to load."
)
@click.option(
    "--object", "object_file", type=_PATH, help="The compiled program; without it, it is compiled now."
)
@click.option(
    "--netns", type=_PATH, help="Network namespace, such as /run/netns/NAME; by default the caller's."
)
@click.option("--check", is_flag=True, help="Only print what would change.")
@_json
@_pins
def load(
    config: Path, object_file: Path | None, netns: Path | None, check: bool, as_json: bool, pins: Path
) -> None:
    """Load CONFIG as the new dispatch table, in one atomic step."""
    from unmoor.sockets.dispatch import generation  # noqa: PLC0415 - a listener's unit needs none of it

    edge, code = _edge(config), _object(object_file)
    apply = generation.plan if check else generation.load
    change = apply(edge, code, pinned.Pins(pins), netns or generation.OWN_NETNS)
    for repair in change.repairs:
        click.echo(f"{'would repair' if check else 'repaired'}: {repair}", err=True)
    _print_change(change, check, as_json)


def _edge(config: Path) -> EdgeDocument:
    from unmoor.model import EdgeDocument, load  # noqa: PLC0415 - pydantic takes long to import

    gc.disable()  # nothing that is read is garbage, and collecting would take half of the time
    return load(EdgeDocument, config)


def _object(object_file: Path | None, source: Path | None = None) -> bytes:
    if object_file is None:
        from unmoor.bpf.compiler import compile_program  # noqa: PLC0415 - rarely needed

        with tempfile.TemporaryDirectory(prefix="unmoor-") as directory:
            compiled = Path(directory) / "dispatch.o"
            compile_program(compiled, source=source)
            return compiled.read_bytes()
    try:
        return object_file.read_bytes()
    except OSError as error:
        raise UnmoorError(
            f"cannot read {object_file} ({error.strerror}); "
            f"create it: unmoor sockets compile --output {object_file}"
        ) from None


_SHOWN = 40


def _print_change(change: Change, check: bool, as_json: bool) -> None:
    from unmoor.sockets.observe.status import binding_as_json  # noqa: PLC0415 - see load

    if as_json:
        click.echo(
            json.dumps(
                {
                    "changed": change.changed,
                    "added": [binding_as_json(binding) for binding in change.added],
                    "removed": [binding_as_json(binding) for binding in change.removed],
                    "program": "new" if change.new_program else "same",
                    "repairs": list(change.repairs),
                }
            )
        )
        return
    if not change.changed:
        click.echo("no change")
        return
    lines = chain(
        (f"+ {_line(binding)}" for binding in change.added),
        (f"- {_line(binding)}" for binding in change.removed),
    )
    for line in islice(lines, _SHOWN):  # of a hundred thousand, create only those that are shown
        click.echo(line)
    more = len(change.added) + len(change.removed) - _SHOWN
    if more > 0:
        click.echo(f"... and {more} more")
    summary = f"{len(change.added)} bindings added, {len(change.removed)} removed"
    summary += ", new program" if change.new_program else ""
    click.echo(f"{'would change: ' if check else ''}{summary}")


def _line(binding: Any) -> str:
    ports = str(binding.first_port)
    if binding.last_port != binding.first_port:
        ports = (
            "any" if (binding.first_port, binding.last_port) == (0, 65535) else f"{ports}-{binding.last_port}"
        )
    at = f" on {binding.interface}" if binding.interface else ""
    return f"{binding.protocol} {binding.prefix} {ports}{at} -> {binding.service}"


@cli.command()
@click.argument("file", type=_PATH, default=paths.EDGE_DOCUMENT)
@_json
@_pins
def diff(file: Path, as_json: bool, pins: Path) -> None:
    """Print what loading FILE would change. Exit status 1 if it would change anything."""
    from unmoor.sockets.dispatch import generation  # noqa: PLC0415 - see load

    change = generation.plan(_edge(file), None, pinned.Pins(pins))
    _print_change(change, True, as_json)
    sys.exit(1 if change.changed else 0)


@cli.command()
@click.argument("kind", metavar="PROTO", type=click.Choice(["tcp", "udp"]))
@click.argument("address")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--interface", default="", help="The interface that the packet arrives by.")
@_json
@_pins
@_option(ACTIVATION)
def explain(
    kind: Any, address: str, port: int, interface: str, as_json: bool, pins: Path, activation: Path
) -> None:
    """Print which binding, service and socket would take a packet, and why. Exit status 1 if none would."""
    from unmoor.sockets.activation.explain import explain as ask  # noqa: PLC0415 - see load
    from unmoor.sockets.observe.status import binding_as_json  # noqa: PLC0415 - see load

    try:
        target = ipaddress.ip_address(address)
    except ValueError:
        raise UnmoorError(f"{address!r} is not an IP address, such as 198.18.3.7 or 2001:db8::1") from None
    found = ask(pinned.Pins(pins), kind, target, port, interface, activation)
    if as_json:
        binding = binding_as_json(found.binding) if found.binding else None
        losers = [binding_as_json(each) for each in found.losers]
        click.echo(json.dumps({**found.as_json(), "binding": binding, "also_matching": losers}))
    else:
        click.echo(f"{kind} {target} port {port}: {found.verdict}")
        if found.binding:
            click.echo(f"  binding  {_line(found.binding)}")
        if found.cookie:
            click.echo(f"  socket   {found.cookie:x}")
        click.echo(f"  because  {found.why}")
        for each in found.losers:
            click.echo(f"  instead of  {_line(each)}")
    sys.exit(0 if found.reached else 1)


@cli.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between screens.",
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after this number of screens.")
@click.option(
    "--rows", type=click.IntRange(min=1), default=10, show_default=True, help="Number of addresses to show."
)
@_json
@_pins
def top(interval: float, count: int | None, rows: int, as_json: bool, pins: Path) -> None:
    """Show the current rates of services and addresses."""
    from unmoor.sockets.observe.rates import Rates, measure_rates  # noqa: PLC0415 - see load

    def show(found: Rates) -> None:
        if as_json:
            click.echo(json.dumps(found.as_json()))
            return
        if sys.stdout.isatty():
            click.clear()
        _print_table(("service", "lookups/s", "misses/s", "errors/s"), found.service_cells())
        _print_table(("address", "lookups/s"), found.address_cells(rows))

    for number, found in enumerate(measure_rates(pinned.Pins(pins), interval), 1):
        show(found)
        if number == count:
            return


@cli.command()
@click.option("--listen", multiple=True, callback=endpoints, help="Serve /metrics at ADDRESS:PORT.")
@click.option("--addresses", is_flag=True, help="Include a sample for each address.")
@_pins
def metrics(listen: list[Endpoint], addresses: bool, pins: Path) -> None:
    """Print the counters for Prometheus, or serve them."""
    from unmoor.commands.exporter import expose  # noqa: PLC0415 - see load
    from unmoor.sockets.observe.metrics import collector_registry  # noqa: PLC0415 - see load

    expose(collector_registry(pinned.Pins(pins), addresses), listen)


@cli.command()
@_pins
def unload(pins: Path) -> None:
    """Detach the program and unpin everything."""
    from unmoor.sockets.dispatch.generation import unload as remove  # noqa: PLC0415 - see load

    click.echo("unloaded" if remove(pinned.Pins(pins)) else "nothing was loaded")


@cli.command()
@_pins
def rollback(pins: Path) -> None:
    """Switch back to the previous generation."""
    from unmoor.sockets.dispatch.generation import rollback as switch_back  # noqa: PLC0415 - see load

    click.echo(f"generation {switch_back(pinned.Pins(pins)).generation} is live again")


@cli.command()
@_options(REGISTER)
@click.option("--follow", is_flag=True, help="Run until the process ends, and register what it opens later.")
@click.option(
    "--object",
    "object_file",
    type=_PATH,
    help="The compiled program `follow` for --follow; without it, it is compiled now.",
)
@_pins
def register(follow: bool, object_file: Path | None, pins: Path, **values: Any) -> None:
    """Register sockets for SERVICE, from a running process or passed by systemd (LISTEN_FDS)."""
    if not follow:
        registration.register(**values)
        return
    from unmoor.sockets.activation.follow import SOURCE  # noqa: PLC0415 - see load

    registration.follow(**values, pins=pinned.Pins(pins), code=_object(object_file, SOURCE))


@cli.command()
@_options(UNREGISTER)
def unregister(**values: Any) -> None:
    """Remove all sockets of SERVICE: its addresses refuse connections from then on."""
    registration.unregister(**values)


@cli.command()
@_pins
@_option(ACTIVATION)
def serve(pins: Path, activation: Path) -> None:
    """Run the activation service."""
    from unmoor.sockets.activation.registrar import Registrar  # noqa: PLC0415 - see load
    from unmoor.sockets.activation.service import Activation, open_listener  # noqa: PLC0415 - see load

    try:
        listening = open_listener(activation)
    except OSError as error:
        raise UnmoorError(f"cannot listen at {activation}: {error.strerror}") from None
    Activation(Registrar(pinned.Pins(pins)), listening).serve()


@cli.command()
@_json
@_pins
def status(as_json: bool, pins: Path) -> None:
    """Show bindings in order of precedence, and each service's sockets and counters."""
    from unmoor.sockets.observe.status import read_status  # noqa: PLC0415 - see load

    found = read_status(pinned.Pins(pins))
    if as_json:
        click.echo(json.dumps(found.as_json()))
        return
    click.echo(f"generation {found.record.generation}, program {found.record.program[:12]}")
    if found.foreign:
        numbers = ", ".join(map(str, found.foreign))
        click.echo(
            f"warning: other sk_lookup programs are attached here: {numbers} (bpftool prog show id ...)"
        )
    _print_table(
        ("protocol", "prefix", "port", "service"),
        [_cells(binding) for binding in found.bindings],
    )
    _print_table(
        ("service", "id", "protocol", "family", "sockets", "lookups", "misses", "errors"),
        [
            (
                each.service,
                str(each.id),
                each.protocol,
                f"ipv{each.family}",
                " ".join(f"{cookie:x}" for cookie in each.sockets) or "none",
                str(each.counters["lookups"]),
                str(each.counters["misses"]),
                str(each.errors),
            )
            for each in found.destinations
        ],
    )


def _cells(binding: Any) -> tuple[str, ...]:
    kind, prefix, rest = _line(binding).split(" ", 2)
    ports, _, service = rest.partition(" -> ")
    return kind, prefix, ports, service


@cli.command()
@click.option("--edge", default=socket.gethostname, help="The name of the edge; by default the host name.")
def whoami(edge: str) -> None:
    """Serve sockets passed by systemd: send each client the edge, address and port that it reached."""
    from unmoor.sockets.whoami import Whoami  # noqa: PLC0415 - see load

    descriptors = systemd.listen_descriptors()
    if not descriptors:
        raise UnmoorError(
            f"no sockets (LISTEN_FDS) for process {os.getpid()}: start this from a unit with a .socket unit"
        )
    Whoami(edge, [socket.socket(fileno=descriptor) for descriptor in descriptors]).serve()
