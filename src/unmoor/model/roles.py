"""Checks of roles' variables in an inventory: unknown names, and services without a listener."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from unmoor.errors import Problem

#: Variables of role listener with the label of a service that it serves, or empty.
LISTENERS = ("listener_http_service", "listener_https_service", "listener_whoami_service")


def unknown_variables(
    given: Mapping[str, Any], roles: Mapping[str, Collection[str]], place_of: Callable[[Any], str]
) -> Iterator[Problem]:
    """Report variables with a role's prefix that the role does not have. `roles` has the variables of each.

    Ansible ignores such a variable without a warning, and the role uses its default.
    """
    known = [name for names in roles.values() for name in names]
    for name, value in given.items():
        role = next((role for role in roles if name.startswith(f"{role}_")), None)
        if role is None or name in known:
            continue
        near = get_close_matches(name, known, 1)
        fix = (
            f"did you mean {near[0]}?"
            if near
            else "remove it, or rename it so that it does not begin with the role's name"
        )
        yield Problem(place_of(value), name, "", f"is not a variable of role {role}", fix)


def unserved(
    services: Collection[str],
    listeners: Mapping[str, str],
    own: Collection[str],
    dns_service: str,
    place_of: Callable[[str], str],
) -> Iterator[Problem]:
    """Report listeners of unknown services, and services for which no listener registers sockets.

    `listeners` are the variables of role listener with their values, `own` the labels of services with the
    operator's own listener. `place_of` returns the place of a variable, by its name.
    """
    known = ", ".join(services)
    for name, label in listeners.items():
        if label and label not in services:
            fix = f'name one of {known}; or "" for no such listener'
            yield Problem(place_of(name), name, label, "is not one of unmoor_services", fix)
    served: Sequence[str] = [*listeners.values(), *own, dns_service]
    for label in services:
        if label not in served:
            yield Problem(
                place_of("unmoor_services"),
                f"unmoor_services.{label}",
                "",
                "has no listener: nothing registers its sockets, and the edge would refuse its connections",
                f"set {LISTENERS[0]} or {LISTENERS[1]} to {label}, or name it in unmoor_own_listeners if a "
                "unit of yours registers them (docs/sockets.md)",
            )
