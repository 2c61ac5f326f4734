#!/usr/bin/python
"""Install several files at once: all are validated before the first one is replaced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import grp
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: files
short_description: Install files, all validated before the first one is replaced
description:
  - Writes each file that differs to a temporary file in the same directory, validates all of them, and only
    then renames them, one after the other, over one connection. Missing directories are created (C(0755),
    root).
  - Temporary files are removed when a write fails. The next run removes those of a run that was killed, even
    when no file differs.
  - In check mode nothing is written, and the differences are the same, also on a host where nothing is
    installed.
  - Secrets that M(unmoor.unmoor.preflight) or M(unmoor.unmoor.checkpoint) sealed in a text are unsealed on
    the way to the host. They appear in no output and no log.
options:
  files:
    description: The files, in the order in which they are installed.
    required: true
    type: list
    elements: dict
    suboptions:
      path:
        description: Path of the file.
        required: true
        type: path
      content:
        description: Text of the file.
        required: true
        type: str
      mode:
        description: Permissions, in octal.
        default: "0644"
        type: str
      group:
        description: Group that owns the file.
        default: root
        type: str
      validate:
        description: Command that must accept the file first; C(%s) becomes the path of the temporary file.
        type: str
"""

EXAMPLES = """
- name: Install units
  unmoor.unmoor.files:
    files:
      - path: /etc/systemd/system/one.service
        content: "{{ lookup('ansible.builtin.template', 'one.service.j2') }}"
      - path: /etc/systemd/system/two.service
        content: "{{ lookup('ansible.builtin.template', 'two.service.j2') }}"

- name: Install dns.json
  unmoor.unmoor.files:
    files:
      - path: /etc/unmoor/dns.json
        content: "{{ preflight.documents[inventory_hostname].dns }}"
        mode: "0640"
        group: unmoor-dns
        validate: unmoor dns check %s
"""

RETURN = """
paths:
  description: The files that differed.
  returned: always
  type: list
"""

FILE = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "required": True},
    "mode": {"type": "str", "default": "0644"},
    "group": {"type": "str", "default": "root"},
    "validate": {"type": "str"},
}

#: Prefix of temporary files. The dot keeps programs that read whole directories from reading them.
TEMPORARY = ".unmoor-"
#: Held while files are written, so that temporary files found by its holder are those of a killed run. It is
#: in a directory of root's, since whoever can open a lock can hold it.
LOCK = "/run/unmoor-files.lock"


class WriteError(Exception):
    """A file cannot be written; the text has the file, the reason and, if known, the fix."""


def current(path: str) -> tuple[str, int, str] | tuple[None, None, None]:
    """Return text, permissions and group of the file at `path`; None for each if it does not exist."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            status = os.fstat(file.fileno())
            return file.read(), status.st_mode & 0o7777, group_name(status.st_gid)
    except FileNotFoundError:
        return None, None, None


def group_name(number: int) -> str:
    """Return the group's name, or its number if it has none."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def difference(file: dict[str, Any]) -> dict[str, str] | None:
    """Return the difference of the installed file and the wanted one, as Ansible's diff; None if equal."""
    text, mode, group = current(file["path"])
    want = int(file["mode"], 8)
    if (text, mode, group) == (file["content"], want, file["group"]):
        return None
    shown = {"before_header": file["path"], "after_header": file["path"]}
    shown["before"], shown["after"] = text or "", file["content"]
    if text is not None and (mode, group) != (want, file["group"]):
        shown["before_header"] += f" (mode {mode:04o}, group {group})"
        shown["after_header"] += f" (mode {want:04o}, group {file['group']})"
    return shown


def write_beside(file: dict[str, Any]) -> str:
    """Write the file to a temporary file with its permissions; return its path. Raises WriteError."""
    folder = os.path.dirname(file["path"])
    name = None
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(file["content"])
            out.flush()
            os.fsync(out.fileno())
        shutil.chown(name, "root", file["group"])
        os.chmod(name, int(file["mode"], 8))
    except (OSError, LookupError) as error:
        if name:
            os.unlink(name)
        raise WriteError(reason(file, error)) from None
    return name


def reason(file: dict[str, Any], error: OSError | LookupError) -> str:
    """Return why `file` cannot be written; an error of its temporary file is reported as the file's own."""
    if isinstance(error, LookupError):
        return f"{file['path']}: {error}: create the group before its files"
    text = f"{file['path']}: cannot be written: {error.strerror}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    mount = mount_of(os.path.dirname(file["path"]))
    status = os.statvfs(mount)
    free = f"{status.f_bavail * status.f_frsize} bytes"
    if status.f_files:
        free += f" and {status.f_favail} inodes"
    needed = len(file["content"].encode())
    return (
        f"{text}: it has {needed} bytes, and the file system at {mount} has {free} free\n"
        f"    fix: free space there and run this again; what was in place is unchanged"
    )


def mount_of(folder: str) -> str:
    """Return the mount point of the file system of `folder`, or of its nearest existing parent."""
    path = os.path.realpath(folder)
    while path != "/" and (not os.path.exists(path) or not os.path.ismount(path)):
        path = os.path.dirname(path)
    return path


def remove_stale(folders: Iterable[str]) -> None:
    """Remove temporary files of killed runs from `folders`; the caller holds LOCK."""
    for folder in folders:
        for path in glob.glob(os.path.join(glob.escape(folder), TEMPORARY + "*"), include_hidden=True):
            if os.path.isdir(path) and not os.path.islink(path):  # of the module checkpoint
                shutil.rmtree(path)
            else:
                os.unlink(path)


def validate(module: AnsibleModule, file: dict[str, Any], written: str) -> None:
    """Fail the module unless the file's command accepts it."""
    if not file["validate"]:
        return
    status, out, err = module.run_command(
        [word.replace("%s", written) for word in shlex.split(file["validate"])]
    )
    if status:
        reason = (out + err).replace(written, file["path"]).strip()
        module.fail_json(msg=f"{file['path']} was not installed: {reason}", rc=status)


def place(module: AnsibleModule, files: list[dict[str, Any]]) -> None:
    """Write, validate and rename; temporary files are removed in any case. Raises WriteError."""
    written = {}
    try:
        for file in files:
            written[file["path"]] = write_beside(file)
        for file in files:
            validate(module, file, written[file["path"]])
        for file in files:
            try:
                os.rename(written[file["path"]], file["path"])
            except OSError as error:
                raise WriteError(reason(file, error)) from None
            del written[file["path"]]
    finally:
        for name in written.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "options": FILE, "required": True}},
        supports_check_mode=True,
    )
    try:
        found = [(file, difference(file)) for file in module.params["files"]]
        changed = [file for file, shown in found if shown]
        if not module.check_mode:
            with open(os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600), "w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                remove_stale({os.path.dirname(file["path"]) for file, _ in found})
                place(module, changed)
    except WriteError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(
        changed=bool(changed),
        paths=[file["path"] for file in changed],
        diff=[shown for _, shown in found if shown],
    )


if __name__ == "__main__":
    main()
