"""Sending only this probe's packets through a chosen next hop, whatever the routing table says.

Sockets carry a mark (SO_MARK), a rule sends that mark to a routing table of its own, and that table knows
the gateway alone. Rules, marks and tables belong to a network namespace, and so does the abstract UNIX socket
that reserves them: the kernel frees its name when the holder dies, and the next probe cleans up after it.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from unmoor.errors import InvalidInputError, Problem, UnmoorError
from unmoor.model import Prefix

#: Marks, and tables of the same number, are this plus a slot. 0x554d is 'UM'.
FIRST_MARK = 0x554D0000
SLOTS = 256
#: Before the rules that a VPN or a VRF adds (1000 and later), after the table of local addresses (0).
PREFERENCE = 90
#: Behind every other route of the table: a gateway whose interface goes away fails, it does not fall through.
_LAST_METRIC = 4294967295


@dataclass(frozen=True, slots=True)
class Gateway:
    """A next hop: its address and, for a link-local one, the interface behind '%'."""

    address: IPv4Address | IPv6Address
    device: str = ""

    @property
    def family(self) -> str:
        """As `ip` writes it."""
        return f"-{self.address.version}"


def read_gateways(texts: Sequence[str], prefixes: Sequence[Prefix]) -> tuple[Gateway, ...]:
    """Gateways from the command line, at most one for each family, one for each family of `prefixes`.

    Raises InvalidInputError with all that is wrong.
    """
    found: dict[int, Gateway] = {}
    problems = []
    for text in texts:
        plain, _, device = text.partition("%")
        try:
            address = ip_address(plain)
        except ValueError:
            problems.append(
                Problem(
                    "", "--via", text, "is not an IP address", "name an edge's own address, as in 10.0.0.11"
                )
            )
            continue
        if address.version in found:
            problems.append(
                Problem(
                    "",
                    "--via",
                    text,
                    f"is a second IPv{address.version} gateway",
                    "probe one gateway at a time",
                )
            )
        found[address.version] = Gateway(address, device)
    missing = {prefix.version for prefix in prefixes} - set(found) if found else set()
    problems += [
        Problem(
            "",
            "--via",
            " ".join(texts),
            f"names no IPv{version} gateway, but IPv{version} is probed",
            "add --via with the same edge's address of that family",
        )
        for version in sorted(missing)
    ]
    if problems:
        raise InvalidInputError(problems)
    return tuple(found.values())


@contextmanager
def via(gateways: Sequence[Gateway]) -> Iterator[int]:
    """Send marked packets through `gateways` for the length of the block; the value is the mark.

    Without gateways nothing is changed and the mark is 0. Nothing is left afterwards. Raises UnmoorError for
    a gateway that is not on-link, and without root's rights.
    """
    if not gateways:
        yield 0
        return
    holder, slot = _take_slot()
    mark = FIRST_MARK + slot
    with holder:
        _remove(mark)
        _clean_dead()
        try:
            for gateway in gateways:
                _add(gateway, mark)
            yield mark
        finally:
            _remove(mark)


def _take_slot() -> tuple[socket.socket, int]:
    for slot in range(SLOTS):
        holder = _hold(slot)
        if holder is not None:
            return holder, slot
    raise UnmoorError(f"--via: {SLOTS} probes are running in this network namespace; wait for one to end")


def _hold(slot: int) -> socket.socket | None:
    """Reserve `slot` until the socket is closed, by this process or by its death; None when it is taken."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0unmoor-probe-via-{slot}")
    except OSError:
        holder.close()
        return None
    return holder


def _clean_dead() -> None:
    """Remove what killed probes left behind: rules whose slot nobody holds."""
    for slot in _slots_in_use():
        holder = _hold(slot)
        if holder is not None:
            with holder:
                _remove(FIRST_MARK + slot)


def _slots_in_use() -> set[int]:
    slots = set()
    for family in ("-4", "-6"):
        for rule in json.loads(_ip(family, "-j", "rule", "show", check=False) or "[]"):
            mark = int(str(rule.get("fwmark", "0")).partition("/")[0], 0)
            if FIRST_MARK <= mark < FIRST_MARK + SLOTS:
                slots.add(mark - FIRST_MARK)
    return slots


def _add(gateway: Gateway, mark: int) -> None:
    device = gateway.device or _device_of(gateway)
    family, table = gateway.family, str(mark)
    # The rule last: until then nothing looks at the table.
    _ip(family, "route", "replace", "default", "via", str(gateway.address), "dev", device, "table", table)
    _ip(family, "route", "replace", *_last_route(mark))
    _ip(family, "rule", "add", "pref", str(PREFERENCE), "fwmark", hex(mark), "lookup", table)


def _last_route(mark: int) -> tuple[str, ...]:
    return ("unreachable", "default", "metric", str(_LAST_METRIC), "table", str(mark))


def _device_of(gateway: Gateway) -> str:
    """The interface whose link `gateway` is on."""
    name = str(gateway.address)
    route = json.loads(_ip(gateway.family, "-j", "route", "get", name))[0]
    if route.get("type") == "local":
        raise UnmoorError(f"--via {name}: is this machine's own address; name the edge's")
    if "gateway" in route or "dev" not in route:
        raise UnmoorError(
            f"--via {name}: is not on a link of this machine but behind {route.get('gateway', 'nothing')}; "
            "probe from a machine on the edges' own network"
        )
    return str(route["dev"])


def _remove(mark: int) -> None:
    """Remove rules and routes of `mark`, in both families; what is not there is no error."""
    for family in ("-4", "-6"):
        rule = (family, "rule", "del", "pref", str(PREFERENCE), "fwmark", hex(mark), "lookup", str(mark))
        with suppress(_IpError):
            while True:
                _ip(*rule)
        # Named, since flushing an IPv6 table leaves its unreachable route.
        _ip(family, "route", "del", *_last_route(mark), check=False)
        _ip(family, "route", "flush", "table", str(mark), check=False)


class _IpError(UnmoorError):
    """`ip` refused."""


def _ip(*arguments: str, check: bool = True) -> str:
    """Run `ip` and return what it printed; the only door to another program here.

    Raises UnmoorError with what `ip` said when it fails, unless told not to `check`. In
    a session of its own, so that Ctrl-C on the terminal does not cut it short.
    """
    try:
        done = subprocess.run(
            ["ip", *arguments],
            check=False,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise UnmoorError("--via needs the program `ip`; install iproute2") from None
    if done.returncode == 0:
        return done.stdout
    if check:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        hint = "; run as root" if "not permitted" in said else ""
        raise _IpError(f"--via: ip {' '.join(arguments)}: {said}{hint}")
    return ""
