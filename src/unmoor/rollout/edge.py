"""What an operator or a controller does with an edge: apply, confirm, return, roll back, compare, repair."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from unmoor.errors import UnmoorError
from unmoor.rollout import deadline, execute, host, lock, plan
from unmoor.rollout.execute import Executor
from unmoor.rollout.host import HostError
from unmoor.rollout.manifest import Absent, Entry, Manifest
from unmoor.rollout.plan import PartChange, Run
from unmoor.rollout.store import Original, Pending, Record, Returned, State, Store, StoreError

#: Seconds until an edge returns by itself.
CONFIRM_WITHIN = 300.0
#: Seconds to wait for another process that changes the edge. A return then kills it.
_GRACE = 10.0
#: Space for the state of a return when the disk is full, in bytes.
_RESERVE = 65536


class ApplyError(UnmoorError):
    """A generation was not applied; the text says why, and on which generation the edge is."""


class PendingError(UnmoorError):
    """A generation is pending and in the way, or none is."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of `apply`: a line for each thing that changed, and what waits for confirmation."""

    lines: tuple[str, ...]
    pending: Pending | None


@dataclass(frozen=True, slots=True)
class Status:
    """The state of an edge, and a line for each thing that differs from its generation."""

    state: State
    differences: tuple[str, ...]


def differences(store: Store, target: Manifest) -> list[PartChange]:
    """Return what `apply` would change. Raises HostError if the host cannot be compared."""
    state = store.state()
    return plan.changes(target, _bases(store, state), store.original(), _touched(state))


def status(store: Store) -> Status:
    """Compare the host with its generation. Raises HostError or StoreError."""
    state = store.state()
    target = store.generation(state.pending.target if state.pending else state.confirmed)
    found = plan.changes(target, _bases(store, state), store.original())
    return Status(state, tuple(line for change in found for line in change.lines))


def apply(
    store: Store, target: Manifest, *, seconds: float = CONFIRM_WITHIN, holder: str = "", back: bool = False
) -> Applied:
    """Apply a stored generation; the edge returns by itself unless it is confirmed within `seconds`.

    When anything fails, the edge returns at once. `back` is for an older generation: parts are then changed
    in reverse order. `holder` names the operator; another one's pending generation is not touched. Raises
    ApplyError, PendingError, lock.LockedError, HostError or StoreError.
    """
    with lock.held(store, "apply", wait=_GRACE):
        state = _resumable(store, store.state(), holder)
        if wrong := execute.check(store, target):
            raise ApplyError("\n".join([*wrong, "Nothing was changed."]))
        bases, original = _bases(store, state), execute.capture(target, store.original(), store)
        store.save_original(original)
        host.remove_stale(path for each in [target, *bases] for path in each.entries)
        changes = plan.changes(target, bases, original, _touched(state))
        if not changes:
            _confirm(store, state, target.id, holder)
            return Applied((), None)
        if back:
            changes = _reversed(changes)
        pending = _pending(state, target, seconds, holder, back=back)
        _change(store, state, pending, changes, original)
        return Applied(tuple(line for change in changes for line in change.lines), store.state().pending)


def confirm(store: Store, holder: str = "", target: str | None = None) -> str:
    """Confirm the pending generation; return its id. Raises PendingError if it is none or another."""
    with lock.held(store, "confirm", wait=_GRACE):
        state = store.state()
        pending = state.pending
        if pending is None:
            if target == state.confirmed:
                return state.confirmed  # an earlier run confirmed it, or there was nothing to change
            why = f"; it returned: {state.returned.why}" if state.returned else ""
            raise PendingError(f"no generation is pending{why}\n    fix: apply it first")
        if deadline.due(pending):
            raise PendingError("the deadline is over: the edge is returning\n    fix: apply it again")
        if target is not None and pending.target != target:
            raise PendingError(
                f"generation {pending.target[:12]} is pending, not {target[:12]}\n    fix: apply it"
            )
        _confirm(store, state, pending.target, holder or pending.holder)
        return pending.target


def renew(store: Store, seconds: float) -> None:
    """Move the deadline to `seconds` from now. Raises PendingError if no generation is pending."""
    with lock.held(store, "renew", wait=_GRACE):
        state = store.state()
        if state.pending is None or deadline.due(state.pending):
            raise PendingError("no generation is pending, or its deadline is over\n    fix: apply it again")
        pending = replace(state.pending, deadline=deadline.clock() + seconds)
        deadline.arm(store, pending)
        store.save(replace(state, pending=pending))


