"""Options with an address and port."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click  # takes long to import, and registration needs only `parse_endpoint`

Endpoint = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def parse_endpoint(value: str) -> Endpoint:
    """Parse ADDRESS:PORT or [ADDRESS]:PORT. Raises ValueError."""
    match = re.fullmatch(r"(?:\[(?P<six>[^]]+)\]|(?P<four>[^:]+)):(?P<port>\d{1,5})", value)
    if match is None:
        raise ValueError(value)
    return ipaddress.ip_address(match["six"] or match["four"]), int(match["port"])


def endpoints(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> list[Endpoint]:
    """Parse the values of an option. Raises click.BadParameter."""
    found = []
    for value in values:
        try:
            found.append(parse_endpoint(value))
        except ValueError:
            import click  # noqa: PLC0415 - see above

            raise click.BadParameter(
                f"{value!r} is not ADDRESS:PORT, such as 127.0.0.1:80 or [::1]:80"
            ) from None
    return found
