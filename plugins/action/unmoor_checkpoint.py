"""Run a module that returns documents, which may hold secrets, and seal what it returns.

The plugin is that of every module whose name it, or a link to it, has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action.normal import ActionModule as Normal

from unmoor.model import DnsDocument
from unmoor.model.secrets import Sealer


class ActionModule(Normal):
    """The module's result, with the secrets of its documents sealed (unmoor.model.secrets)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        # At -vvv the ssh connection prints what a module returns, before it can be sealed.
        self._connection._play_context.no_log = True
        sealer = Sealer(DnsDocument, Path(constants.DEFAULT_LOCAL_TMP) / "unmoor")
        result: dict[str, Any] = sealer.seal_all(super().run(tmp, task_vars))
        return result
