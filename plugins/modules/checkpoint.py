#!/usr/bin/python
"""Save what is in force on a host before a change, and restore it; affected services are reloaded."""

from __future__ import annotations

import filecmp
import fnmatch
import glob
import json
import os
import shutil
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: checkpoint
short_description: Save what is in force on a host, and restore it
description:
  - A checkpoint is a directory below O(directory) with copies of all files that match O(parts), and a list of
    them. C(turn) is created before a host is changed and exists until that turn ends; C(before) is the one
    from before the last successful turn that changed anything.
  - Restoring a checkpoint puts back each file that differs and removes files that were created later. Then it
    runs the command of each part in which a file differed, in the order of O(parts).
options:
  state:
    description:
      - C(read) changes nothing. C(begun) creates C(turn). If it exists, the previous turn was interrupted,
        and it is left as it is, since its content is older than any change.
      - C(restored) restores O(name). C(kept) ends a successful turn, C(undone) one that was restored, and
        C(back) one that was rolled back to C(before), which is then removed.
    choices: [read, begun, restored, kept, undone, back]
    default: read
    type: str
  name:
    description: Checkpoint to restore.
    choices: [turn, before]
    default: turn
    type: str
  run:
    description: Name of this run, for people; saved in the checkpoint.
    default: ""
    type: str
  documents:
    description: >-
      Paths of documents by name; their text is returned. A host without one of them was never rolled out.
    type: dict
    default: {}
  parts:
    description: Files to save, in the order in which they are activated.
    type: list
    elements: dict
    default: []
    suboptions:
      paths:
        description: Patterns of paths; C(*) does not match a slash. Directories are left out.
        required: true
        type: list
        elements: str
      linked:
        description: Save hard links instead of copies, for files whose content never changes.
        default: false
        type: bool
      command:
        description: Shell command that brings the files into force.
        default: ""
        type: str
  directory:
    description: Directory of the checkpoints.
    default: /var/lib/unmoor/checkpoint
    type: path
"""

EXAMPLES = """
- name: Create a checkpoint before a change
  unmoor.unmoor.checkpoint:
    state: begun
    run: "{{ preflight.run }}"
    parts:
      - paths: [/etc/unmoor/dns.json]
        command: systemctl reload unmoor-dns.service

- name: Restore it after a failed change
  unmoor.unmoor.checkpoint:
    state: restored
    parts:
      - paths: [/etc/unmoor/dns.json]
        command: systemctl reload unmoor-dns.service
"""

RETURN = """
fresh:
  description: Whether the host was never rolled out, so that there is nothing to restore.
  returned: when state is begun or restored
  type: bool
interrupted:
  description: Whether the previous turn was interrupted.
  returned: when state is begun
  type: bool
paths:
  description: The files that were restored or removed.
  returned: when state is restored
  type: list
documents:
  description: Text of each document, "" for one that does not exist.
  returned: always
  type: dict
before:
  description: >-
    C(run) and C(documents) of the checkpoint C(before), or the reason why it is C(broken). Empty when there
    is none, and when state is not read.
  returned: always
  type: dict
"""

PART = {
    "paths": {"type": "list", "elements": "str", "required": True},
    "linked": {"type": "bool", "default": False},
    "command": {"type": "str", "default": ""},
}
FORMAT = 1


class BrokenError(Exception):
    """A checkpoint cannot be restored; the text gives the reason."""


def matches(path, pattern):
    """Whether `path` matches, component by component, so that a star does not match a slash."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def found(patterns):
    """Return files and links that match any of `patterns`, sorted; dangling links are included."""
    paths = {path for pattern in patterns for path in glob.glob(pattern, include_hidden=True)}
    return sorted(path for path in paths if os.path.islink(path) or not os.path.isdir(path))


