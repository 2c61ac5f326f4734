"""Variables that no role has, and services that no listener serves."""

from __future__ import annotations

from unmoor.model.roles import LISTENERS, unknown_variables, unserved

ROLES = {"sk_lookup": ("sk_lookup_metrics_listen",), "listener": LISTENERS}


def test_a_misspelt_variable_of_a_role() -> None:
    given = {
        "sk_lookup_metrics_lisen": "x",
        "sk_lookup_metrics_listen": "x",
        "site_serial": 1,
        "listeners": 2,
    }
    [problem] = unknown_variables(given, ROLES, lambda _: "all.yml:3")
    assert str(problem).splitlines() == [
        "all.yml:3: sk_lookup_metrics_lisen: is not a variable of role sk_lookup",
        "    fix: did you mean sk_lookup_metrics_listen?",
    ]


def test_a_service_without_a_listener() -> None:
    listeners = dict(zip(LISTENERS, ("web-http", "tls", ""), strict=True))
    found = list(unserved(("web", "tls", "dns", "ssh"), listeners, ("ssh",), "dns", lambda name: name))
    assert [(problem.place, problem.key, problem.value) for problem in found] == [
        ("listener_http_service", "listener_http_service", "web-http"),
        ("unmoor_services", "unmoor_services.web", ""),
    ]
