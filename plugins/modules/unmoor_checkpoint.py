#!/usr/bin/python
"""Keep what is in force on a host before it is changed, and put it back; what runs is told of it."""

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
module: unmoor_checkpoint
short_description: Keep what is in force on a host, and put it back
description:
  - A checkpoint is a directory below O(directory) with copies of all files that match O(parts), and a list of
    them. C(turn) is made before a host is changed and stays until that turn has come to its end; C(before) is
    the one from before the last turn that changed anything and ended well.
  - To put back means that each file that differs from the checkpoint is as it was, files that came later are
    gone, and then each part of which anything differed is told, in the order of O(parts).
options:
  state:
    description:
      - C(read) changes nothing. C(begun) makes C(turn), or finds it there when the turn before was cut short;
        then it stays as it is, since what it holds is older than any change.
      - C(restored) puts O(name) back. C(kept) ends a turn that went well, C(undone) one that was put back,
        C(back) one that went back to C(before), which is then used up.
    choices: [read, begun, restored, kept, undone, back]
    default: read
    type: str
  name:
    description: Which checkpoint to put back.
    choices: [turn, before]
    default: turn
    type: str
  run:
    description: Which run this is, as people are told it; kept with the checkpoint.
    default: ""
    type: str
  documents:
    description: Files by name, without which a host was never rolled out; their text is returned.
    type: dict
    default: {}
  parts:
    description: What is kept.
    type: list
    elements: dict
    default: []
    suboptions:
      paths:
        description: Patterns of paths; C(*) stops at a slash. Directories that match are left out.
        required: true
        type: list
        elements: str
      linked:
        description: Files never change under their name, so that a hard link keeps them.
        default: false
        type: bool
      told_by:
        description: Command of the shell that brings the files into force.
        default: ""
        type: str
  directory:
    description: Where checkpoints are kept.
    default: /var/lib/unmoor/checkpoint
    type: path
