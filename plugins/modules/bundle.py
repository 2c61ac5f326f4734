#!/usr/bin/python
"""Documentation of the action plugin plugins/action/bundle.py, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = """
module: bundle
short_description: Build the archive of a release
description:
  - Runs on the controller. The archive holds Unmoor's package and its dependencies (C(site)), and the
    launcher (C(bin)).
  - The package is the one of the checkout that the collection is. If the collection was installed without
    it, the package is the one that is installed on the controller.
  - The archive is named by a hash of everything it is built from, so it is built only once. In check mode it
    is not built.
options:
  python:
    description: Python version of the host, such as C(3.11).
    required: true
    type: str
  architecture:
    description: Machine type of the host, such as C(x86_64).
    required: true
    type: str
"""

EXAMPLES = """
- name: Build the bundle
  unmoor.unmoor.bundle:
    python: "3.11"
    architecture: x86_64
  delegate_to: localhost
  register: bundle
"""

RETURN = """
id:
  description: Name of the release, its version and a hash.
  returned: success
  type: str
  sample: 0.1.0-0123456789ab
path:
  description: Path of the archive on the controller.
  returned: success
  type: str
"""
