"""Run the module unmoor.unmoor.files with sealed secrets unsealed, and seal its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action.normal import ActionModule as Normal

from unmoor.model import DnsDocument
from unmoor.model.secrets import Sealer


class ActionModule(Normal):
    """Unseals the secrets of documents for the module alone (unmoor.model.secrets)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        # At -vvv the ssh connection prints the module's result before it is sealed.
        self._connection._play_context.no_log = True
        sealer = Sealer(DnsDocument, Path(constants.DEFAULT_LOCAL_TMP) / "unmoor")
        task = self._task.args
        if isinstance(task.get("files"), list):
            self._task.args = task | {"files": [_unsealed(sealer, file) for file in task["files"]]}
        try:
            # Otherwise the module logs its arguments, with the files' text, to the host's syslog.
            quiet = (task_vars or {}) | {"ansible_no_target_syslog": True}
            result: dict[str, Any] = sealer.seal_all(super().run(tmp, quiet))
        finally:
            self._task.args = task
        return result


def _unsealed(sealer: Sealer, file: Any) -> Any:
    """Unseal the content of one file; leave it to the module to refuse anything else."""
    if isinstance(file, dict) and isinstance(file.get("content"), str):
        return file | {"content": sealer.unseal(file["content"])}
    return file
