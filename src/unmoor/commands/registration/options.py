"""The options of `unmoor sockets register` and `unregister`, for click and for the parser in `fast`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from unmoor import paths
from unmoor.commands.endpoints import parse_endpoint


class Option(NamedTuple):
    """An option that takes a value. `parse` raises ValueError."""

    flag: str
    name: str
    parse: Callable[[str], Any]
    help: str
    default: Any = None
    multiple: bool = False
    choices: tuple[str, ...] = ()


ACTIVATION = Option(
    "--socket", "activation", Path, "Socket of the activation service.", paths.ACTIVATION_SOCKET
)
UNREGISTER = (ACTIVATION,)
REGISTER = (
    Option("--pid", "pid", int, "The process whose sockets to register."),
    Option("--pidfile", "pidfile", Path, "A file that contains the process id."),
    Option("--unit", "unit", str, "A systemd unit whose main process it is."),
    Option(
        "--listen",
        "listen",
        parse_endpoint,
        "An address at which the process listens, as ADDRESS:PORT; once for each socket.",
        (),
        multiple=True,
    ),
    Option(
        "--protocol",
        "kinds",
        str,
        "The protocol of these sockets; twice for both.",
        ("tcp",),
        multiple=True,
        choices=("tcp", "udp"),
    ),
    Option("--wait", "wait", float, "Seconds for the sockets to appear.", 5.0),
    ACTIVATION,
)