"""

EXAMPLES = """
- name: Begin
  unmoor_checkpoint:
    state: begun
    parts:
      - paths: [/etc/unmoor/*.json]
        told_by: systemctl reload unmoor-dns.service
"""

RETURN = """
fresh:
  description: Whether the host was never rolled out, so that there is nothing to put back.
  returned: when state is begun or restored
  type: bool
interrupted:
  description: Whether the turn before was cut short.
  returned: when state is begun
  type: bool
paths:
  description: The files that were put back.
  returned: when state is restored
  type: list
documents:
  description: Text of each document in force, "" for one that is not there.
  returned: always
  type: dict
before:
  description: Run and documents of the checkpoint C(before), or why it is C(broken); empty for none.
  returned: always
  type: dict
"""

PART = {
    "paths": {"type": "list", "elements": "str", "required": True},
    "linked": {"type": "bool", "default": False},
    "told_by": {"type": "str", "default": ""},
}
FORMAT = 1


class BrokenError(Exception):
    """A checkpoint that cannot be put back; the text says why, and what to do."""


def matches(path, pattern):
    """Whether `path` matches, part by part, so that a star stops at a slash."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def found(patterns):
    """Files and links that match any of `patterns`, in order; a link that leads nowhere is one, too."""
    paths = {path for pattern in patterns for path in glob.glob(pattern, include_hidden=True)}
    return sorted(path for path in paths if os.path.islink(path) or not os.path.isdir(path))


def same(one, other):
    """Whether two paths hold the same: kind, target or content, permissions and owner."""
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
    """Make `target`, which is not there, hold what `source` holds."""
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
    """See that a file or directory outlives a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoint:
    """One directory of copies below `home`, called `name`."""

    def __init__(self, home, name):
        self.home, self.path = home, os.path.join(home, name)

    @property
    def exists(self):
        """Whether it is there, whole: it is renamed into place last."""
        return os.path.isdir(self.path)

    def copy_of(self, path):
        """Where the copy of `path` is."""
        return os.path.join(self.path, "files", path.lstrip("/"))

    def make(self, parts, run, fresh):
        """Copy everything beside its place, then rename."""
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
        """What was kept. Raises BrokenError when that cannot be read, or a copy is missing."""
        try:
            with open(os.path.join(self.path, "about.json"), encoding="utf-8") as file:
                about = json.load(file)
        except (OSError, ValueError) as error:
            raise BrokenError(f"{self.path}: about.json cannot be read: {error}") from None
        if about.get("format") != FORMAT:
            raise BrokenError(f"{self.path} has format {about.get('format')}; this playbook knows {FORMAT}")
        missing = [path for path in about["kept"] if not os.path.lexists(self.copy_of(path))]
        if missing:
            raise BrokenError(f"{self.path} lacks its copy of {missing[0]}")
        return about

    def differences(self):
        """Paths that differ from what was kept, or that came later."""
        about = self.about()
        changed = [path for path in about["kept"] if not same(path, self.copy_of(path))]
        return changed, [path for path in found(about["patterns"]) if path not in about["kept"]]

    def check(self):
        """Raise BrokenError when a link would lead nowhere: the release that it led to is gone."""
        about = self.about()
        for path in about["leads"]:
            target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(self.copy_of(path))))
            if target not in about["kept"] and not os.path.lexists(target):
                raise BrokenError(f"{path} led to {target}, which is gone: it cannot be put back")

    def restore(self):
        """Put everything back; returns what differed."""
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
        """Take it away; one that is not there is gone already."""
        shutil.rmtree(self.path, ignore_errors=True)

    def replace(self, other):
        """Become `other`."""
        if self.exists:
            old = os.path.join(self.home, "old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.path, old)
            shutil.rmtree(old, ignore_errors=True)
        os.rename(other.path, self.path)


def read(path):
    """Text of a file, "" when it is not there. Any other reason why it cannot be read is an error."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def begin(module, turn):
    """Make the checkpoint of this turn, unless the turn before left its own."""
    interrupted = turn.exists
    if not interrupted:
        fresh = any(not os.path.exists(path) for path in module.params["documents"].values())
        turn.make(module.params["parts"], module.params["run"], fresh)
    return {"interrupted": interrupted, "fresh": turn.about()["fresh"]}


def put_back(module, checkpoint):
    """Restore the files, then tell each part of which any differed; all are told, whatever one says."""
    about = checkpoint.about()
    if about["fresh"]:
        return {"fresh": True, "paths": []}
    checkpoint.check()
    paths = checkpoint.restore()
    failures = []
    for part in module.params["parts"]:
        if not part["told_by"] or not any(
            matches(path, pattern) for path in paths for pattern in part["paths"]
        ):
            continue
        status, out, err = module.run_command(["/bin/sh", "-c", part["told_by"]])
        if status:
            failures.append(f"{part['told_by'].strip()}: {(out + err).strip() or f'exit status {status}'}")
    if failures:
        module.fail_json(msg="\n".join(failures), paths=paths, fresh=False)
    return {"fresh": False, "paths": paths, "changed": bool(paths)}


def end(turn, before):
    """End a turn that went well. One that changed nothing leaves what there was to go back to."""
    if not turn.exists:
        return
    if not turn.about()["fresh"] and any(turn.differences()):
        before.replace(turn)
    else:
        turn.remove()


def look(before, documents):
    """What can be gone back to, or why not: who does not want to go back is not to fail of it."""
    try:
        about = before.about()
        before.check()
    except BrokenError as error:
        return {"broken": str(error)}
    texts = {name: read(before.copy_of(path)) for name, path in documents.items()}
    return {"run": about["run"], "documents": texts}


def act(module):
    """Do what `state` asks for; what is returned beside the documents."""
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
        result["before"] = look(before, documents)
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
        # Of a copy that fails, the second is where it was to go; a write names no file.
        place = error.filename2 or error.filename or module.params["directory"]
        module.fail_json(msg=f"{place}: {error.strerror}")
    module.exit_json(**{"changed": False, **result})


if __name__ == "__main__":
    main()
