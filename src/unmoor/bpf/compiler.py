"""Compilation of `dispatch.bpf.c` with clang."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.resources import as_file, files
from pathlib import Path

from unmoor.errors import UnmoorError

_FLAGS = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3")
_PACKAGES = {
    "linux/": "linux-libc-dev",
    "asm/": "linux-libc-dev",
    "bpf/": "libbpf-dev",
}


def compile_program(output: Path, clang: str = "clang", source: Path | None = None) -> None:
    """Compile the dispatch program, or `source`, to a BPF object, and replace `output` with it atomically.

    Needs clang and the UAPI headers only: no kernel headers, no BTF of the running kernel. Raises UnmoorError
    when it cannot be compiled or written; where clang or a header is missing, the error names the Debian
    package.
    """
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with as_file(files("unmoor.sockets.dispatch") / "dispatch.bpf.c") as default:
            # Debian keeps <asm/types.h> in a directory per architecture, which `-target bpf` does not search.
            machine = f"/usr/include/{platform.machine()}-linux-gnu"
            run = subprocess.run(
                [clang, *_FLAGS, "-idirafter", machine, "-c", str(source or default), "-o", str(unfinished)],
                capture_output=True,
                text=True,
                check=False,
            )
        if run.returncode != 0:
            raise UnmoorError(_explain(run.stderr))
        unfinished.replace(output)
    except FileNotFoundError as error:
        if error.filename != clang:
            raise UnmoorError(f"cannot write {output}: {error.strerror}") from None
        raise UnmoorError(f"{clang} is missing: install the Debian package clang") from None
    except OSError as error:
        raise UnmoorError(f"cannot write {output}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _explain(messages: str) -> str:
    for line in messages.splitlines():
        if "file not found" in line:
            for folder, package in _PACKAGES.items():
                if f"'{folder}" in line:
                    return f"{line.strip()}: install the Debian package {package}"
    return "clang failed:\n" + messages.strip()
