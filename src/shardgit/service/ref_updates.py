"""Changes of refs that bring no objects: compare-and-set over any number of refs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import Conflict, InvalidArgument, ObjectMissing, Refused, ShardgitError
from shardgit.objects import ObjectType
from shardgit.oid import hex_of
from shardgit.protocol.receive_pack import Command
from shardgit.refs.change import HEAD
from shardgit.refs.update import check_ref
from shardgit.service.look import Look
from shardgit.service.policy import refusal
from shardgit.service.settings import settings_of
from shardgit.service.signed_push import unsigned_refusal
from shardgit.service.writable import writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.oid import ObjectId
    from shardgit.refs.log import LogNote
    from shardgit.refs.ref import Ref
    from shardgit.refs.update import RefUpdate
    from shardgit.service.access import Principal
    from shardgit.service.store import Store

ROUNDS_MAX = 256  # tries against other writers; each round one of them wins
HEADS = b"refs/heads/"


@dataclass(frozen=True, slots=True)
class RefsUpdated:
    """How updates ended: the error of each ref that was left as it was, and the last log row."""

    failed: dict[bytes, ShardgitError]
    sequence: int


def update_refs(
    store: Store,
    name: str,
    updates: Sequence[RefUpdate],
    *,
    atomic: bool,
    note: LogNote,
    principal: Principal,
) -> RefsUpdated:
    """Change refs in one commit: all or none with ``atomic``, else each that can be changed.

    A target must be an object that the repository reaches or was given by id, of a branch a commit; what a tag peels
    to is found here. The repository's policy holds as for a push. Errors with ``atomic``, of the
    first update that cannot be made: Conflict, ObjectMissing, Refused, InvalidRefName,
    InvalidArgument. Errors always: RepositoryMissing, ReadOnly, StorageFull.
    """
    for _ in range(ROUNDS_MAX):
        judge = RefJudge(Look(store, name), principal)
        good, failed = judge.targets(updates)
        with store.journal.snapshot() as snapshot:
            held = writable(snapshot, judge.look.record)
            good = judge.policy(snapshot, good, failed)
            change, more = store.refs.plan(snapshot, judge.look.record, good, note)
        relied = store.rely(judge.look.state.pool, judge.relied_on)
        failed |= more
        if failed and atomic:
            raise next(failed[each.name] for each in updates if each.name in failed)
        try:
            # commit point: before it the refs are as they were, and at most blocks are there that
            # nothing names; after it all of the change, with its log row.
            conditions = [held.unchanged, *change.conditions, judge.look.state.unchanged]
            faultpoints.reach("update.before_commit")
            store.journal.commit_sync([*conditions, *relied[0]], [*change.operations, *relied[1]])
            faultpoints.reach("update.after_commit")
        except Conflict:
            continue
        return RefsUpdated(failed, change.sequence)
    raise Conflict("refs change too fast", repository=name)


class RefJudge:
    """Tells which updates may be made. Errors go by name, into ``failed``."""

    def __init__(self, look: Look, principal: Principal) -> None:
        self.look = look
        self.settings = settings_of(look.record)
        self.principal = principal
        self._places: list[int] = []  # of the targets

    def relied_on(self) -> list[bytes]:
        """Return bitsets over the pool's positions of what the updates make reachable, or keep so."""
        if self.look.view is None:
            return []
        reached = self.look.store.closure_of(self.look.view, self._places)
        return [self.look.reachable, self.look.uploaded.bits(), reached]

    def targets(
        self, updates: Sequence[RefUpdate]
    ) -> tuple[list[RefUpdate], dict[bytes, ShardgitError]]:
        """Return updates with what their tags peel to, when the repository has their targets."""
        failed: dict[bytes, ShardgitError] = {}
        good: list[RefUpdate] = []
        for update in updates:
            try:
                check_ref(replace(update, peeled=None).ref, self.look.record.hash_kind)
                good.append(update)
            except InvalidArgument as error:
                failed[update.name] = error
        ids = list({update.new for update in good if update.new is not None})
        places = dict(zip(ids, self.look.owned(ids), strict=True))
        self._places = [at for at in places.values() if at >= 0]
        out = []
        for update in good:
            if update.new is None:
                out.append(update)
                continue
            try:
                out.append(self._with_target(update, update.new, places[update.new]))
            except (ObjectMissing, InvalidArgument) as error:
                failed[update.name] = error
        return out, failed

    def _with_target(self, update: RefUpdate, new: ObjectId, position: int) -> RefUpdate:
        shown = update.name.decode("utf-8", "replace")
        if position < 0:
            raise ObjectMissing(
                "object is not in the repository",
                oid=hex_of(new),
                repository=self.look.record.name,
                ref=shown,
            )
        if not self.look.owns_whole(position):
            raise ObjectMissing(
                "object leads to what is not in the repository",
                oid=hex_of(new),
                repository=self.look.record.name,
                ref=shown,
            )
        assert self.look.view is not None
        graph = self.look.view.graph()
        kind = graph.type_at(position)
        if kind != ObjectType.COMMIT and (update.name.startswith(HEADS) or update.name == HEAD):
            raise InvalidArgument("a branch names a commit", oid=hex_of(new), ref=shown)
        peeled = graph.peel(position) if kind == ObjectType.TAG else -1
        if peeled < 0:
            return replace(update, peeled=None)
        return replace(update, peeled=self.look.view.ids_at([peeled])[0])

    def policy(
        self,
        snapshot: JournalSnapshot,
        updates: Sequence[RefUpdate],
        failed: dict[bytes, ShardgitError],
    ) -> list[RefUpdate]:
        """Return the updates that the repository's settings allow."""
        store, record = self.look.store, self.look.record
        head = store.refs.get(snapshot, record, HEAD)
        current = head.symbolic if head is not None else None
        found = store.refs.get_many(snapshot, record, [update.name for update in updates])
        good = []
        for update in updates:
            now = found.get(update.name)
            reason = None if update.name == HEAD else self._refusal(update, now, current)
            if reason is None:
                good.append(update)
            else:
                shown = update.name.decode("utf-8", "replace")
                failed[update.name] = Refused(f"ref may not be changed: {reason}", ref=shown)
        return good

    def _refusal(self, update: RefUpdate, now: Ref | None, current: bytes | None) -> str | None:
        null = self.look.record.hash_kind.null  # stands for what is no object
        old = None if now is None else now.target or null
        new = null if update.symbolic is not None else update.new
        return unsigned_refusal(self.settings) or refusal(
            self.settings,
            Command(update.name, old, new),
            principal=self.principal,
            is_ff=lambda: self._is_ff(old, new),
            current=current,
        )

    def _is_ff(self, old: ObjectId | None, new: ObjectId | None) -> bool:
        if self.look.view is None or old is None or new is None:
            return False
        graph = self.look.view.graph()
        places = [graph.peel(at) if at >= 0 else -1 for at in self.look.view.positions([old, new])]
        if any(at < 0 or graph.type_at(at) != ObjectType.COMMIT for at in places):
            return False
        return graph.is_ancestor(*places)
