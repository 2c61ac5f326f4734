"""Options with an address and port."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import click

Endpoint = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def endpoints(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> list[Endpoint]:
    """Parse the values of an option, ADDRESS:PORT or [ADDRESS]:PORT. Raises click.BadParameter."""
    found = []
    for value in values:
        match = re.fullmatch(r"(?:\[(?P<six>[^]]+)\]|(?P<four>[^:]+)):(?P<port>\d{1,5})", value)
        try:
            if match is None:
                raise ValueError  # noqa: TRY301 - one message for all that is wrong
            found.append((ipaddress.ip_address(match["six"] or match["four"]), int(match["port"])))
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is not ADDRESS:PORT, such as 127.0.0.1:80 or [::1]:80"
            ) from None
    return found
