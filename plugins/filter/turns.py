"""Filters on registered results: hosts whose turn has not ended, and the traffic of an edge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unmoor.model.groups import POP_GROUP


def unfinished_turns(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Hosts whose turn began (`__begun` is registered) and has not ended well (`__ended`)."""
    return [host for host in hosts if _began(hostvars[host]) and not _ended(hostvars[host])]


def stop_report(hostvars: Mapping[str, Any], hosts: list[str]) -> str:
    """Report why a run stops, and what to do: for `hosts` of which at least one is unfinished."""
    unfinished = unfinished_turns(hostvars, hosts)
    lines = ["The run stops: nothing more is changed."]
    lost = [host for host in unfinished if "__reported" not in hostvars[host]]
    lines += [f"{host}: was lost in its turn: it is unreachable, and its state is unknown." for host in lost]
    lines += [f"{host}: failed, as reported above." for host in unfinished if host not in lost]
    ended = [host for host in hosts if _ended(hostvars[host])]
    untouched = [host for host in hosts if not _began(hostvars[host])]
    lines.append(f"Edges that have the new state: {', '.join(ended) or 'none'}.")
    lines.append(f"Edges that were not touched: {', '.join(untouched) or 'none'}.")
    if lost:
        names = ", ".join(lost)
        lines.append(
            f"fix: withdraw the routes to {names} if clients still reach it; when it answers over ssh again,"
            " run this playbook again, which completes the change."
        )
    return "\n".join(lines)


def _began(variables: Mapping[str, Any]) -> bool:
    return "__begun" in variables and not variables["__begun"].get("skipped")


def _ended(variables: Mapping[str, Any]) -> bool:
    ended = variables.get("__ended")
    return ended is not None and not ended.get("failed") and not ended.get("unreachable")


def pops(groups: Mapping[str, Iterable[str]], hosts: Iterable[str]) -> list[str]:
    """Return the PoPs that `hosts` belong to, by the inventory's groups."""
    wanted = set(hosts)
    return sorted(
        name.removeprefix(POP_GROUP)
        for name, members in groups.items()
        if name.startswith(POP_GROUP) and wanted.intersection(members)
    )


def traffic_rates(answers: list[dict[str, Any]]) -> list[str]:
    """Return an edge's traffic, from the results of `dns status`, `sockets top` and `dns status` again."""
    before, top, after = (None if each["rc"] else json.loads(each["stdout"]) for each in answers)
    lines = []
    if top is None:
        lines.append(f"sockets: {_last_line(answers[1])}")
    else:
        rates = {label: found["lookups"] for label, found in top["services"].items()}
        parts = ", ".join(f"{label} {rate:.1f}" for label, rate in rates.items())
        lines.append(f"sockets: {sum(rates.values()):.1f} new connections and datagrams a second ({parts})")
    if before is None or after is None:
        lines.append(f"DNS: {_last_line(answers[2])}")
    else:
        replies = sum(after["rcodes"].values()) - sum(before["rcodes"].values())
        seconds = max(0.1, after["uptime"] - before["uptime"])
        lines.append(f"DNS: {replies / seconds:.1f} replies a second")
    return lines


def _last_line(answer: dict[str, Any]) -> str:
    lines = (answer.get("stderr") or answer.get("msg") or "").strip().splitlines()
    return lines[-1] if lines else f"exit status {answer['rc']}"


class FilterModule:
    """The filters of this file. Each is documented in the YAML file of its name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "traffic_rates": traffic_rates,
            "pops": pops,
            "stop_report": stop_report,
            "unfinished_turns": unfinished_turns,
        }
