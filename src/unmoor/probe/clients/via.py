"""Send the packets of one probe through a chosen next hop, independent of the main routing table.

Sockets have a mark (SO_MARK); a rule directs packets with the mark to a table that has a route through the
gateway only. Marks, rules and tables are per network namespace, and so is the abstract UNIX socket that
reserves them: the kernel releases its name when the process dies, and the next probe removes the rules that
are left.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from unmoor import process
from unmoor.errors import InvalidInputError, Problem, UnmoorError
from unmoor.model import Prefix

#: Marks, and tables of the same number, are this plus a slot. 0x554d is 'UM'.
FIRST_MARK = 0x554D0000
SLOTS = 256
#: Priority of the rule: before those of a VPN or VRF (1000 and later), after the local table (0).
PREFERENCE = 90
#: Metric of the table's unreachable route, its last: without it, packets would fall through to other tables.
_LAST_METRIC = 4294967295
#: Seconds that one call of ip(8) may take.
_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """A next hop: its address and, for a link-local one, the interface after '%'."""

    address: IPv4Address | IPv6Address
    device: str = ""

    @property
    def family(self) -> str:
        """The option of `ip` for the address family."""
        return f"-{self.address.version}"


def read_gateways(texts: Sequence[str], prefixes: Sequence[Prefix]) -> tuple[Gateway, ...]:
    """Parse gateways: none, or one for each family of `prefixes`.

    Raises InvalidInputError with every problem.
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
    """Send marked packets through `gateways` while the context is open; its value is the mark.

    Without gateways nothing is changed and the mark is 0. Rules and routes are removed at the end. Raises
    UnmoorError for a gateway that is not on-link, and without CAP_NET_ADMIN.
    """
    if not gateways:
        yield 0
        return
    holder, slot = _take_slot()
    mark = FIRST_MARK + slot
    with holder:
        _remove(mark)
        _remove_stale()
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
    """Reserve `slot` until the returned socket is closed; return None if the slot is in use."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0unmoor-probe-via-{slot}")
    except OSError:
        holder.close()
        return None
    return holder


def _remove_stale() -> None:
    """Remove the rules of killed probes: those whose slot is not reserved."""
    for slot in _slots_in_use():
        holder = _hold(slot)
        if holder is not None:
            with holder:
                _remove(FIRST_MARK + slot)


def _slots_in_use() -> set[int]:
    slots = set()
    for family in ("-4", "-6"):
        for rule in json.loads(_run((family, "-j", "rule", "show"), check=False).stdout or "[]"):
            mark = int(str(rule.get("fwmark", "0")).partition("/")[0], 0)
            if FIRST_MARK <= mark < FIRST_MARK + SLOTS:
                slots.add(mark - FIRST_MARK)
    return slots


def _add(gateway: Gateway, mark: int) -> None:
    device = gateway.device or _device_of(gateway)
    family, table = gateway.family, str(mark)
    # The rule last: the table is complete when packets reach it.
    _ip(family, "route", "replace", "default", "via", str(gateway.address), "dev", device, "table", table)
    _ip(family, "route", "replace", *_last_route(mark))
    _ip(family, "rule", "add", "pref", str(PREFERENCE), "fwmark", hex(mark), "lookup", table)


def _last_route(mark: int) -> tuple[str, ...]:
    return ("unreachable", "default", "metric", str(_LAST_METRIC), "table", str(mark))


def _device_of(gateway: Gateway) -> str:
    """Return the interface on whose link `gateway` is."""
    name = str(gateway.address)
    route = json.loads(_ip(gateway.family, "-j", "route", "get", name))[0]
    if route.get("type") == "local":
        raise UnmoorError(f"--via {name}: is an address of this machine; name the edge's")
    if "gateway" in route or "dev" not in route:
        raise UnmoorError(
            f"--via {name}: is not on a link of this machine but behind {route.get('gateway', 'nothing')}; "
            "probe from a machine on the edges' own network"
        )
    return str(route["dev"])


def _remove(mark: int) -> None:
    """Remove rules and routes of `mark` in both families; missing ones are no error."""
    for family in ("-4", "-6"):
        rule = (family, "rule", "del", "pref", str(PREFERENCE), "fwmark", hex(mark), "lookup", str(mark))
        while _try_ip(*rule):
            pass
        # By name, because flushing an IPv6 table leaves its unreachable route.
        _try_ip(family, "route", "del", *_last_route(mark))
        _try_ip(family, "route", "flush", "table", str(mark))


def _ip(*arguments: str) -> str:
    """Run `ip` and return its output. Raises ProcessError if it fails."""
    return _run(arguments, check=True).stdout


def _try_ip(*arguments: str) -> bool:
    """Run `ip`; whether it succeeded. Raises ProcessError if it cannot be run."""
    return _run(arguments, check=False).status == 0


def _run(arguments: Sequence[str], *, check: bool) -> process.Output:
    # A session of its own: Ctrl-C on the terminal does not interrupt the removal of rules.
    return process.run(
        ["ip", *arguments], session=True, check=check, timeout=_TIMEOUT, fixes=process.NEEDS_ROOT
    )
