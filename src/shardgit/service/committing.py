"""A commit made on a branch in one go: changed files, new objects, the branch moved."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import Conflict, InvalidArgument, ObjectMissing, Refused
from shardgit.objects import GITLINK, ObjectType, object_id
from shardgit.oid import ObjectId, hex_of
from shardgit.pack.builder import PackBuilder
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.composing import FileChange, commit_bytes, compose_tree, person
from shardgit.service.push import Push, Pushed, next_steps
from shardgit.service.push_hooks import ask_hooks, tell_hooks
from shardgit.service.reading import Reading
from shardgit.service.signed_push import unsigned_refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardgit.objects import TreeEntry
    from shardgit.service.access import Principal
    from shardgit.service.composing import NewTree
    from shardgit.service.store import Store

ROUNDS_MAX = 16  # against other writers of the branch, where the caller expects nothing of it
TOLD_MAX = 2_000  # characters of what a refusal quotes
LOOKS_MAX = 256
STALE = "incorrect old value provided"


@dataclass(frozen=True, slots=True)
class CommitPlan:
    """What a commit is to be. ``expected`` is the id that the branch must have, zeros for none; None: any.

    ``base`` is the revision that a new branch starts from. ``author`` and ``committer`` are ``Name <mail>``.
    """

    branch: str
    message: bytes
    author: bytes
    files: Mapping[bytes, FileChange]
    committer: bytes = b""
    author_seconds: int = 0
    author_zone: bytes = b"+0000"
    expected: ObjectId | None = None
    base: str = ""
    allow_empty: bool = False
    options: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit that stands on its branch; ``old`` is what the branch was before, None for a new one."""

    id: ObjectId
    tree: ObjectId
    old: ObjectId | None


@dataclass(frozen=True, slots=True)
class _Ready:
    """A commit that was checked as a push and waits for hooks and its commit point."""

    push: Push
    done: Committed


