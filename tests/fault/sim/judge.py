"""What must hold of a disk at any moment, whatever died before."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from fault.sim.client import Attempt, Change, Wrong

from shardgit.service.look import Look
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from fault.sim.client import Place

    from shardgit.oid import ObjectId, RepositoryId
    from shardgit.refs.log import LogEntry
    from shardgit.service.store import Store


def judge(world: Place, store: Store, *, before: int | None = None) -> None:
    """Raise Wrong, or what the store raises, unless all that was acknowledged is there whole, and nothing in part.

    ``before``: the store is a backup's, and what was acknowledged later need not be there.
    """
    told = {attempt.actor: attempt for attempt in world.attempts}
    entries: dict[RepositoryId, list[LogEntry]] = {}
    for info in Repositories(store).list():
        with store.journal.snapshot() as snapshot:
            record = store.repository(snapshot, info.name)
            refs = {
                ref.name: ref.target
                for ref in store.refs.list(snapshot, record)
                if ref.target is not None
            }
            log = list(store.refs.log(snapshot, record))[::-1]
        entries[record.id] = log
        _replay(info.name, log, refs)
        _told(log, told)
        whole(world, store, info.name, refs)
    _all_there(world, told, entries, before)
    if before is None:
        _uploaded(world, store, set(entries))


def _replay(name: str, log: list[LogEntry], refs: dict[bytes, ObjectId]) -> None:
    """Check that the log is without gaps and leads to the refs."""
    if [entry.sequence for entry in log] != list(range(1, len(log) + 1)):
        raise Wrong(f"the log of {name} has gaps")
    now: dict[bytes, ObjectId] = {}
    for entry in log:
        for change in entry.changes:
            if change.name == b"HEAD":
                continue
            old = change.old.target if change.old else None
            if now.get(change.name) != old:
                raise Wrong(f"the log of {name} jumps at {entry.sequence}")
            now.pop(change.name, None)
            if change.new is not None and change.new.target is not None:
                now[change.name] = change.new.target
    if now != refs:
        raise Wrong(f"the refs of {name} are not what its log says")


def _told(log: list[LogEntry], told: dict[str, Attempt]) -> None:
    """Check that each row is what somebody tried and was not refused, and that rows stand in the order of time."""
    seen: set[str] = set()
    newest = 0
    for entry in log:
        if not entry.actor:
            continue  # the system: an import
        attempt = told.get(entry.actor)
        if attempt is None:
            raise Wrong(f"nobody did {entry.actor!r}")
        if not attempt.what.startswith(("push", "update")):
            continue
        if entry.actor in seen:
            raise Wrong(f"{entry.actor} was done twice")
        seen.add(entry.actor)
        if attempt.ended is not None and not attempt.done:
            raise Wrong(f"{attempt.what} by {entry.actor} was refused and done")
        changes = _changes(entry)
        wanted = {name: pair for name, pair in attempt.changes.items() if pair[0] != pair[1]}
        missing = {name: pair for name, pair in wanted.items() if changes.get(name) != pair}
        if attempt.done and not _stood(log, told, attempt, missing):
            raise Wrong(f"{attempt.what} by {entry.actor} was done in part")
        if not changes.items() <= wanted.items():
            raise Wrong(f"{attempt.what} by {entry.actor} did what it was not asked to")
        if attempt.ended is not None and attempt.ended < newest:
            raise Wrong(f"{entry.actor} was answered before what stands before it began")
        newest = max(newest, attempt.begun)


def _stood(
    log: list[LogEntry], told: dict[str, Attempt], attempt: Attempt, changes: dict[bytes, Change]
) -> bool:
    """Say whether refs had the values that an attempt wanted while it was made: nothing was left to do."""
    return all(
        new is not None and _stood_once(log, told, attempt, name, new)
        for name, (_, new) in changes.items()
    )


def _stood_once(
    log: list[LogEntry], told: dict[str, Attempt], attempt: Attempt, name: bytes, new: ObjectId
) -> bool:
    rows = [e for e in log if e.actor in told and e.changes.of(name) is not None]
    for entry, following in zip(rows, [*rows[1:], None], strict=True):
        change = entry.changes.of(name)
        if change is None or change.new is None or change.new.target != new:
            continue
        began = told[entry.actor].begun
        gone = told[following.actor].ended if following is not None else None
        if began <= (attempt.ended or began) and (gone is None or gone >= attempt.begun):
            return True
    return False


def _changes(entry: LogEntry) -> dict[bytes, Change]:
    return {
        change.name: (
            change.old.target if change.old else None,
            change.new.target if change.new else None,
        )
        for change in entry.changes
        if change.name != b"HEAD"
    }


def whole(world: Place, store: Store, name: str, refs: dict[bytes, ObjectId]) -> None:
    """Check that refs reach all that they should, right, and nothing else."""
    look = Look(store, name)
    world.learn(store, look, list(refs.values()))
    wanted: set[ObjectId] = set()
    for oid in set(refs.values()):
        wanted |= world.history.closure(oid)
    ids = sorted(wanted)
    positions = look.positions(ids)
    if ids and min(positions) < 0:
        raise Wrong(f"{name} lacks what its refs reach")
    if int.from_bytes(look.reachable, "little").bit_count() != len(ids):
        raise Wrong(f"{name} serves what its refs do not reach")
    if look.view is None:
        return
    for oid, found in zip(ids, look.view.read_positions(positions), strict=True):
        made = world.history.objects[oid]
        if (found.id, found.type, found.data) != (oid, made.type, made.data):
            raise Wrong(f"{oid.hex()} of {name} is wrong")


def _all_there(
    world: Place,
    told: dict[str, Attempt],
    entries: dict[RepositoryId, list[LogEntry]],
    before: int | None,
) -> None:
    """Check that every acknowledged change of a repository that is there stands in its log."""
    actors = {number: {entry.actor for entry in log} for number, log in entries.items()}
    lost = defaultdict(list)
    for attempt in world.attempts:
        if not attempt.done or attempt.repository not in actors:
            continue
        if before is not None and (attempt.ended or before) >= before:
            continue
        if all(old == new for old, new in attempt.changes.values()):
            continue
        log = entries[attempt.repository]
        if attempt.actor not in actors[attempt.repository] and not _stood(
            log, told, attempt, attempt.changes
        ):
            lost[attempt.repository].append(attempt)
    if lost:
        words = [f"{one.what} by {one.actor}" for some in lost.values() for one in some]
        raise Wrong(f"acknowledged and lost: {', '.join(words)}")


def _uploaded(world: Place, store: Store, standing: set[RepositoryId]) -> None:
    """Check that what was uploaded of late is its repository's own."""
    grace_ms = world.limits.upload_grace_s * 1_000
    names = {one.id: one.name for one in Repositories(store).list()}
    for attempt in world.uploads:
        if attempt.repository not in standing or attempt.repository is None:
            continue
        if world.now_ms() - attempt.done_ms > grace_ms - 60_000:
            continue
        look = Look(store, names[attempt.repository])
        positions = look.owned(list(attempt.objects))
        if min(positions) < 0:
            raise Wrong(f"{attempt.what} by {attempt.actor} is lost")
