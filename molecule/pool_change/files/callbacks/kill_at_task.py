"""Kills the controller when it reaches the task named by $KILL_AT_TASK, if any, before it runs on a host."""

from __future__ import annotations

import os
import signal
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Sends SIGKILL to its own process at the start of that task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "kill_at_task"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Called in the controller's own process, before a task is sent to hosts."""
        last = os.environ.get("KILL_AT_TASK")
        if last and task.get_name().endswith(last):
            os.kill(os.getpid(), signal.SIGKILL)