def same(one, other):
    """Whether two paths have the same type, target or content, permissions and owner."""
    try:
        a, b = os.lstat(one), os.lstat(other)
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(a.st_mode) or stat.S_ISLNK(b.st_mode):
        return stat.S_IFMT(a.st_mode) == stat.S_IFMT(b.st_mode) and os.readlink(one) == os.readlink(other)
    if (a.st_mode, a.st_uid, a.st_gid) != (b.st_mode, b.st_uid, b.st_gid):
        return False
    return os.path.samestat(a, b) or filecmp.cmp(one, other, shallow=False)


def duplicate(source, target, linked):
    """Copy `source` to `target`, which must not exist; with `linked`, make a hard link if possible."""
    if linked and not os.path.islink(source):
        try:
            os.link(source, target)
        except OSError:  # another file system
            pass
        else:
            return
    status = os.lstat(source)
    shutil.copy2(source, target, follow_symlinks=False)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not os.path.islink(target):
        os.chmod(target, stat.S_IMODE(status.st_mode))
        sync(target)


def sync(path):
    """Write a file or directory to stable storage."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoint:
    """A directory `name` of copies below `home`."""

    def __init__(self, home, name):
        self.home, self.path = home, os.path.join(home, name)

    @property
    def exists(self):
        """Whether it exists; it is then complete, since it is renamed into place last."""
        return os.path.isdir(self.path)

    def copy_of(self, path):
        """Return the path of the copy of `path`."""
        return os.path.join(self.path, "files", path.lstrip("/"))

    def make(self, parts, run, fresh):
        """Create it: copy everything into a new directory, then rename that."""
        new = Checkpoint(self.home, "new")
        shutil.rmtree(new.path, ignore_errors=True)
        os.makedirs(new.path, mode=0o700)
        os.chmod(self.home, 0o700)  # it holds keys and secrets
        kept = {}
        for part in parts:
            for path in found(part["paths"]):
                if path not in kept:
                    kept[path] = part["linked"]
                    os.makedirs(os.path.dirname(new.copy_of(path)), exist_ok=True)
                    duplicate(path, new.copy_of(path), part["linked"])
        patterns = [pattern for part in parts for pattern in part["paths"]]
        leads = [path for path in kept if os.path.islink(path) and os.path.exists(path)]
        about = {"format": FORMAT, "run": run, "fresh": fresh}
        about |= {"patterns": patterns, "kept": kept, "leads": leads}
        with open(os.path.join(new.path, "about.json"), "w", encoding="utf-8") as file:
            json.dump(about, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new.path, self.path)
        sync(self.home)

    def about(self):
        """Return the list of what was saved. Raises BrokenError if that or a copy cannot be found."""
        try:
            with open(os.path.join(self.path, "about.json"), encoding="utf-8") as file:
                about = json.load(file)
        except (OSError, ValueError) as error:
            raise BrokenError(f"{self.path}: about.json cannot be read: {error}") from None
        if about.get("format") != FORMAT:
            raise BrokenError(
                f"{self.path} has format {about.get('format')}; this playbook supports {FORMAT}"
            )
        missing = [path for path in about["kept"] if not os.path.lexists(self.copy_of(path))]
        if missing:
            raise BrokenError(f"{self.path}: the copy of {missing[0]} is missing")
        return about

    def differences(self):
        """Return paths that differ from their copies, and paths that were created later."""
        about = self.about()
        changed = [path for path in about["kept"] if not same(path, self.copy_of(path))]
        return changed, [path for path in found(about["patterns"]) if path not in about["kept"]]

    def check(self):
        """Raise BrokenError if a restored link would dangle, because the release it points to was removed."""
        about = self.about()
        for path in about["leads"]:
            target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(self.copy_of(path))))
            if target not in about["kept"] and not os.path.lexists(target):
                raise BrokenError(
                    f"{path} pointed to {target}, which no longer exists: it cannot be restored"
                )

    def restore(self):
        """Restore every file; return the paths that differed."""
        changed, later = self.differences()
        kept = self.about()["kept"]
        for path in changed:
            folder = os.path.dirname(path)
            os.makedirs(folder, mode=0o755, exist_ok=True)
            beside = tempfile.mkdtemp(prefix=".unmoor-", dir=folder)
            try:
                duplicate(self.copy_of(path), os.path.join(beside, "file"), kept[path])
                os.rename(os.path.join(beside, "file"), path)
            finally:
                shutil.rmtree(beside)
        for path in later:
            os.unlink(path)
        return changed + later

    def remove(self):
        """Remove it, if it exists."""
        shutil.rmtree(self.path, ignore_errors=True)

    def replace(self, other):
        """Replace this checkpoint by `other`."""
        if self.exists:
            old = os.path.join(self.home, "old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.path, old)
            shutil.rmtree(old, ignore_errors=True)
        os.rename(other.path, self.path)


def read(path):
    """Return the text of a file, "" if it does not exist. Raises OSError for any other reason."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def begin(module, turn):
    """Create the checkpoint of this turn, unless an interrupted turn left its own."""
    interrupted = turn.exists
    if not interrupted:
        fresh = any(not os.path.exists(path) for path in module.params["documents"].values())
        turn.make(module.params["parts"], module.params["run"], fresh)
    return {"interrupted": interrupted, "fresh": turn.about()["fresh"]}


