"""Run a module that returns documents, and seal the secrets in its result.

Ansible uses this plugin for the module of the same name, and through a symbolic link for in_force.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action.normal import ActionModule as Normal

from unmoor.model import DnsDocument
from unmoor.model.secrets import Sealer


class ActionModule(Normal):
    """Seals the secrets of documents in the module's result (unmoor.model.secrets)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        # At -vvv the ssh connection prints the module's result before it is sealed.
        self._connection._play_context.no_log = True
        sealer = Sealer(DnsDocument, Path(constants.DEFAULT_LOCAL_TMP) / "unmoor")
        result: dict[str, Any] = sealer.seal_all(super().run(tmp, task_vars))
        return result
