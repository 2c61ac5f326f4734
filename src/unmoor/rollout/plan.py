"""What a generation would change on this host: files, units, kernel settings, and their effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from unmoor.rollout import host
from unmoor.rollout.host import UnitState
from unmoor.rollout.manifest import Absent, Command, Entry, Manifest, Part, Unit
from unmoor.rollout.store import Original

#: Runs a command and returns its exit status and output.
Run = Callable[[Command], tuple[int, str]]


@dataclass(frozen=True, slots=True)
class PartChange:
    """The change of one part. `new` is None for a part that goes, `old` what may be in force of it.

    `entries` are files to place, `paths` all paths that count as changed, which includes those of an
    interrupted run. `units` and `sysctls` have the wanted state; `leaving` are units that this part no
    longer has. `broken` is what the part's verify commands printed when they failed.
    """

    name: str
    old: tuple[Part, ...]
    new: Part | None
    entries: tuple[Entry, ...] = ()
    paths: frozenset[str] = frozenset()
    units: tuple[Unit, ...] = ()
    leaving: tuple[Unit, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.paths or self.units or self.leaving or self.sysctls or self.broken)

    @property
    def lines(self) -> list[str]:
        """The change in words, a line for each thing."""
        placed = {entry.path: entry for entry in self.entries}
        lines = []
        for path in sorted(self.paths):
            if path not in placed:
                lines.append(f"{path}: activate")
            else:
                lines.append(f"{path}: {'remove' if isinstance(placed[path], Absent) else 'install'}")
        lines += [f"{unit.name}: {_words(unit)}" for unit in self.units]
        lines += [f"{unit.name}: restore what the host had" for unit in self.leaving]
        lines += [f"{name} = {value}" for name, value in self.sysctls]
        return [f"{self.name}: {line}" for line in [*lines, *self.broken]]


def changes(
    target: Manifest,
    bases: Sequence[Manifest],
    original: Original,
    touched: Sequence[str] = (),
    run: Run | None = None,
) -> list[PartChange]:
    """Return the changes from this host to `target` in the order in which they are made, without empty ones.

    `bases` are the generations of which something may be in force: the confirmed one, and a pending one.
    Parts in `touched` were being changed between them when a run was interrupted. Verify commands of parts
    whose files differ are not run, unless `run` is given, which runs them. Raises HostError.
    """
    names = {part.name for manifest in [target, *bases] for part in manifest.parts}
    states = host.unit_states(sorted({name for each in [target, *bases] for name in each.units}))
    planner = _Planner(target, bases, original, frozenset(touched), states, run)
    found = [planner.change(name) for name in names]
    going = sorted((each for each in found if each.new is None), key=_last_place, reverse=True)
    staying = sorted((each for each in found if each.new is not None), key=_place)
    return [each for each in [*staying, *going] if not each.empty]


def _place(change: PartChange) -> tuple[int, str]:
    return (change.new.order if change.new else 0, change.name)


def _last_place(change: PartChange) -> tuple[int, str]:
    return (max(part.order for part in change.old), change.name)


@dataclass(frozen=True, slots=True)
class _Planner:
    target: Manifest
    bases: Sequence[Manifest]
    original: Original
    touched: frozenset[str]
    states: dict[str, UnitState]
    run: Run | None

    def change(self, name: str) -> PartChange:
        new = self.target.part(name)
        old = tuple(part for each in self.bases if (part := each.part(name)) is not None)
        wanted = {entry.path: entry for entry in self._entries(new, old)}
        entries = tuple(entry for path, entry in sorted(wanted.items()) if host.current(path) != entry)
        paths = {entry.path for entry in entries}
        if name in self.touched:
            paths |= {path for path in wanted if self._differs_between_bases(path)}
        broken: tuple[str, ...] = ()
        if new and (self.run or not entries):
            broken = tuple(failures(new.verify, self.run or host.run))
        return PartChange(
            name,
            old,
            new,
            entries,
            frozenset(paths),
            tuple(unit for unit in (new.units if new else ()) if not self._in_state(unit)),
            tuple(self._leaving(old)),
            tuple(self._sysctls(new, old)),
            broken,
        )

    def _entries(self, new: Part | None, old: tuple[Part, ...]) -> Iterator[Entry]:
        if new:
            yield from new.files
        for part in old:
            for entry in part.files:
                if entry.path not in self.target.entries:
                    yield self.original.entries.get(entry.path, Absent(entry.path))

    def _differs_between_bases(self, path: str) -> bool:
        return len({each.entries.get(path) for each in [*self.bases, self.target]}) > 1

    def _in_state(self, unit: Unit) -> bool:
        state = self.states[unit.name]
        return (state.enabled, state.active) == (unit.enabled, unit.active)

    def _leaving(self, old: tuple[Part, ...]) -> Iterator[Unit]:
        """Units that belong to no part any more, unless they are as the host had them."""
        seen = set()
        for part in old:
            for unit in part.units:
                if unit.name in self.target.units or unit.name in seen:
                    continue
                seen.add(unit.name)
                state = self.states[unit.name]
                before = self.original.units.get(unit.name, (False, False, False))
                if (state.exists, state.enabled, state.active) != before:
                    yield unit

    def _sysctls(self, new: Part | None, old: tuple[Part, ...]) -> Iterator[tuple[str, str]]:
        wanted = dict(new.sysctls) if new else {}
        for part in old:
            for name in part.sysctls:
                if name not in self.target.sysctls and name in self.original.sysctls:
                    wanted[name] = self.original.sysctls[name]
        for name, value in sorted(wanted.items()):
            if host.sysctl(name) != " ".join(value.split()):
                yield name, value


def failures(commands: Sequence[Command], run: Run = host.run) -> Iterator[str]:
    """Run verify commands; yield for each that fails what it printed."""
    for command in commands:
        status, output = run(command)
        if status:
            yield f"{' '.join(command)}: {host.tail(output) or f'exit status {status}'}"


def _words(unit: Unit) -> str:
    enabled = "enabled" if unit.enabled else "disabled"
    return f"{enabled} and {'active' if unit.active else 'inactive'}"
