"""Validate the whole inventory on the controller and compile what each edge gets; no host is touched."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from unmoor.dns import registry_cache
from unmoor.dns.check import problems as dns_problems
from unmoor.dns.check import zone_problems
from unmoor.errors import InvalidInputError, Problem
from unmoor.model import DnsDocument
from unmoor.model.inventory import (
    HOST_PLACE,
    POP_GROUP,
    PREFIX,
    Documents,
    Source,
    compile_inventory,
    merged,
)
from unmoor.model.secrets import Sealer, text_with_secrets

try:  # Where a value stands (file and line). Not public yet; without it, errors name the host only.
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

#: Where registries lie that were built from lists.
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "registry"

DOCUMENTATION = """
module: unmoor_preflight
short_description: Validate the inventory and compile the documents of every edge
description:
  - Runs on the controller. Finds every problem of the inventory at once, with its file, line and fix.
  - Returns, for each edge, the text of C(edge.json) and C(dns.json), and the file here of its registry of
    hostnames, if it has one; a list of hostnames is built into C(.cache) first. And when this run began.
  - Secrets in these texts are sealed, so that they can be printed and compared; C(unmoor_files) unseals them.
options: {}
"""

EXAMPLES = """
- name: Validate the inventory
  unmoor_preflight:
  register: preflight
"""


def place_of(value: Any) -> str:
    """File and line where Ansible read `value`, relative to here where it can be; empty when unknown."""
    origin = Origin.get_tag(value) if Origin else None
    if origin is None or not origin.path:
        return ""
    path = _from_here(Path(origin.path))
    return f"{path}:{origin.line_num}" if origin.line_num else path


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class ActionModule(ActionBase):
    """See DOCUMENTATION."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the documents of each edge, or fail with every problem."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        compiled, problems = _compile(variables)
        if problems:
            Display().display(f"\n{InvalidInputError(problems)}\n", color="red")
            count = len(problems)
            raise AnsibleActionFail(f"The inventory has {count} problem{'s' * (count != 1)}, shown above.")
        sealer = Sealer(DnsDocument, Path(constants.DEFAULT_LOCAL_TMP) / "unmoor")
        result["documents"] = {
            host: {
                "edge": text_with_secrets(pair.edge),
                "dns": sealer.seal(text_with_secrets(pair.dns)),
                "registry": str(pair.registry or ""),
            }
            for host, pair in compiled.items()
        }
        result["run"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        result["pops"] = sorted({pair.edge.pop for pair in compiled.values()})
        return result


def _compile(variables: dict[str, Any]) -> tuple[dict[str, Documents], list[Problem]]:
    groups = {name: [str(host) for host in members] for name, members in variables["groups"].items()}
    hostvars = variables["hostvars"]
    members = {host for hosts in groups.values() for host in hosts}
    problems = list(duplicate_pops([Path(path) for path in variables.get("ansible_inventory_sources") or ()]))
    ours = {host: dict(_ours(hostvars[host], host, problems)) for host in members}
    directories = {host: Path(str(hostvars[host]["inventory_dir"])) for host in members}
    compiled = compile_inventory(ours, groups, directories, place_of, _registry)
    problems += compiled.problems
    for host, pair in compiled.documents.items():
        source = Source(host, ours[host], directories[host], place_of)
        problems += [in_inventory(problem, source) for problem in dns_problems(pair.dns, "", pair.registry)]
    for host, draft in compiled.drafts.items():
        source = Source(host, ours[host], directories[host], place_of)
        problems += [in_inventory(each, source) for each in zone_problems(draft.dns, "", draft.complete)]
    return compiled.documents, list(merged(problems))


def _registry(file: Path, zones: Sequence[str]) -> tuple[Path, str, int]:
    return registry_cache.prepare(file, zones, CACHE)


def _ours(variables: Mapping[str, Any], host: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """Our variables of one host; a template in them that fails is a problem like any other."""
    for key in variables:
        if not key.startswith(PREFIX):
            continue
        try:
            value = variables[key]
            json.dumps(value)  # every template inside is resolved here
        except (AnsibleError, TypeError) as error:
            fix = "define what the template names for this host"
            problems.append(Problem(HOST_PLACE + host, key, "", str(error).splitlines()[0], fix))
        else:
            yield key, value


def in_inventory(problem: Problem, source: Source) -> Problem:
    """The same problem at the place in the inventory that `dns.json` was compiled from."""
    path = tuple(int(part) if part.isdecimal() else part for part in problem.key.split("."))
    key = PREFIX + problem.key
    place = problem.place or source.place(path)
    if path[0] == "registry":
        place, key = source.place(("dns_registry",)), f"{PREFIX}dns_registry"
    if path[0] == "zones" and path[2:3] == ("hostnames",):
        zone = source.variables[f"{PREFIX}zones"][path[1]]
        place, key = _from_here(source.directory / zone["hostnames_file"]), "name"
    if path[0] == "zones" and path[2:3] == ("records",):
        file = str(source.variables[f"{PREFIX}zones"][path[1]].get("records_file", ""))
        if file and problem.place.startswith(file):
            place = _from_here(source.directory / file) + problem.place.removeprefix(file)
    return Problem(place, key, problem.value, problem.why, problem.fix)


def duplicate_pops(sources: Sequence[Path]) -> Iterator[Problem]:
    """PoPs given hosts in more than one place: Ansible merges these in silence into one group."""
    places: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        for file in _inventory_files(source):
            for group in _groups_with_hosts(file):
                places[group].append(str(file))
    for group, files in places.items():
        if len(files) > 1:
            yield Problem(
                files[1],
                f"group {group}",
                "",
                f"is a second PoP of the same name; the first stands in {files[0]}",
                "give one PoP another name, or list all its hosts in one place",
            )


def _inventory_files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    elif source.is_dir():
        for path in sorted(source.iterdir()):
            if path.is_file() and path.suffix in ("", ".yml", ".yaml", ".ini"):
                yield path


def _groups_with_hosts(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        data = None
    if isinstance(data, dict):
        yield from _walk(data)
    else:
        yield from re.findall(rf"^\[({POP_GROUP}[^:\]]+)\]", text, flags=re.MULTILINE)


def _walk(groups: dict[str, Any]) -> Iterator[str]:
    for name, group in groups.items():
        if isinstance(group, dict):
            if str(name).startswith(POP_GROUP) and group.get("hosts"):
                yield str(name)
            yield from _walk(group.get("children") or {})
