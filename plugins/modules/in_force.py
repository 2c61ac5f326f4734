#!/usr/bin/python
"""Read what an edge's services have in force, and compare it with the edge's documents."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: in_force
short_description: Read what an edge's services have in force
description:
  - Reads what the DNS server and the kernel have in force, over one connection, and compares it with the
    documents on the edge. They differ when a run was interrupted after it wrote a document and before the
    reload.
  - Changes nothing.
options:
  edge:
    description: Path of the document of the sockets half.
    default: /etc/unmoor/edge.json
    type: path
  dns:
    description: Path of the document of the DNS half.
    default: /etc/unmoor/dns.json
    type: path
  program:
    description: Path of the program C(unmoor).
    default: /opt/unmoor/current/bin/unmoor
    type: path
"""

EXAMPLES = """
- name: Read what is in force
  unmoor.unmoor.in_force:
  register: in_force

- name: Refuse to continue after an interrupted run
  ansible.builtin.assert:
    that: (in_force.dns + in_force.edge) | length == 0
    fail_msg: "{{ (in_force.dns + in_force.edge) | join('\\n') }}"
"""

RETURN = """
documents:
  description: >-
    The texts C(edge) and C(dns), "" for one that does not exist. C(dns) is the document that the DNS server
    answers from, if the server reports it, otherwise the file. They may contain sealed secrets.
  returned: always
  type: dict
dns:
  description: Messages on how the DNS server's document differs from its file; empty when it does not.
  returned: always
  type: list
edge:
  description: Messages on how the kernel's state differs from C(edge); empty when it does not.
  returned: always
  type: list
down:
  description: Why the DNS server does not answer; empty when it does.
  returned: always
  type: list
"""

COMMANDS = (
    ("dns", "status", "--json", "--text"),
    ("sockets", "diff"),
    ("anyip", "apply", "--check"),
)
#: Exit status, output and errors of a command.
Answer = tuple[int, str, str]
UNREPORTED = "DNS: the release {} does not report its document, so it is reloaded"


def in_force(documents: dict[str, str], answers: list[Answer]) -> dict[str, Any]:
    """Return the module's result; `answers` are exit status, output and errors of COMMANDS."""
    found: dict[str, Any] = {"documents": documents, "dns": [], "edge": [], "down": []}
    if not all(documents.values()):  # the edge was never rolled out
        return found
    (status, out, err), *compared = answers
    if "No such option" in err:
        found["dns"] = [UNREPORTED.format("on the edge")]
    elif status:
        found["down"] = [f"the DNS server does not answer: {last_line(err, status)}"]
    else:
        found["dns"], text = dns_in_force(documents["dns"], json.loads(out))
        found["documents"] = {**documents, "dns": text}
    for what, (status, out, err) in zip(("dispatch table", "local prefixes"), compared, strict=True):
        if status not in (0, 1):
            found["edge"].append(f"{what}: cannot be compared with edge.json: {last_line(err, status)}")
        elif "no change" not in out:
            found["edge"].append(f"{what}: edge.json is not in force ({last_line(out, status)})")
    return found


def dns_in_force(file: str, status: dict[str, Any]) -> tuple[list[str], str]:
    """Return how the server with this `status` differs from its file, and the text that it answers from."""
    if "text" not in status:
        return [UNREPORTED.format(status["release"])], file
    lines = []
    if status["document"] != hashlib.sha256(file.encode()).hexdigest():
        lines.append("DNS: dns.json on the edge is not in force: a run was cut short before the reload")
    half = [str(each["pid"]) for each in status["workers"] if each["document"] != status["document"]]
    if half:
        lines.append(f"DNS: workers {', '.join(half)} answer from another document than the others")
    return lines, status["text"]


def last_line(text: str, status: int) -> str:
    """Return the last line that a command printed, or its exit status."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"exit status {status}"


def read(path: str) -> str:
    """Return the exact text of a file; "" if it does not exist."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def ask(module: AnsibleModule, command: tuple[str, ...]) -> Answer:
    """Run a command of the program; return exit status, output and errors."""
    try:
        words = [module.params["program"], *command]
        answer: Answer = module.run_command(words, handle_exceptions=False)
    except OSError as error:
        return 127, "", f"{module.params['program']}: {error.strerror}"
    return answer


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "edge": {"type": "path", "default": "/etc/unmoor/edge.json"},
            "dns": {"type": "path", "default": "/etc/unmoor/dns.json"},
            "program": {"type": "path", "default": "/opt/unmoor/current/bin/unmoor"},
        },
        supports_check_mode=True,
    )
    try:
        documents = {name: read(module.params[name]) for name in ("edge", "dns")}
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    rolled_out = all(documents.values())
    answers = [ask(module, command) for command in COMMANDS] if rolled_out else []
    module.exit_json(changed=False, **in_force(documents, answers))


if __name__ == "__main__":
    main()
