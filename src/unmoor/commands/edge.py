"""`unmoor edge`: apply, confirm and roll back this edge's generations."""

from __future__ import annotations

import getpass
import io
import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from unmoor import paths
from unmoor.commands import root
from unmoor.errors import UnmoorError
from unmoor.rollout import deadline, edge, host, manifest
from unmoor.rollout import watch as watching
from unmoor.rollout.manifest import Command, Manifest
from unmoor.rollout.store import Returned, Store

home = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=paths.GENERATIONS,
    show_default=True,
    help="Where generations are kept.",
)
holder = click.option(
    "--by", default=getpass.getuser, help="Who changes the edge; the user's name by default."
)
within = click.option(
    "--within", type=float, default=edge.CONFIRM_WITHIN, show_default=True, metavar="SECONDS",
    help="The edge returns unless it is confirmed within this time.",
)  # fmt: skip
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
source = click.argument("file", type=click.File("rb"))
only = click.option(
    "--parts-only", is_flag=True, help="Keep the parts of the confirmed generation that FILE lacks."
)


@click.group()
def cli() -> None:
    """Apply, confirm and roll back this edge's generations.

    A generation is everything that defines the edge's behaviour. The edge returns to the one before unless
    the new one is confirmed. Exit status: 0 success, 1 differences (diff, status), 2 errors.
    """


def _load(store: Store, file: Any, *, parts_only: bool) -> tuple[Manifest, dict[str, bytes]]:
    found, blobs = manifest.parse(file.read(), file.name)
    if parts_only:
        found = store.generation(store.state().confirmed).with_parts(found)
    return found, blobs


@cli.command()
@source
@only
@home
@as_json
def diff(file: Any, parts_only: bool, home: Path, as_json: bool) -> None:
    """Print what `apply FILE` would change on this edge. FILE is a manifest; - is standard input."""
    store = Store(home)
    target, _ = _load(store, file, parts_only=parts_only)
    lines = [line for change in edge.differences(store, target) for line in change.lines]
    _print({"id": target.id, "differences": lines}, lines or ["no change"], as_json)
    sys.exit(1 if lines else 0)


@cli.command()
@source
@only
@home
@within
@holder
@as_json
def apply(file: Any, parts_only: bool, home: Path, within: float, by: str, as_json: bool) -> None:
    """Apply the generation in FILE, a manifest; - is standard input. Then wait for `unmoor edge confirm`."""
    store = Store(home)
    target, blobs = _load(store, file, parts_only=parts_only)
    store.add(target, blobs)
    _applied(edge.apply(store, target, seconds=within, holder=by), target.id, as_json)


@cli.command()
@click.argument("generation", default="")
@click.option("--renew", type=float, metavar="SECONDS", help="Do not confirm: move the deadline.")
@home
@holder
def confirm(generation: str, renew: float | None, home: Path, by: str) -> None:
    """Confirm the pending generation; with GENERATION, only if it is that one."""
    store = Store(home)
    if renew is not None:
        edge.renew(store, renew)
        click.echo(f"the deadline is {renew:g} s from now")
        return
    confirmed = edge.confirm(store, by, generation or None)
    click.echo(f"generation {_short(confirmed)} is confirmed")


@cli.command()
@click.argument("generation", default="")
@home
@within
@holder
@as_json
def rollback(generation: str, home: Path, within: float, by: str, as_json: bool) -> None:
    """Undo the pending generation, or go back to GENERATION; `zero` is the host before Unmoor.

    Without GENERATION and with nothing pending, goes back to the generation before.
    """
    store = Store(home)
    id_ = store.resolve(generation) if generation else None
    done = edge.rollback(store, id_, seconds=within, holder=by)
    if isinstance(done, Returned):
        _returned(done)
    else:
        _applied(done, done.pending.target if done.pending else store.state().confirmed, as_json)


@cli.command()
@home
def repair(home: Path) -> None:
    """Repair kernel settings, and effects such as routes, pins and registrations, that the host has lost."""
    click.echo("\n".join(edge.repair(Store(home)) or ["nothing to repair"]))


@cli.command()
@home
@click.option("--interval", type=click.FloatRange(min=0.1), default=5.0, show_default=True, metavar="SECONDS")
def watch(home: Path, interval: float) -> None:
    """Repair what the host loses, every few seconds, without end; prints each repair."""
    watching.watch(Store(home), _run_here, click.echo, interval)


def _run_here(command: Command) -> tuple[int, str]:
    """Run a command of `unmoor` in this process, which saves starting Python; any other as a program."""
    if not command[0].endswith("/bin/unmoor"):
        return host.run(command)
    output = io.StringIO()
    status: object = 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            root.cli.main(command[1:], prog_name="unmoor", standalone_mode=False)
        except SystemExit as end:
            status = end.code
        except (UnmoorError, OSError, click.ClickException) as error:
            status = 2
            click.echo(error)
    return (status if isinstance(status, int) else 0), output.getvalue().strip()


@cli.command(name="return", hidden=True)
@click.option("--at-boot", is_flag=True)
@home
def return_(at_boot: bool, home: Path) -> None:
    """Return to the generation before if the deadline is over; the edge's timer and boot units run this."""
    done = edge.return_to_previous(Store(home), at_boot=at_boot)
    if done:
        _returned(done)


@cli.command()
@home
@as_json
def status(home: Path, as_json: bool) -> None:
    """Print the confirmed and the pending generation, and how the host differs."""
    found = edge.status(Store(home))
    state = found.state
    lines = [f"confirmed: {_short(state.confirmed)}"]
    if state.pending:
        left = state.pending.deadline - deadline.clock()
        lines.append(
            f"pending: {_short(state.pending.target)}, by {state.pending.holder}, returns in {left:.0f} s"
        )
    if state.returned:
        lines.append(f"returned from {_short(state.returned.source)}: {state.returned.why}")
        lines += state.returned.failures
    lines.append(f"repairs: {state.repairs}")
    lines += found.differences or ["no difference"]
    _print(asdict(state) | {"differences": found.differences}, lines, as_json)
    sys.exit(1 if found.differences else 0)


@cli.command(name="list")
@home
@as_json
def list_(home: Path, as_json: bool) -> None:
    """List the generations that are kept, newest first; all can be rolled back to."""
    state = Store(home).state()
    lines = [f"{_short(state.confirmed)}  confirmed"]
    for each in state.history:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.when))
        lines.append(f"{_short(each.id)}  replaced {when} by {each.holder}")
    if state.confirmed:
        lines.append("zero          the host before Unmoor")
    _print(
        {"confirmed": state.confirmed, "history": [asdict(each) for each in state.history]}, lines, as_json
    )


def _applied(done: edge.Applied, id_: str, as_json: bool) -> None:
    lines = list(done.lines) or ["no change"]
    if done.pending:
        left = done.pending.deadline - deadline.clock()
        lines.append(
            f"generation {_short(id_)} is pending; without `unmoor edge confirm` it is undone in {left:.0f} s"
        )
    _print(
        {"id": id_, "changed": bool(done.lines), "lines": done.lines, "pending": bool(done.pending)},
        lines,
        as_json,
    )


def _returned(done: Returned) -> None:
    click.echo(f"returned to generation {_short(done.target)}: {done.why}")
    for line in done.failures:
        click.echo(line, err=True)
    if done.failures:
        sys.exit(2)


def _short(id_: str) -> str:
    return id_[:12] or "zero"


def _print(document: dict[str, Any], lines: list[str] | tuple[str, ...], as_json: bool) -> None:
    click.echo(json.dumps(document) if as_json else "\n".join(lines))
