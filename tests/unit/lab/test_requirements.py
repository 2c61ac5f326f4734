"""What a lab needs of the computer: the limit of inotify instances."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from unmoor.errors import UnmoorError
from unmoor.lab import requirements

LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")


def test_open_instances_are_counted() -> None:
    own = Path("/proc") / str(os.getpid())
    before = len(list(requirements.inotify_descriptors(own)))
    opened = [ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC) for _ in range(3)]
    try:
        assert min(opened) >= 0, "inotify instances are used up"
        assert len(list(requirements.inotify_descriptors(own))) == before + 3
        assert requirements.inotify_instances() >= before + 3
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert len(list(requirements.inotify_descriptors(own))) == before


def test_more_hosts_than_the_limit_allows_are_refused() -> None:
    limit = int(LIMIT.read_text())
    requirements.require_inotify(0)
    with pytest.raises(UnmoorError) as raised:
        requirements.require_inotify(limit)
    first, fix = str(raised.value).splitlines()
    assert first.startswith(f"{LIMIT} = {limit}: {limit} more hosts need {4 * limit} inotify instances, and ")
    name, wanted = fix.removeprefix("    fix: sysctl ").split("=")
    assert name == "fs.inotify.max_user_instances"
    assert int(wanted) >= 4 * limit


def test_a_host_that_fails_because_of_the_limit_is_reported_with_the_fix() -> None:
    advice = requirements.inotify_advice("systemd[1]: Failed to allocate manager object: Too many open files")
    assert advice.startswith("\n    fix: sysctl fs.inotify.max_user_instances=")
