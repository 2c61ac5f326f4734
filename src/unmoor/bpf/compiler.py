"""Compilation of `dispatch.bpf.c` with clang."""

from __future__ import annotations

import os
import platform
from importlib.resources import as_file, files
from pathlib import Path

from unmoor import process
from unmoor.errors import UnmoorError

_FLAGS = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3")
#: The Debian package of a missing header, by the start of its name as clang quotes it.
_FIXES = {
    "'linux/": "install the Debian package linux-libc-dev",
    "'asm/": "install the Debian package linux-libc-dev",
    "'bpf/": "install the Debian package libbpf-dev",
}
#: Seconds that a compilation may take; it takes one.
_TIMEOUT = 300.0


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
            command = [clang, *_FLAGS, "-idirafter", machine, "-c", str(source or default)]
            process.run([*command, "-o", str(unfinished)], timeout=_TIMEOUT, fixes=_FIXES)
        unfinished.replace(output)
    except OSError as error:
        raise UnmoorError(f"cannot write {output}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