def put_back(module, checkpoint):
    """Restore the files, then run the command of each part in which one differed, even after one failed."""
    about = checkpoint.about()
    if about["fresh"]:
        return {"fresh": True, "paths": []}
    checkpoint.check()
    paths = checkpoint.restore()
    failures = []
    for part in module.params["parts"]:
        if not part["command"] or not any(
            matches(path, pattern) for path in paths for pattern in part["paths"]
        ):
            continue
        status, out, err = module.run_command(["/bin/sh", "-c", part["command"]])
        if status:
            failures.append(f"{part['command'].strip()}: {(out + err).strip() or f'exit status {status}'}")
    if failures:
        module.fail_json(msg="\n".join(failures), paths=paths, fresh=False)
    return {"fresh": False, "paths": paths, "changed": bool(paths)}


def end(turn, before):
    """End a successful turn. One that changed nothing leaves the checkpoint `before` as it is."""
    if not turn.exists:
        return
    if not turn.about()["fresh"] and any(turn.differences()):
        before.replace(turn)
    else:
        turn.remove()


def read_before(before, documents):
    """Return run and documents of `before`, or why it is broken; only a rollback fails for that."""
    try:
        about = before.about()
        before.check()
    except BrokenError as error:
        return {"broken": str(error)}
    texts = {name: read(before.copy_of(path)) for name, path in documents.items()}
    return {"run": about["run"], "documents": texts}


def act(module):
    """Bring about `state`; return the module's result."""
    home, state = module.params["directory"], module.params["state"]
    turn, before = Checkpoint(home, "turn"), Checkpoint(home, "before")
    result = {}
    if not module.check_mode:
        if state == "begun":
            result = begin(module, turn)
        elif state == "restored":
            result = put_back(module, {"turn": turn, "before": before}[module.params["name"]])
        elif state == "kept":
            end(turn, before)
        elif state in ("undone", "back"):
            turn.remove()
        if state == "back":
            before.remove()
    documents = module.params["documents"]
    result["documents"] = {name: read(path) for name, path in documents.items()}
    result["before"] = {}
    if state == "read" and before.exists:
        result["before"] = read_before(before, documents)
    return result


def main():
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "default": "read",
                "choices": ["read", "begun", "restored", "kept", "undone", "back"],
            },
            "name": {"default": "turn", "choices": ["turn", "before"]},
            "run": {"default": ""},
            "documents": {"type": "dict", "default": {}},
            "parts": {"type": "list", "elements": "dict", "options": PART, "default": []},
            "directory": {"type": "path", "default": "/var/lib/unmoor/checkpoint"},
        },
        supports_check_mode=True,
    )
    try:
        result = act(module)
    except BrokenError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        # After a failed copy, filename2 is its target; an error of write() has no file name.
        place = error.filename2 or error.filename or module.params["directory"]
        module.fail_json(msg=f"{place}: {error.strerror}")
    module.exit_json(**{"changed": False, **result})


if __name__ == "__main__":
    main()
