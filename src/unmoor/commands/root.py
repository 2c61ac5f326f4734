"""The command line's root: its groups of commands, each imported on use."""

from __future__ import annotations

import importlib

import click

import unmoor

#: The module of each command, which defines `cli`, and the command's line of help. Help imports none of them.
COMMANDS = {
    "anyip": ("unmoor.commands.anyip", "Make the edge's prefixes local to this host."),
    "dns": ("unmoor.commands.dns.group", "The authoritative DNS randomizer."),
    "edge": ("unmoor.commands.edge", "This edge's generations: apply, confirm, roll back."),
    "lab": ("unmoor.commands.lab", "Virtual hosts on one computer."),
    "probe": ("unmoor.commands.probe", "Probe a PoP from outside: reach, uniformity, watch."),
    "schema": ("unmoor.commands.schema", "Print the JSON Schema of a document."),
    "validate": ("unmoor.commands.validate", "Check a document against its schema."),
    "sockets": ("unmoor.commands.sockets", "The sk_lookup half: dispatch table, sockets, counters."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.cli
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(unmoor.__version__, prog_name="unmoor")
def cli() -> None:
    """Cut hostnames and sockets loose from IP addresses."""
