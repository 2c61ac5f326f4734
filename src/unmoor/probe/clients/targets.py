"""The (address, port) pairs to probe: prefixes and ports, expanded or sampled with a seed. Pure."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from random import Random

from unmoor.errors import InvalidInputError, Problem
from unmoor.model import Prefix, parse_ports

#: So many pairs take a quarter of an hour and more; most likely a sample was intended.
MAX_PAIRS = 1 << 22

ADDRESS_BYTES = {4: 4, 6: 16}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Target:
    """One connection to make: address (as text), port, and whether it uses TLS."""

    address: str
    port: int
    tls: bool = False

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4

    def __str__(self) -> str:
        """Format as in a URL: with brackets around an IPv6 address."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Block:
    """The addresses of one prefix to probe, as integers; all of a prefix are a range, not a list."""

    prefix: Prefix
    numbers: Sequence[int]


def address_text(version: int, number: int) -> str:
    """Format an address as the kernel does (IPv6: RFC 5952); faster than ipaddress."""
    return socket.inet_ntop(FAMILIES[version], number.to_bytes(ADDRESS_BYTES[version], "big"))


def every_address(prefix: Prefix) -> Sequence[int]:
    """Return each address of `prefix`, including the first and the last, which a bound prefix serves too."""
    first = int(prefix.network_address)
    return range(first, first + prefix.num_addresses)


def sample(prefix: Prefix, count: int, seed: str) -> Sequence[int]:
    """Return `count` random addresses of `prefix`, repeatable by `seed`, and the ends of its range.

    The ends are the first two and the last two addresses, where off-by-one errors of a prefix match appear.
    A prefix with fewer addresses is returned completely.
    """
    size = prefix.num_addresses
    if size <= count + 4:
        return every_address(prefix)
    chosen = {0, 1, size - 2, size - 1}
    random = Random(f"{seed}/{prefix}")  # noqa: S311 - repeatable by its seed; nothing secret
    while len(chosen) < count + 4:
        chosen.add(random.randrange(size))
    first = int(prefix.network_address)
    return tuple(first + offset for offset in sorted(chosen))


def blocks(prefixes: Iterable[Prefix], *, sample4: int | None, sample6: int, seed: str) -> tuple[Block, ...]:
    """Return the addresses to probe: all IPv4 ones or `sample4` per prefix, and `sample6` per IPv6 prefix.

    A prefix inside another one of the list is left out.
    """
    kept = _outermost(prefixes)
    return tuple(
        Block(
            prefix,
            every_address(prefix)
            if prefix.version == 4 and sample4 is None
            else sample(prefix, sample6 if prefix.version == 6 else sample4 or 0, seed),
        )
        for prefix in kept
    )


def _outermost(prefixes: Iterable[Prefix]) -> list[Prefix]:
    kept: list[Prefix] = []
    end = (0, 0)
    for prefix in sorted(prefixes, key=lambda p: (p.version, int(p.network_address), p.prefixlen)):
        if (prefix.version, int(prefix.network_address)) > end:
            kept.append(prefix)
            end = (prefix.version, int(prefix.broadcast_address))
    return kept


def size(block: Block) -> int:
    """Return the number of addresses; `len()` fails for ranges beyond 2**63."""
    numbers = block.numbers
    return numbers.stop - numbers.start if isinstance(numbers, range) else len(numbers)


def check_size(chosen: Sequence[Block], ports: int) -> int:
    """Return the number of pairs with that many ports. Raises InvalidInputError from MAX_PAIRS on."""
    pairs = sum(size(block) for block in chosen) * ports
    if pairs >= MAX_PAIRS:
        names = " ".join(str(block.prefix) for block in chosen)
        raise InvalidInputError(
            [
                Problem(
                    "", "PREFIX", names, f"makes {pairs} pairs to connect to", "probe a part with --sample N"
                )
            ]
        )
    return pairs


def pairs(
    chosen: Iterable[Block], ports: Sequence[int], *, tls: bool, share: tuple[int, int] = (0, 1)
) -> Iterator[Target]:
    """Yield every address with every port; `share` (i, n) selects the i-th of n equal parts."""
    part, parts = share
    for block in chosen:
        version = block.prefix.version
        for number in block.numbers[part::parts]:
            address = address_text(version, number)
            for port in ports:
                yield Target(address, port, tls)


def read_prefixes(texts: Iterable[str], key: str = "PREFIX") -> tuple[Prefix, ...]:
    """Parse prefixes or single addresses. Raises InvalidInputError with each bad one."""
    found: list[Prefix] = []
    problems = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError as error:
            fix = "write address/length with no host bits set, as in 198.18.0.0/20, or a single address"
            problems.append(Problem("", key, text, _reason(error), fix))
    if problems:
        raise InvalidInputError(problems)
    return tuple(found)


def _reason(error: ValueError) -> str:
    return "has host bits set" if "host bits" in str(error) else "is not an IP prefix"


def read_ports(text: str, key: str) -> tuple[int, ...]:
    """Parse ports, as in `80,8080,9000-9009`, in that order. Raises InvalidInputError."""
    found: dict[int, None] = {}
    problems = []
    for part in filter(None, text.split(",")):
        try:
            low, high = parse_ports(part.strip())
        except ValueError as error:
            problems.append(Problem("", key, part, str(error), "write ports as in 80,8080,9000-9009"))
            continue
        found.update(dict.fromkeys(range(max(low, 1), high + 1)))
    if problems:
        raise InvalidInputError(problems)
    return tuple(found)
