"""Makes the changes of a plan on this host, part by part."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from unmoor.rollout import host, plan
from unmoor.rollout.host import HostError
from unmoor.rollout.manifest import Command, File, Manifest, Part, Rule, Unit
from unmoor.rollout.plan import PartChange
from unmoor.rollout.store import Original, Store

#: Seconds to wait until a part's effect is there.
VERIFY_TIMEOUT = 60.0
_SYSTEMCTL = "/usr/bin/systemctl"
DAEMON_RELOAD = (_SYSTEMCTL, "daemon-reload")


def check(store: Store, target: Manifest) -> list[str]:
    """Run the checks of all parts on staged copies of their files; return what is wrong. Changes nothing."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="unmoor-", dir="/run") as folder:
        for part in target.parts:
            wrong += [
                f"{path}: is missing (part {part.name})"
                for path in part.requires
                if not os.path.lexists(path)
            ]
            copies = {}
            for entry in part.files:
                copies[entry.path] = folder + entry.path
                if isinstance(entry, File) and part.checks:
                    _copy(copies[entry.path], store.blob(entry.digest))
            for command in part.checks:
                wrong += _check(command, copies)
    return wrong


def _copy(path: str, content: bytes) -> None:
    try:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}\n    fix: free space in /run and run this again") from None


def _check(command: Command, copies: dict[str, str]) -> Iterator[str]:
    status, output = host.run(
        [copies.get(word[1:], word) if word.startswith("@") else word for word in command]
    )
    if status:
        for path, copy in copies.items():
            output = output.replace(copy, path)
        yield output or f"{' '.join(command)}: exit status {status}"


def capture(target: Manifest, original: Original, store: Store) -> Original:
    """Add to `original` what the host has at the places that no generation had before."""
    entries, units, sysctls = dict(original.entries), dict(original.units), dict(original.sysctls)
    for path in target.entries.keys() - entries.keys():
        entries[path] = host.current(path)
        if isinstance(entries[path], File):
            store.add_blob(Path(path).read_bytes())
    names = sorted(target.units.keys() - units.keys())
    for name, state in host.unit_states(names).items():
        units[name] = (state.exists, state.enabled, state.active)
    for name in target.sysctls.keys() - sysctls.keys():
        sysctls[name] = host.sysctl(name)
    folders = {*original.folders, *(each for path in target.entries for each in host.missing_folders(path))}
    return Original(entries, units, sysctls, tuple(sorted(folders)))


@contextmanager
def staged(
    changes: Sequence[PartChange], blob: Callable[[str], bytes]
) -> Iterator[dict[str, Callable[[], None]]]:
    """Write the files of all parts beside their places; yield by part what puts them in place."""
    with ExitStack() as stack:
        yield {each.name: stack.enter_context(host.staged(each.entries, blob)) for each in changes}


class Executor:
    """Makes changes, and either stops at the first failure or, with `lenient`, collects them in `failures`.

    `touch` is called with a part's name before anything of that part changes.
    """

    def __init__(
        self,
        original: Original,
        touch: Callable[[str], None],
        *,
        lenient: bool = False,
        verify_timeout: float = VERIFY_TIMEOUT,
    ) -> None:
        self._original, self._touch, self._lenient = original, touch, lenient
        self._verify_timeout = verify_timeout
        self.failures: list[str] = []

    def make(self, change: PartChange, place: Callable[[], None]) -> None:
        """Make the change of one part; `place` puts its files in place. Raises HostError unless lenient."""
        self._touch(change.name)
        before = {
            each.name for each in change.leaving if not self._original.units.get(each.name, (False,))[0]
        }
        for name in sorted(before):
            self._do(host.must, [_SYSTEMCTL, "--quiet", "disable", "--now", name])
        if change.new is None:
            self._remove(change)
        self._do(place)
        if before or any(map(host.is_unit_file, change.paths)):
            self._do(host.must, DAEMON_RELOAD)
        for name, value in change.sysctls:
            self._do(host.set_sysctl, name, value)
        started = self._set_units(change)
        self._run_rules(change, started)
        if change.new:
            self._do(self._verify, change.name, change.new)

    def _do(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except HostError as error:
            if not self._lenient:
                raise
            self.failures.append(str(error))

    def _remove(self, change: PartChange) -> None:
        for command in dict.fromkeys(command for part in change.old for command in part.remove):
            if Path(command[0]).exists():
                self._do(host.must, command)

    def _set_units(self, change: PartChange) -> set[str]:
        """Bring units into their state; return those that were started, and so have read all their files."""
        wanted = [*change.units, *self._restored(change.leaving)]
        states = host.unit_states([unit.name for unit in wanted])
        started = set()
        for unit in wanted:
            state = states[unit.name]
            if state.enabled != unit.enabled:
                verb = "enable" if unit.enabled else "disable"
                self._do(host.must, [_SYSTEMCTL, "--quiet", verb, unit.name])
            if state.active != unit.active:
                verb = "start" if unit.active else "stop"
                self._do(host.must, [_SYSTEMCTL, verb, unit.name])
                started |= {unit.name} if unit.active else set()
        return started

    def _restored(self, leaving: Iterable[Unit]) -> Iterator[Unit]:
        for unit in leaving:
            exists, enabled, active = self._original.units.get(unit.name, (False, False, False))
            if exists:
                yield Unit(unit.name, enabled, active)

    def _run_rules(self, change: PartChange, started: set[str]) -> None:
        done = set(started)
        ran: set[Command] = set()
        for rule in _rules(change):
            if rule.unit in done or rule.run in ran or not change.paths & set(rule.on):
                continue
            if change.new is None and not self._original.units.get(rule.unit, (False,))[0]:
                continue  # the unit went with the part
            done |= {rule.unit} if rule.unit else set()
            ran.add(rule.run)
            self._do(host.must, rule.run)
        if change.new and change.broken and not ran and not started:
            for command in change.new.repair:
                self._do(host.must, command)

    def _verify(self, name: str, part: Part) -> None:
        end = time.monotonic() + self._verify_timeout
        wait = 0.1
        while wrong := list(plan.failures(part.verify)):
            if time.monotonic() > end:
                raise HostError(f"part {name} is not in force: " + "; ".join(wrong))
            time.sleep(wait)
            wait = min(2 * wait, 1.0)


def restore_at_boot(change: PartChange, place: Callable[[], None]) -> None:
    """Put files and kernel settings in place before services start. Raises HostError."""
    place()
    if any(map(host.is_unit_file, change.paths)):
        host.must(DAEMON_RELOAD)
    for name, value in change.sysctls:
        host.set_sysctl(name, value)


def _rules(change: PartChange) -> tuple[Rule, ...]:
    """The rules of the wanted part; of one that goes, those of its last versions."""
    if change.new:
        return change.new.rules
    return tuple(rule for part in change.old for rule in part.rules)
