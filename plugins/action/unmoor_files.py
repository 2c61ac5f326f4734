"""Run the module unmoor_files: sealed secrets are put back on the way, and its result is sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action.normal import ActionModule as Normal

from unmoor.model import DnsDocument
from unmoor.model.secrets import Sealer


class ActionModule(Normal):
    """The module, with the secrets of documents unsealed for it alone (unmoor.model.secrets)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        # At -vvv the ssh connection prints what a module returns, before it can be sealed.
        self._connection._play_context.no_log = True
        sealer = Sealer(DnsDocument, Path(constants.DEFAULT_LOCAL_TMP) / "unmoor")
        task = self._task.args
        if isinstance(task.get("files"), list):
            self._task.args = task | {"files": [_unsealed(sealer, file) for file in task["files"]]}
        try:
            # The log of the host would get the text of the files.
            quiet = (task_vars or {}) | {"ansible_no_target_syslog": True}
            result: dict[str, Any] = sealer.seal_all(super().run(tmp, quiet))
        finally:
            self._task.args = task
        return result


def _unsealed(sealer: Sealer, file: Any) -> Any:
    """One of the module's files; what is no file is for the module to refuse."""
    if isinstance(file, dict) and isinstance(file.get("content"), str):
        return file | {"content": sealer.unseal(file["content"])}
    return file
