"""Kills the controller as it comes to the task named by $KILL_AT_TASK, before any host is sent it."""

from __future__ import annotations

import os
import signal
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """See above."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "kill_at_task"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Called in the controller's own process, before a task is sent to hosts."""
        if task.get_name().endswith(os.environ["KILL_AT_TASK"]):
            os.kill(os.getpid(), signal.SIGKILL)