def return_to_previous(store: Store, why: str = "", *, at_boot: bool = False) -> Returned | None:
    """Return from the pending generation to the one before, if that is due or there is a reason.

    `why` is the operator's reason; without one, only a deadline or a reboot is one. At boot, before the
    services start, only files and kernel settings are restored; a later call does the rest. What fails is
    collected, not raised. The result is None if there was nothing to do.
    """
    with _lock_of_return(store, force=bool(why)):
        state = store.state()
        if state.pending is None or not (why or deadline.due(state.pending)):
            return None
        pending = state.pending
        return _return(store, state, pending, why or _reason(pending), at_boot=at_boot)


def rollback(
    store: Store, id_: str | None = None, *, seconds: float = CONFIRM_WITHIN, holder: str = ""
) -> Applied | Returned:
    """Go back to a kept generation, by default the one before. A pending generation is undone instead.

    Raises PendingError if there is nothing to go back to; otherwise as `apply`.
    """
    state = store.state()
    if state.pending and id_ is None:
        returned = return_to_previous(store, f"rolled back by {holder or 'an operator'}")
        if returned:
            return returned
    if id_ is None:
        if not state.history:
            raise PendingError(
                "there is no generation to go back to\n    fix: name one: zero is the host before Unmoor"
            )
        id_ = state.history[0].id
    return apply(store, store.generation(id_), seconds=seconds, holder=holder, back=True)


def lost(store: Store, run: Run = host.run) -> list[PartChange]:
    """Return which kernel settings and effects of the confirmed generation the host has lost.

    Files that somebody edited and units that somebody stopped are reported by `status` and left alone. `run`
    runs the verify commands. Raises HostError or StoreError.
    """
    state = store.state()
    if state.pending or not state.confirmed:
        return []
    target = store.generation(state.confirmed)
    found = plan.changes(target, [target], store.original(), run=run)
    effects = [replace(each, entries=(), paths=frozenset(), units=(), leaving=()) for each in found]
    return [each for each in effects if not each.empty]


def repair(store: Store, run: Run = host.run) -> list[str]:
    """Bring back what `lost` returns; return a line for each thing repaired, and for each failure.

    Raises lock.LockedError, HostError or StoreError.
    """
    with lock.held(store, "repair"):
        changes = lost(store, run)
        executor = Executor(store.original(), lambda _: None, lenient=True, verify_timeout=_GRACE)
        for change in changes:
            executor.make(change, lambda: None)
        if changes:
            state = store.state()
            store.save(replace(state, repairs=state.repairs + len(changes)))
        return [line for change in changes for line in change.lines] + executor.failures


def _bases(store: Store, state: State) -> list[Manifest]:
    ids = [state.confirmed] + ([state.pending.target] if state.pending else [])
    return [store.generation(id_) for id_ in ids]


def _touched(state: State) -> tuple[str, ...]:
    return state.pending.touched if state.pending else ()


def _resumable(store: Store, state: State, holder: str) -> State:
    """Return the state to start from. An expired change is undone first; another operator's is left alone."""
    if state.pending is None:
        return state
    if deadline.due(state.pending):
        _return(store, state, state.pending, _reason(state.pending))
        return store.state()
    if state.pending.holder != holder:
        since = time.strftime("%H:%M:%S", time.localtime(state.pending.since))
        raise PendingError(
            f"generation {state.pending.target[:12]} of {state.pending.holder} is pending since {since}\n"
            "    fix: wait until it is confirmed or returns, or undo it: unmoor edge rollback"
        )
    return state


def _pending(state: State, target: Manifest, seconds: float, holder: str, *, back: bool) -> Pending:
    pid = os.getpid()
    return Pending(
        target.id, state.confirmed, host.boot_id(), deadline.clock() + seconds, back, _touched(state), holder,
        time.time(), pid, host.started(pid),
    )  # fmt: skip


def _change(
    store: Store, state: State, pending: Pending, changes: Sequence[PartChange], original: Original
) -> None:
    """Stage everything, arm the return, and change part by part; return at once when something fails."""
    previous, target = store.generation(pending.previous), store.generation(pending.target)
    with ExitStack() as stack:
        place = stack.enter_context(execute.staged(changes, store.blob))
        # The old files once more, as a reservation of the space that a return needs.
        stack.enter_context(_reserved(store, _old_entries(changes, previous, original)))
        store.save(replace(state, pending=pending))
        try:
            deadline.prepare(store, deadline.returning_program(previous, target))
            deadline.arm(store, pending)
            executor = Executor(original, lambda name: _touch(store, name))
            for change in changes:
                executor.make(change, place[change.name])
        except BaseException as error:
            stack.close()
            returned = _return(store, state, _saved(store, pending), str(error) or type(error).__name__)
            if not isinstance(error, HostError | StoreError):
                raise
            raise ApplyError(_undone(error, returned)) from None


