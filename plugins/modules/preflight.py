#!/usr/bin/python
"""Documentation of the action plugin plugins/action/preflight.py, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = """
module: preflight
short_description: Validate the inventory and compile the documents of every edge
description:
  - Runs on the controller and contacts no host. Finds every problem of the inventory at once, with its file,
    line and fix.
  - Compiles the documents of each edge. A list of hostnames for a registry is built into a registry file
    in the controller's cache first (P(unmoor.unmoor.cache#lookup)).
  - Secrets in the documents are sealed, so that they can be printed and compared; M(unmoor.unmoor.files)
    unseals them.
options: {}
"""

EXAMPLES = """
- name: Validate the inventory
  unmoor.unmoor.preflight:
  register: preflight

- name: Show an edge's document
  ansible.builtin.debug:
    msg: "{{ preflight.documents['edge1'].dns | from_json }}"
"""

RETURN = """
documents:
  description: >-
    For each edge, the texts C(edge) and C(dns), and C(registry), the path on the controller of its registry
    of hostnames, "" for none.
  returned: success
  type: dict
pops:
  description: Names of all PoPs, sorted.
  returned: success
  type: list
  elements: str
run:
  description: When this run began, in UTC. Names the run in checkpoints.
  returned: success
  type: str
  sample: 2026-01-31 12:00:00 UTC
"""
