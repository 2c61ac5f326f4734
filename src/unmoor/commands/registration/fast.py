"""Registration without click: a parser for command lines in which every argument is valid.

Everything else, help and mistakes, is left to click, which builds its options from the same list.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unmoor.bpf.kernel import kernel_error
from unmoor.commands.registration import command
from unmoor.commands.registration.options import REGISTER, UNREGISTER, Option

_COMMANDS: dict[str, tuple[Callable[..., None], Sequence[Option]]] = {
    "register": (command.register, REGISTER),
    "unregister": (command.unregister, UNREGISTER),
}


def run(arguments: Sequence[str]) -> bool:
    """Run `unmoor sockets` with these arguments. Returns False, and has done nothing, if click has to."""
    if not arguments or arguments[0] not in _COMMANDS:
        return False
    function, options = _COMMANDS[arguments[0]]
    values = parse(arguments[1:], options)
    if values is None:
        return False
    try:
        function(**values)
        sys.stdout.flush()
    except KeyboardInterrupt:  # these two as click handles them
        print("\nAborted!", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise kernel_error(error) from None
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is buffered is flushed at exit
        sys.exit(1)
    return True


def parse(arguments: Sequence[str], options: Sequence[Option]) -> dict[str, Any] | None:
    """Return the values of one argument, the service, and of options by name; None if any is not valid."""
    known = {option.flag: option for option in options}
    values: dict[str, Any] = {}
    services = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            services.append(argument)
            continue
        flag, separator, text = argument.partition("=")
        option = known.get(flag)
        value = _value(option, text if separator else next(rest, "")) if option else None
        if option is None or value is None:
            return None
        if option.multiple:
            values[option.name] = (*values.get(option.name, ()), value)
        else:
            values[option.name] = value
    if len(services) != 1 or not services[0]:
        return None
    return {"service": services[0], **{option.name: option.default for option in options}, **values}


def _value(option: Option, text: str) -> Any:
    if not text or text.startswith("-") or (option.choices and text not in option.choices):
        return None
    try:
        value = option.parse(text)
    except ValueError:
        return None
    # click refuses a path that exists and cannot be read.
    if isinstance(value, Path) and value.exists() and not os.access(value, os.R_OK):
        return None
    return value
