"""A virtual machine that boots a given kernel on the host's files, runs one command and powers off.

The guest's root is the host's root, shared read-only (9P) below a tmpfs for writes: Python, the virtual
environment, clang and this checkout are the same files at the same paths. It has no network and no disk.
"""

from __future__ import annotations

import lzma
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import debian_kernel
from debian_kernel import DebianKernel

#: What the root needs before modules can be loaded from it.
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_MARK = "exit status of the command"

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
sh -eu /prepare && chroot /root /bin/bash /run/command
echo "{mark}: $?"
poweroff -f
"""

_PREPARE = """\
for module in /modules/*; do insmod "$module"; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 root /lower
mount -t tmpfs -o mode=0755 tmpfs /writable
mkdir /writable/upper /writable/work
mount -t overlay -o lowerdir=/lower,upperdir=/writable/upper,workdir=/writable/work overlay /root
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t bpf -o mode=0700 bpf /root/sys/fs/bpf
mount -t devtmpfs dev /root/dev
mkdir /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t tmpfs tmpfs /root/run
mkdir -p /root/run/tmp /root/usr/lib/modules
mount --bind /lower{modules} /root/usr/lib/modules
cp /command /root/run/command
"""

_COMMAND = """\
cd {directory}
export {environment}
exec {command}
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """The command's exit status (None if the machine stopped without one) and the console's output."""

    status: int | None
    output: str


def run_in(kernel: DebianKernel, command: Sequence[str], work: Path, timeout: float) -> Ended:
    """Boot `kernel` on the host's files, and run `command` in this checkout.

    The initramfs and the console's log are written to `work`. After `timeout` seconds the machine is killed.
    """
    unpacked = kernel.unpacked()
    initramfs = _initramfs(debian_kernel.modules_of(unpacked), command, work)
    log = work / "console.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=256"),
                *("-cpu", kernel.cpu, "-smp", "2", "-m", "1024"),
                *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
                *("-kernel", str(debian_kernel.image_of(unpacked)), "-initrd", str(initramfs)),
                *("-append", "console=ttyS0 quiet panic=-1 net.ifnames=0"),
                *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            output.write(f"\nno end after {timeout:g} seconds: killed\n".encode())
        finally:
            process.kill()
            process.wait()
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "")
    found = re.search(rf"^{_MARK}: (\d+)$", text, re.MULTILINE)
    return Ended(int(found[1]) if found else None, text)


def _initramfs(modules: Path, command: Sequence[str], work: Path) -> Path:
    tree = work / "initramfs"
    for directory in ("bin", "modules", "lower", "writable", "root"):
        (tree / directory).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for number, module in enumerate(_needed(modules)):
        data = module.read_bytes()
        name = module.name.removesuffix(".xz")
        (tree / f"modules/{number:02}-{name}").write_bytes(
            lzma.decompress(data) if name != module.name else data
        )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/root",
        "TMPDIR": "/run/tmp",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    files = {
        "init": _INIT.replace("{mark}", _MARK),
        "prepare": _PREPARE.replace("{modules}", str(modules.parent)),
        "command": _COMMAND.format(
            directory=shlex.quote(str(debian_kernel.ROOT)),
            environment=" ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
            command=shlex.join(command),
        ),
    }
    for name, content in files.items():
        (tree / name).write_text(content, encoding="utf-8")
        (tree / name).chmod(0o755)
    archive = work / "initramfs.cpio"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with archive.open("wb") as output:
        subprocess.run(
            ["cpio", "--quiet", "--create", "--format=newc", "--directory", str(tree)],
            input=names.encode(),
            stdout=output,
            check=True,
        )
    return archive


def _needed(modules: Path) -> Iterator[Path]:
    """The files of `_MODULES` that are not built in and what they depend on, each after all that it needs."""
    lines = (modules / "modules.dep").read_text(encoding="utf-8").splitlines()
    dependencies = {path: needs.split() for path, needs in (line.split(":") for line in lines)}
    by_name = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in dependencies}
    wanted: dict[str, None] = {}
    for name in _MODULES:
        if path := by_name.get(name):
            # depmod lists what is needed last first.
            wanted |= dict.fromkeys([*reversed(dependencies[path]), path])
    return (modules / path for path in wanted)
