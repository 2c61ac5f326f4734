"""`unmoor dns registry`: build, update and show the file of hostnames."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import click

from unmoor.errors import UnmoorError

_skip_option = click.option("--skip-bad", is_flag=True, help="Leave bad lines out and write the rest.")
_bad_option = click.option(
    "--bad",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the number and fault of every bad line to this file.",
)
_quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")


@click.group()
def cli() -> None:
    """Registries: millions of hostnames and their tags in one file, mapped by all workers."""


@cli.command()
@click.argument("file")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default="hostnames.registry",
    show_default=True, help="The registry to write.",
)  # fmt: skip
@click.option("--zone", "zones", multiple=True, required=True, help="A zone of the names; repeatable.")
@_skip_option
@_bad_option
@_quiet_option
def build(
    file: str, output: Path, zones: tuple[str, ...], skip_bad: bool, bad: Path | None, quiet: bool
) -> None:
    """Build a registry from FILE, CSV or JSON lines ('-' is standard input; gzip is read as well).

    CSV begins with its columns: name, and one for each tag. A JSON line is {"name": ..., "tags": {...}}.
    """
    from unmoor.dns.hostnames import registry_build  # noqa: PLC0415 - the other commands do not need it
    from unmoor.dns.hostnames.registry_list import BadLines, count_lines, read_lines  # noqa: PLC0415 - as above

    apexes = [_name(zone, "--zone") for zone in zones]
    total = count_lines(file)
    with _record(bad) as record, _phases(quiet) as show:
        found = BadLines(file, record)
        lines = read_lines(file, found, show=lambda done: show("reading", done, total))
        summary = registry_build.build(lines, apexes, output, found, skip_bad=skip_bad, show=show)
    _skipped(found)
    _written(output, summary)


@cli.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("changes")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The registry to write.",
)
@_skip_option
@_bad_option
@_quiet_option
def update(old: Path, changes: str, output: Path, skip_bad: bool, bad: Path | None, quiet: bool) -> None:
    """Apply CHANGES to the registry OLD; CHANGES is a list as for build, with a column `action`.

    The action is add, change or remove. A few thousand changes take seconds, whatever the registry's size.
    """
    from unmoor.dns.hostnames import registry_update  # noqa: PLC0415 - the other commands do not need it
    from unmoor.dns.hostnames.registry import open_registry  # noqa: PLC0415 - as above
    from unmoor.dns.hostnames.registry_list import BadLines, read_lines  # noqa: PLC0415 - as above

    registry = open_registry(old)
    with _record(bad) as record, _phases(quiet) as show:
        found = BadLines(changes, record)
        lines = read_lines(changes, found, registry_update.ACTIONS)
        summary, done = registry_update.update(registry, lines, output, found, skip_bad=skip_bad, show=show)
    _skipped(found)
    click.echo(", ".join(f"{action} {done[action]}" for action in registry_update.ACTIONS))
    _written(output, summary)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: Path, name: str | None, as_json: bool) -> None:
    """Show a summary of the registry FILE, or its entry for NAME (exit status 1 if there is none)."""
    from unmoor.dns.hostnames.registry import open_registry  # noqa: PLC0415 - keeps `unmoor --help` quick

    registry = open_registry(file)
    if name is not None:
        data, lines = _of_name(registry, _name(name, "NAME"))
    else:
        data, lines = _of_file(registry)
    for line in [json.dumps(data, indent=2)] if as_json else lines:
        click.echo(line)
    if name is not None and not data["registered"] and not data["exists"]:
        sys.exit(1)


def _of_file(registry: Any) -> tuple[dict[str, Any], list[str]]:
    from unmoor.dns.hostnames.registry import sha256_of  # noqa: PLC0415 - as above
    from unmoor.dns.protocol import names  # noqa: PLC0415 - keeps `unmoor --help` quick

    kinds = [
        {"zone": names.to_text(each.apex), "tags": dict(sorted(each.tags)), "count": each.count,
         "example": names.to_text(each.example)}
        for each in sorted(registry.kinds.values(), key=lambda each: -each.count)
    ]  # fmt: skip
    data = {
        "hostnames": len(registry),
        "interior": registry.interior,
        "zones": [names.to_text(zone) for zone in registry.zones],
        "octets": registry.header.size,
        "sha256": sha256_of(registry.path),
        "kinds": kinds,
    }
    each = f", {data['octets'] / len(registry):.1f} a name" if len(registry) else ""
    lines = [
        f"{len(registry)} hostnames in {len(registry.zones)} zones, "
        f"{registry.interior} names that only have hostnames below them",
        f"{data['octets']} octets{each}; SHA-256 {data['sha256']}",
    ]
    for kind in kinds[:_KINDS_SHOWN]:
        lines.append(
            f"  {kind['count']:>10}  {kind['zone']}: {_tags(kind['tags'])}, such as {kind['example']}"
        )
    if len(kinds) > _KINDS_SHOWN:
        lines.append(f"  and {len(kinds) - _KINDS_SHOWN} more combinations of zone and tags; --json has all")
    return data, lines


#: Lines of `show`: a screen has 24.
_KINDS_SHOWN = 20


def _of_name(registry: Any, wire: bytes) -> tuple[dict[str, Any], list[str]]:
    from unmoor.dns.protocol import names  # noqa: PLC0415 - keeps `unmoor --help` quick

    kind, shown = registry.kind_of(wire), names.to_text(wire)
    exists = registry.exists(wire)
    data = {
        "name": shown,
        "registered": kind is not None,
        "exists": exists,
        "zone": names.to_text(kind.apex) if kind else None,
        "tags": dict(sorted(kind.tags)) if kind else None,
    }
    if kind:
        return data, [f"{shown}, in the zone {data['zone']}, is registered with {_tags(dict(kind.tags))}"]
    what = "is not registered, but names below it are" if exists else "is not registered"
    return data, [f"{shown} {what}"]


def _tags(tags: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(tags.items())) or "no tags"


def _name(text: str, what: str) -> bytes:
    from unmoor.dns.protocol import names  # noqa: PLC0415 - keeps `unmoor --help` quick

    try:
        return names.from_text(text)
    except ValueError as error:
        raise UnmoorError(f"{what} {text} {error}; write a domain name, as in example.com") from None


def _skipped(found: Any) -> None:
    if found.count:
        click.echo(f"{found.count} bad line{'s' * (found.count != 1)} left out:", err=True)
        for line in found.lines():
            click.echo(line, err=True)


def _written(output: Path, summary: Any) -> None:
    from unmoor.dns.hostnames.registry import sha256_of  # noqa: PLC0415 - keeps `unmoor --help` quick

    each = f", {summary.size / summary.names:.1f} a name" if summary.names else ""
    click.echo(f"{output}: {summary.names} hostnames, {summary.size} octets{each}")
    click.echo(f"SHA-256 {sha256_of(output)}")


@contextmanager
def _record(path: Path | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    try:
        with path.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise UnmoorError(f"{path}: {error.strerror}; --bad names a file that can be written") from None


@contextmanager
def _phases(quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show the progress of each phase, one bar after the other."""
    from unmoor.probe.progress import Show, progress  # noqa: PLC0415 - keeps `unmoor --help` quick

    current: tuple[str, Show] | None = None
    with ExitStack() as stack:

        def show(phase: str, done: int, total: int | None) -> None:
            nonlocal current
            if current is None or current[0] != phase:
                stack.close()
                current = phase, stack.enter_context(progress(phase, total, quiet=quiet))
            current[1](done, 0)

        yield show
