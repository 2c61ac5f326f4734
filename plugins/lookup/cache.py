"""Paths of files that the controller builds."""

from __future__ import annotations

from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.unmoor.unmoor.plugins.plugin_utils.tree import cache

DOCUMENTATION = """
name: cache
short_description: Return the path of a file that the controller builds
description:
  - Returns a path in the directory C(.cache) of the checkout; when the collection is installed, in
    C(unmoor) of E(XDG_CACHE_HOME), by default in C(~/.cache/unmoor).
  - Creates nothing.
options:
  _terms:
    description: Names of files.
    type: list
    elements: str
    required: true
"""

EXAMPLES = """
- name: Show the path
  ansible.builtin.debug:
    msg: "{{ lookup('unmoor.unmoor.cache', 'dispatch.bpf.o') }}"
"""

RETURN = """
_raw:
  description: The paths.
  type: list
  elements: path
"""


class LookupModule(LookupBase):
    """Paths below unmoor.unmoor's cache."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **_options: Any) -> list[str]:
        """Return a path for each term."""
        return [str(cache() / term) for term in terms]
