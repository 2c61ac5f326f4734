"""The groups of an inventory: PoPs, edges and vantage hosts, and what is wrong with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from pydantic import TypeAdapter, ValidationError

from unmoor.errors import Problem
from unmoor.model.common import Label

#: The name of a PoP's inventory group begins with this.
POP_GROUP = "pop_"
#: The group of every machine that runs the stack.
EDGES_GROUP = "edges"
#: The group of hosts on which the probe is installed.
VANTAGE_GROUP = "vantage"


def pop_groups(groups: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the groups that are PoPs, with their members; `POP_x` is one too, of a wrong name."""
    return {name: members for name, members in groups.items() if name.lower().startswith(POP_GROUP)}


def group_problems(groups: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Yield what is wrong with the groups: every edge has exactly one PoP, and every PoP has edges."""
    edges = groups.get(EDGES_GROUP, ())
    pops = pop_groups(groups)
    if not edges:
        why = "has no hosts" if EDGES_GROUP in groups else "is missing"
        yield Problem(
            "inventory", f"group {EDGES_GROUP}", "", why, "put the PoPs' groups below it (children)"
        )
    for name, members in pops.items():
        if not members:
            yield Problem("inventory", f"group {name}", "", "has no hosts", "add its edges, or remove it")
    homes: dict[str, list[str]] = defaultdict(list)
    for name, members in pops.items():
        for host in members:
            homes[host].append(name)
    for host, names in homes.items():
        if len(names) > 1:
            yield Problem(
                "inventory", f"host {host}", ", ".join(names), "is in two PoPs", "leave it in one pop_ group"
            )
        if edges and host not in edges:
            fix = f"put group {names[0]} below {EDGES_GROUP} (children)"
            yield Problem("inventory", f"host {host}", "", f"is in a PoP but not in group {EDGES_GROUP}", fix)
    for host in edges:
        if host not in homes:
            yield Problem(
                "inventory", f"host {host}", "", "has no PoP", "put it in a group pop_<name>, as in pop_ams"
            )
    yield from _pop_name_problems(pops)


def _pop_name_problems(pops: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    adapter = TypeAdapter[str](Label)
    for name in pops:
        try:
            adapter.validate_python(name.removeprefix(POP_GROUP))
        except ValidationError:
            fix = "write pop_, then lower case letters, digits, '-' or '_', as in pop_ams"
            yield Problem("inventory", f"group {name}", "", "is not a valid PoP name", fix)
    for one, other in combinations(pops, 2):
        if one.lower().replace("-", "_") == other.lower().replace("-", "_"):
            fix = "join the two groups, or give one PoP another name"
            yield Problem("inventory", f"group {other}", "", f"has the same PoP name as {one}", fix)