def _saved(store: Store, pending: Pending) -> Pending:
    """Return `pending` as it is stored, with the parts that were touched."""
    return store.state().pending or pending


def _old_entries(changes: Sequence[PartChange], base: Manifest, original: Original) -> list[Entry]:
    paths = [entry.path for change in changes for entry in change.entries]
    return [base.entries.get(path) or original.entries.get(path) or Absent(path) for path in paths]


@contextmanager
def _reserved(store: Store, entries: Sequence[Entry]) -> Iterator[None]:
    reserve = store.home / ".reserve"
    try:
        with reserve.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE)
        with host.staged(entries, store.blob):
            yield
    except OSError as error:
        raise HostError(
            f"{reserve}: {error.strerror}\n    fix: free space there; nothing was changed"
        ) from None
    finally:
        reserve.unlink(missing_ok=True)


def _undone(error: Exception, returned: Returned) -> str:
    lines = [str(error), f"The edge is back on generation {returned.target[:12] or 'zero'}."]
    if returned.failures:
        lines[1] = f"The edge returned to generation {returned.target[:12] or 'zero'}, but:"
    return "\n".join([*lines, *returned.failures])


def _touch(store: Store, name: str) -> None:
    state = store.state()
    if state.pending and name not in state.pending.touched:
        touched = (*state.pending.touched, name)
        store.save(replace(state, pending=replace(state.pending, touched=touched)))


def _return(store: Store, state: State, pending: Pending, why: str, *, at_boot: bool = False) -> Returned:
    """Make the changes from the pending generation to the one before, whatever fails."""
    previous, original = store.generation(pending.previous), store.original()
    bases = [previous, store.generation(pending.target)]
    host.remove_stale(path for each in bases for path in each.entries)
    executor = Executor(original, lambda _: None, lenient=True)
    changes = plan.changes(previous, bases, original, pending.touched)
    if not pending.back:
        changes = _reversed(changes)
    for change in changes:
        _make_alone(store, executor, change, at_boot=at_boot)
    returned = Returned(pending.target, pending.previous, time.time(), why, tuple(executor.failures))
    if not at_boot:
        store.save(replace(state, pending=None, returned=returned))
        if not pending.previous:
            _forget(store)
    return returned


def _make_alone(store: Store, executor: Executor, change: PartChange, *, at_boot: bool) -> None:
    try:
        with host.staged(change.entries, store.blob) as place:
            if at_boot:
                execute.restore_at_boot(change, place)
            else:
                executor.make(change, place)
    except (HostError, StoreError) as error:
        executor.failures.append(str(error))


def _reversed(changes: Sequence[PartChange]) -> list[PartChange]:
    """Parts that stay in reverse order; then those that go, whose order is reversed already."""
    staying = [change for change in changes if change.new is not None]
    return [*reversed(staying), *(change for change in changes if change.new is None)]


def _confirm(store: Store, state: State, id_: str, holder: str) -> None:
    history = [each for each in state.history if each.id != id_]
    if state.confirmed and state.confirmed != id_:
        history.insert(0, Record(state.confirmed, time.time(), holder))
    confirmed = replace(state, confirmed=id_, pending=None, history=tuple(history), returned=None)
    if confirmed != state:
        store.collect(confirmed)
    if not id_:
        _forget(store)


def _forget(store: Store) -> None:
    """Leave generation zero to the host, which may change before another one is applied."""
    host.remove_folders(store.original().folders)
    store.save_original(Original())
    deadline.remove(store)


def _reason(pending: Pending) -> str:
    return (
        "was not confirmed in time"
        if pending.boot == host.boot_id()
        else "the edge restarted before confirmation"
    )


@contextmanager
def _lock_of_return(store: Store, *, force: bool) -> Iterator[None]:
    """Hold the edge's lock; an `apply` that has not ended when a return is due is killed."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.held(store, "return", wait=_GRACE))
        except lock.LockedError:
            pending = store.state().pending
            if (
                pending is None
                or not (force or deadline.due(pending))
                or host.started(pending.pid) != pending.started
            ):
                raise
            os.kill(pending.pid, signal.SIGKILL)
            stack.enter_context(lock.held(store, "return", wait=_GRACE))
        yield
