"""Types that both documents share, and functions that read and validate a document."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from unmoor import jsontext
from unmoor.errors import Fault, InvalidInputError, Problem
from unmoor.model.secrets import secret_fields


def parse_prefix(value: Any) -> IPv4Network | IPv6Network:
    """Read an IP prefix of either family. Raises ValueError with what is wrong and the fix."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = value if isinstance(value, str) else ""
    plain = _parse_plain_prefix(text)
    if plain is not None:
        return plain
    try:
        interface = ip_interface(text)
    except ValueError:
        raise ValueError("is not an IP prefix: write address/length, as in 198.18.0.0/20") from None
    if "/" not in text or interface.ip != interface.network.network_address:
        raise ValueError(f"is an address, not a prefix: did you mean {interface.network}?")
    return interface.network


def _parse_plain_prefix(text: str) -> IPv4Network | IPv6Network | None:
    """Read a prefix in its usual form; return None for any other.

    A document may have a hundred thousand prefixes, and the ipaddress module is slow at parsing text.
    """
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdecimal()):
        return None
    try:
        if ":" in address:
            return IPv6Network((socket.inet_pton(socket.AF_INET6, address), int(length)))
        return IPv4Network((socket.inet_pton(socket.AF_INET, address), int(length)))
    except (ValueError, OSError):
        return None


def parse_address(value: Any) -> IPv4Address | IPv6Address:
    """Read an IP address of either family. Raises ValueError for anything else, numbers included."""
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    if isinstance(value, int):
        # YAML 1.1 reads 1:2 as a base 60 number, and ipaddress accepts any number as an address.
        raise ValueError("is a number, not an IP address: write it in quotes, as in '2001:db8::1'")  # noqa: TRY004 - pydantic collects ValueError only
    try:
        return ip_address(value)
    except ValueError:
        raise ValueError("is not an IP address: write one as in 198.18.0.1 or 2001:db8::1") from None


Prefix = Annotated[IPv4Network | IPv6Network, BeforeValidator(parse_prefix)]
Address = Annotated[IPv4Address | IPv6Address, BeforeValidator(parse_address)]
Protocol = Literal["tcp", "udp"]

LABEL = r"^[a-z][a-z0-9_-]{0,62}$"
Label = Annotated[
    str, Field(pattern=LABEL, description="A name: lower case letters, digits, '-' and '_', at most 63.")
]

#: Characters of a wrong value that an error shows.
MAX_SHOWN = 60

#: The range of the port specification `any`: every port number.
ANY_PORT = (0, 65535)


class Document(BaseModel):
    """Base of every part of a document. It refuses unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_ports(spec: int | str) -> tuple[int, int]:
    """Read a port specification: a number, a range such as `8000-8099`, or `any`.

    Returns the first and the last port. Raises ValueError for anything else.
    """
    if spec == "any":
        return ANY_PORT
    text = str(spec)
    first, dash, last = text.partition("-")
    if not text.isascii() or not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError("is not a port: write a number from 1 to 65535, a range such as 8000-8099, or any")
    low, high = int(first), int(last if dash else first)
    if not 1 <= low <= high <= 65535:
        raise ValueError("is not a port: numbers run from 1 to 65535, a range from low to high")
    return low, high


def _ports(spec: Any) -> int | str:
    if isinstance(spec, bool) or not isinstance(spec, int | str):
        raise ValueError("is not a port: write a number from 1 to 65535, a range such as 8000-8099, or any")  # noqa: TRY004 - pydantic collects ValueError only
    low, high = parse_ports(spec)
    if (low, high) == ANY_PORT:
        return "any"
    return low if low == high else f"{low}-{high}"


Ports = Annotated[int | str, BeforeValidator(_ports)]


def _family(version: int) -> Any:
    def check(prefix: Prefix) -> Prefix:
        if prefix.version != version:
            raise ValueError(
                f"is an IPv{prefix.version} prefix in an IPv{version} field: move it to ipv{prefix.version}"
            )
        return prefix

    return AfterValidator(check)


# Parsed as either family first, so that the error is 'IPv4 prefix in an IPv6 field', not 'not a prefix'.
Prefix4 = Annotated[Prefix, _family(4)]
Prefix6 = Annotated[Prefix, _family(6)]

D = TypeVar("D", bound=Document)


def load(kind: type[D], path: Path) -> D:
    """Read and validate the JSON document at `path`.

    Raises InvalidInputError with file, key, value and fix of each problem.
    """
    return parse(kind, read(path), str(path))


def read(path: Path) -> str:
    """Read the text of a document without translating line ends. Raises InvalidInputError."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InvalidInputError(
            [Problem(str(path), "", "", str(reason), "name a readable JSON document")]
        ) from None


def parse(kind: type[D], text: str, place: str) -> D:
    """Validate the text of a document; errors give `place` as its file. Raises InvalidInputError."""
    try:
        data = jsontext.parse(text)
    except ValueError as error:
        raise InvalidInputError(
            [Problem(place, "", "", f"is not JSON: {error}", "run the playbook again, which rewrites it")]
        ) from None
    return validate(kind, data, place)


def validate(kind: type[D], data: Any, place: str) -> D:
    """Validate `data` as a document; errors give `place` as its file. Raises InvalidInputError."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InvalidInputError(fault.at(place) for fault in faults_of(error, kind)) from None


_WHYS = {"extra_forbidden": "is not a known key", "missing": "is missing", "too_short": "is empty"}
_FIXES = {
    "extra_forbidden": "remove the key, or correct its spelling",
    "missing": "add the key",
    "string_pattern_mismatch": "use lower case letters, digits, '-' and '_', beginning with a letter",
    "literal_error": "use one of the values named",
    "too_short": "add at least one entry",
}


def faults_of(error: ValidationError, kind: type[Document]) -> Iterator[Fault]:
    """Yield the errors of pydantic in a document of `kind` as faults: one for each key, with its fix.

    Values of secret fields and of unknown keys are not shown: an unknown key may be the misspelt name of a
    secret.
    """
    errors = error.errors(include_url=False, include_context=False)
    # A union reports each member that did not match; the place is the value, not the member.
    paths = [tuple(part for part in item["loc"] if part not in ("int", "str")) for item in errors]
    for number, (item, path) in enumerate(zip(errors, paths, strict=True)):
        inside = any(other[: len(path)] == path and len(other) > len(path) for other in paths)
        if path in paths[:number] or (item["type"] == "too_short" and inside):
            continue  # pydantic does not count wrong entries, which are reported themselves
        message = _WHYS.get(item["type"], item["msg"].removeprefix("Value error, "))
        why, colon, hint = message.partition(": ")
        fix = hint if colon else _FIXES.get(item["type"], "correct the value")
        hidden = item["type"] in ("missing", "extra_forbidden") or not path or path[0] in secret_fields(kind)
        shown = "" if hidden else jsontext.shown(item["input"])
        if len(shown) > MAX_SHOWN:
            shown = shown[: MAX_SHOWN - 3] + "..."
        yield Fault(path, shown, why, fix)
