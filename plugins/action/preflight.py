"""Validate the whole inventory on the controller and compile each edge's documents; contacts no host."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.release import __version__
from ansible.utils.display import Display
from ansible_collections.unmoor.unmoor.plugins.plugin_utils import inventory_files
from ansible_collections.unmoor.unmoor.plugins.plugin_utils.tree import ROOT, cache, version

import unmoor
from unmoor import proof
from unmoor.dns.check import check_inventory
from unmoor.dns.hostnames import registry_cache
from unmoor.errors import InvalidInputError, Problem
from unmoor.model import DnsDocument
from unmoor.model.compile import compile_inventory, merged
from unmoor.model.documents import Documents, Writer
from unmoor.model.groups import EDGES_GROUP, POP_GROUP
from unmoor.model.removals import EXPECTED, parse_expected
from unmoor.model.roles import LISTENERS, unknown_variables, unserved
from unmoor.model.secrets import Sealer, text_with_secrets
from unmoor.model.variables import HOST_PLACE, PREFIX, shown

try:  # File and line of a value. Not public yet; without it, errors name only the host.
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

#: The oldest supported ansible-core, as its templates and results have changed.
MIN_ANSIBLE = (2, 19)
#: Suffixes of files of hosts.
INVENTORY_SUFFIXES = frozenset(("", ".ini", ".json", ".py", ".sh", ".toml", ".yaml", ".yml"))
#: Variables of roles that the playbooks set, not the inventory.
SET_BY_PLAYBOOKS = frozenset(
    (
        *("edge_base_document", "dns_randomizer_document"),
        *("dns_randomizer_service", "dns_randomizer_registry"),
    )
)


def place_of(value: Any) -> str:
    """Return file and line where Ansible read `value`, relative to the working directory; may be empty."""
    origin = Origin.get_tag(value) if Origin else None
    if origin is None or not origin.path:
        return ""
    path = shown(Path(origin.path))
    return f"{path}:{origin.line_num}" if origin.line_num else path


class ActionModule(ActionBase):
    """Runs on the controller alone; plugins/modules/preflight.py describes it."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the documents of each edge, or fail with every problem."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        problems = [*version_problems(__version__), *package_problems(version())] or list(
            _data_as_hosts(variables)
        )
        compiled: dict[str, Documents] = {}
        if not problems:
            compiled, problems = _compile(variables)
        if problems:
            Display().display(f"\n{InvalidInputError(problems)}\n", color="red")
            count = len(problems)
            raise AnsibleActionFail(f"The inventory has {count} problem{'s' * (count != 1)}, shown above.")
        for line in dict.fromkeys(line for pair in compiled.values() for line in proof.unproved(pair)):
            Display().display(line)
        writer = Writer(Sealer(DnsDocument, Path(constants.DEFAULT_LOCAL_TMP) / "unmoor").seal)
        result["documents"] = {
            host: {
                "edge": text_with_secrets(pair.edge),
                "dns": writer.text(pair.dns),
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
    members = list(dict.fromkeys(host for hosts in groups.values() for host in hosts))
    sources = [Path(path) for path in variables.get("ansible_inventory_sources") or ()]
    problems = list(duplicate_pops(sources))
    for place, key, why, fix in inventory_files.faults(sources):
        problems.append(Problem(shown(Path(place)), key, "", why, fix))
    settings = {host: dict(_settings(hostvars[host], host, problems)) for host in members}
    directories = {host: Path(str(hostvars[host]["inventory_dir"])) for host in members}
    machines = {host: _reached_at(host, hostvars[host]) for host in members}
    compiled = compile_inventory(settings, groups, directories, place_of, _registry, machines)
    problems += compiled.problems
    roles = read_roles(ROOT / "roles")
    for host in members:
        problems += _role_problems(host, hostvars[host], roles, edge=host in groups.get(EDGES_GROUP, ()))
    problems += _expected_problems(variables.get(EXPECTED, ""))
    problems += check_inventory.problems(compiled)
    return compiled.documents, list(merged(problems))


def _reached_at(host: str, variables: Mapping[str, Any]) -> str:
    """Return the name or address to which ssh would connect for a host, by ssh's configuration."""
    given = str(variables.get("ansible_host") or host)
    if variables.get("ansible_connection", "ssh") != "ssh" or _is_address(given):
        return given
    try:
        texts = [str(variables.get(f"ansible_ssh_{name}args") or "") for name in ("", "common_", "extra_")]
        options = shlex.split(" ".join(texts))
        command = ["ssh", "-G", *options, given]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (AnsibleError, ValueError, OSError, subprocess.SubprocessError):
        return given  # ssh reports the fault when it connects
    found = re.search(r"^hostname (\S+)$", done.stdout, re.MULTILINE)
    return found[1] if found else given


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def version_problems(version: str) -> Iterator[Problem]:
    """Yield a problem if this version of ansible-core is too old for the playbooks."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_ANSIBLE:
        oldest = ".".join(map(str, MIN_ANSIBLE))
        fix = "run .venv/bin/ansible-playbook of this repository, which `make setup` installs"
        yield Problem("controller", "ansible-core", version, f"is older than {oldest}", fix)


def package_problems(collection: str) -> Iterator[Problem]:
    """Yield a problem if the controller's package has another version than the collection."""
    if unmoor.__version__ != collection:
        why = f"is not {collection}, the version of the collection unmoor.unmoor"
        fix = f"install the package in that version for {sys.executable}"
        yield Problem("controller", "unmoor", unmoor.__version__, why, fix)


def _data_as_hosts(variables: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each file, such as a list of hostnames, whose lines Ansible has read as hosts.

    It does when it is given the inventory's directory, and no ansible.cfg that excludes the file.
    """
    hosts = variables["groups"].get("ungrouped") or ()
    for path in dict.fromkeys(Path(str(variables["hostvars"][host].get("inventory_file"))) for host in hosts):
        if path.suffix not in INVENTORY_SUFFIXES and path.is_file():
            why = "is no inventory, but its lines were read as hosts"
            fix = "name the inventory's file of hosts instead of its directory: -i DIRECTORY/hosts.yml"
            yield Problem(shown(path), "", "", why, f"{fix}; or set ignore_patterns in your ansible.cfg")


@dataclass(frozen=True)
class Role:
    """Options of a role's argument specification, and its defaults."""

    options: dict[str, Any]
    defaults: dict[str, Any]


def read_roles(directory: Path) -> dict[str, Role]:
    """Return the roles of this repository by name."""
    found = {}
    for path in sorted(directory.glob("*/meta/argument_specs.yml")):
        specs = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        defaults = path.parents[1] / "defaults/main.yml"
        found[path.parents[1].name] = Role(
            specs.get("main", {}).get("options") or {},
            (yaml.safe_load(defaults.read_text(encoding="utf-8")) or {}) if defaults.exists() else {},
        )
    return found


def _role_problems(
    host: str, variables: Mapping[str, Any], roles: Mapping[str, Role], *, edge: bool
) -> Iterator[Problem]:
    """Find problems that a role would report only during the host's turn."""
    prefixes = tuple(f"{role}_" for role in roles)
    given = {name: _resolved(variables, name) for name in variables if name.startswith(prefixes)}

    def place(value: Any) -> str:
        return place_of(value) or HOST_PLACE + host

    yield from unknown_variables(given, {name: tuple(role.options) for name, role in roles.items()}, place)
    for role in roles.values():
        options = {name: each for name, each in role.options.items() if name not in SET_BY_PLAYBOOKS}
        values = {name: given[name] for name in options if given.get(name) is not None}
        for message in ArgumentSpecValidator(options).validate(values).error_messages:
            name = next((name for name in values if name in message), "")
            fix = "correct it: the role's README describes its variables"
            yield Problem(place(values.get(name)), name, "", str(message), fix)
    if edge and all(given.get(name, "") is not None for name in roles["listener"].options):
        yield from _listener_problems(variables, roles["listener"].defaults | given, place)


def _resolved(variables: Mapping[str, Any], name: str) -> Any:
    """Return a variable's value; None for a template that needs what is not known yet, such as facts."""
    try:
        json.dumps(value := variables[name])  # every template inside is resolved here
    except (AnsibleError, TypeError):
        return None
    return value


def _listener_problems(
    variables: Mapping[str, Any], listener: Mapping[str, Any], place: Callable[[Any], str]
) -> Iterator[Problem]:
    services, own = variables.get("unmoor_services"), variables.get("unmoor_own_listeners") or ()
    if isinstance(services, Mapping) and isinstance(own, Sequence):
        labels = {name: str(listener[name] or "") for name in LISTENERS}
        dns_service = str(variables.get("unmoor_dns_service") or "")
        yield from unserved(
            tuple(services), labels, own, dns_service, lambda name: place(variables.get(name))
        )
    if not listener["listener_certificate"] and not (
        variables.get("authority_dir") and listener["listener_names"]
    ):
        why = "is missing, so that nginx could not serve TLS"
        fix = "name files on the edge: listener_certificate and listener_certificate_key"
        yield Problem(place(None), "listener_certificate", "", why, fix)


def _expected_problems(expected: Any) -> Iterator[Problem]:
    try:
        parse_expected(str(expected))
    except InvalidInputError as error:
        yield from error.problems


def _registry(file: Path, zones: Sequence[str]) -> tuple[Path, str, int]:
    return registry_cache.prepare(file, zones, cache() / "registry")


def _settings(variables: Mapping[str, Any], host: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """Yield Unmoor's variables of one host; a template that fails is added to `problems`."""
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


def duplicate_pops(sources: Sequence[Path]) -> Iterator[Problem]:
    """Yield a problem for each PoP defined in several files, since Ansible silently merges their hosts."""
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
                f"is a second PoP of the same name; the first is in {files[0]}",
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