@dataclass(frozen=True, slots=True)
class Committing:
    """Makes commits in one repository."""

    store: Store
    name: str
    principal: Principal

    async def commit(self, plan: CommitPlan) -> Committed:
        """Make a commit and move its branch, under the rules of any push, hooks among them.

        Errors: Conflict when the branch is not where it was expected or moves all the time, Refused with the reason of
        a policy or a hook, ReadOnly, QuotaExceeded, InvalidArgument, PathMissing, LimitExceeded, StorageFull.
        """
        run, limits = self.store.workers.run, self.store.limits
        if len(plan.files) > limits.commit_files_max:
            raise InvalidArgument("commit changes too many files", limit=limits.commit_files_max)
        for _ in range(ROUNDS_MAX):
            said = _Said()
            ready = await run(self._prepare, plan)
            await ask_hooks(ready.push, tell=said.hear)
            pushed = await self._pushed(ready.push)
            error = pushed.results[0].error
            if error is None:
                await tell_hooks(ready.push, pushed)
                return ready.done
            if ready.push.denied is not None:
                raise ready.push.denied
            if error != STALE:
                told = "\n".join([*ready.push.told, said.text])
                raise Refused(error, branch=plan.branch, told=told[:TOLD_MAX].strip())
            if plan.expected is not None:
                break
        raise Conflict("branch moved meanwhile; look again", branch=plan.branch)

    async def _pushed(self, push: Push) -> Pushed:
        """Commit a push, again while other writers are faster; no thread waits for the disk."""
        run = self.store.workers.run
        while (steps := await next_steps(push)) is not None:
            try:
                # commit point: as in Push.commit.
                faultpoints.reach("commit.before_commit")
                revision = await self.store.journal.commit(steps.conditions, steps.operations)
                faultpoints.reach("commit.after_commit")
            except Conflict:
                push.lost()
            else:
                await run(push.committed, revision)
        return push.outcome()

    def _prepare(self, plan: CommitPlan) -> _Ready:
        """Compose the commit on the branch as it stands, and check it as a push. Runs in a worker."""
        ref = full_name(plan.branch)
        reading, old = self._look(ref)
        kind = reading.record.hash_kind
        if plan.expected is not None and plan.expected != (old or kind.null):
            raise Conflict(
                "branch is not where it was expected",
                branch=plan.branch,
                expected=hex_of(plan.expected),
                found=hex_of(old or kind.null),
            )
        parent = self._parent(reading, old, plan)
        tree = self._tree(reading, parent, plan)
        if not plan.allow_empty and tree.id == self._tree_of(reading, parent):
            raise InvalidArgument("commit changes nothing", branch=plan.branch)
        now = int(time.time())
        author = person(plan.author, seconds=plan.author_seconds or now, zone=plan.author_zone)
        data = commit_bytes(
            tree.id,
            [parent] if parent else [],
            author=author,
            committer=person(plan.committer or plan.author, seconds=now),
            message=plan.message,
        )
        new = object_id(ObjectType.COMMIT, [data], len(data), kind)
        pack = PackBuilder(kind)
        for one in tree.objects:
            pack.add(one.type, one.data)
        pack.add(ObjectType.COMMIT, data)
        push = self._push(Command(ref, old, new), pack.finish(), plan)
        return _Ready(push, Committed(new, tree.id, old))

    def _push(self, command: Command, pack: bytes, plan: CommitPlan) -> Push:
        """Return a push of one command, taken and checked."""
        request = PushRequest((command,), options=plan.options)
        push = Push(self.store, self.name, request, principal=self.principal, reason="commit")
        push.take(pack)
        unsigned = unsigned_refusal(push.settings)
        if unsigned is not None:
            push.verdicts.refuse_all(unsigned)
        push.check()
        return push

    def _look(self, ref: bytes) -> tuple[Reading, ObjectId | None]:
        """Return a reading, and the tip of a branch as of the same moment."""
        for _ in range(LOOKS_MAX):
            reading = Reading(self.store, self.name)
            old = self._tip(reading, ref)
            with self.store.journal.snapshot() as snapshot:
                now = self.store.refs.state_key(snapshot, reading.record)
            if now == reading.state.refs_key:
                return reading, old
        raise Conflict("refs change too fast", repository=self.name)

    def _tip(self, reading: Reading, ref: bytes) -> ObjectId | None:
        with self.store.journal.snapshot() as snapshot:
            found = self.store.refs.get(snapshot, reading.record, ref)
            if found is not None and found.symbolic is not None:
                found = self.store.refs.get(snapshot, reading.record, found.symbolic)
            return found.target if found is not None else None

    def _parent(self, reading: Reading, old: ObjectId | None, plan: CommitPlan) -> ObjectId | None:
        if old is not None:
            (info,) = reading.infos([old])
            if info is None or info.type != ObjectType.COMMIT:
                raise InvalidArgument("ref leads to no commit", branch=plan.branch)
            return old
        if not plan.base:
            return None
        at = reading.peel(reading.resolve(plan.base), "commit")
        return reading.commits([at])[0].id

    def _tree_of(self, reading: Reading, commit: ObjectId | None) -> ObjectId:
        if commit is None:
            return object_id(ObjectType.TREE, [], 0, reading.record.hash_kind)
        return reading.commits([reading.position(commit)])[0].commit.tree

    def _tree(self, reading: Reading, parent: ObjectId | None, plan: CommitPlan) -> NewTree:
        named = {path: one for path, one in plan.files.items() if one.id is not None}
        ids = [one.id for one in named.values() if one.id is not None and one.mode != GITLINK]
        for oid, info in zip(ids, reading.infos(ids), strict=True):
            if info is None:
                raise ObjectMissing(
                    "object is not in the repository; upload it first",
                    oid=hex_of(oid),
                    repository=self.name,
                )
            if info.type != ObjectType.BLOB:
                raise InvalidArgument("a file is a blob", oid=hex_of(oid))

        def read(oid: ObjectId) -> Sequence[TreeEntry]:
            return reading.tree(reading.position(oid))

        root = reading.tree(reading.position(parent)) if parent is not None else []
        return compose_tree(reading.record.hash_kind, root, plan.files, read)


class _Said:
    """What hooks say, up to a limit."""

    def __init__(self) -> None:
        self.text = ""

    async def hear(self, data: bytes) -> None:
        self.text = (self.text + data.decode("utf-8", "replace"))[:TOLD_MAX]


def full_name(branch: str) -> bytes:
    """Return the full name of a branch: ``main`` is refs/heads/main."""
    if branch == "HEAD":  # as git: a branch of that name would be taken for the ref
        raise InvalidArgument("HEAD is no branch; name the one that it points to", branch=branch)
    return (branch if branch.startswith("refs/") else f"refs/heads/{branch}").encode()
