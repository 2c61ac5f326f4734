"""The sockets half on the kernels that Debian ships: tests of `tests/netns`, run in a virtual machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from debian_kernel import DebianKernel
from machine import run_in

#: `-cpu max` of QEMU 7.2 makes Linux 6.12 panic.
KERNELS = [
    DebianKernel("6.1", suite="bookworm", cpu="max"),
    DebianKernel("6.12", suite="trixie", cpu="Nehalem"),
]
TESTS = [
    f"tests/netns/test_{name}.py"
    for name in (
        "sockets_kernel",
        "sockets_dispatch",
        "sockets_conformance",
        "sockets_slots",
        "sockets_looking",
        "sockets_registration",
        "udp",
    )
]
#: Timeout for each kernel, seconds: many times the usual duration.
TIMEOUT = 3600


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.version)
def test_sockets_half(kernel: DebianKernel, tmp_path: Path) -> None:
    pytest_in = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--color=no", *TESTS]
    # Debian's default, and nothing may depend on another: BPF is for those with a capability for it.
    script = 'uname -r && sysctl -w kernel.unprivileged_bpf_disabled=2 && exec "$@"'
    ended = run_in(kernel, ["bash", "-c", script, "bash", *pytest_in], tmp_path, TIMEOUT)
    assert f"\n{kernel.version}." in f"\n{ended.output}"
    assert ended.status == 0, ended.output
