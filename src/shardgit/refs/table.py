"""The ref table of a repository: loose rows in the journal over an immutable sorted snapshot."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, RefMissing, RepositoryMissing
from shardgit.journal.interface import (
    Compare,
    CompareRange,
    Delete,
    DeleteRange,
    Put,
    end_of,
)
from shardgit.journal.records import RefsHead, loose_range, ref_key, refs_head_key, repository_key
from shardgit.limits import DEFAULT
from shardgit.refs.ref import Ref, decode_row, encode_row
from shardgit.refs.snapshot import RefSnapshot, fold, new_snapshot
from shardgit.refs.update import RefUpdate, check_folders, check_old, check_ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence

    from shardgit.blocks.interface import BlockStore
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import BlockId

CHANGES_MAX = 100  # loose rows of one commit; with more a snapshot is written. 28 steps stay free
LOOSE_MAX = 1_024  # loose rows of a repository before they are folded into a snapshot
SNAPSHOTS_CACHED = 256
HEAD = b"HEAD"
_LOW, _HIGH = b"refs/", b"refs0"


@dataclass(frozen=True, slots=True)
class RefsChange:
    """What a change of refs adds to a journal commit; the snapshot's blocks are put already."""

    conditions: tuple[Condition, ...]
    operations: tuple[Operation, ...]


class RefTable:
    """Reads the refs of repositories and plans their changes. Runs in the calling thread.

    A plan's commit is Conflict when any ref of the repository, or its record, changed since the
    snapshot it was made from; RefWriter makes it anew then.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._opened: OrderedDict[BlockId, RefSnapshot] = OrderedDict()
        self._lock = Lock()

    def _snapshot(self, head: RefsHead) -> RefSnapshot | None:
        root = head.snapshot
        if root is None:
            return None
        with self._lock:
            found = self._opened.get(root)
            if found is not None:
                self._opened.move_to_end(root)
                return found
        found = RefSnapshot.open(self._blocks, root)
        with self._lock:
            self._opened[root] = found
            while len(self._opened) > SNAPSHOTS_CACHED:
                self._opened.popitem(last=False)
        return found

    # ---- reading ----

    def head(self, journal: JournalSnapshot, repository: RepositoryRecord) -> RefsHead:
        """Return the refs head; an empty one when nothing was ever written."""
        row = journal.get(refs_head_key(repository.id))
        return RefsHead(None, 0) if row is None else RefsHead.decode(row.value)

    def state_key(self, journal: JournalSnapshot, repository: RepositoryRecord) -> bytes:
        """Return a key that changes whenever any ref of the repository does, HEAD included.

        Repositories of one pool with equal snapshots, HEADs and no loose rows have equal keys.
        """
        row = journal.get(refs_head_key(repository.id))
        head = RefsHead(None, 0) if row is None else RefsHead.decode(row.value)
        if row is not None and not head.loose:
            at = journal.get(ref_key(repository.id, HEAD))
            shown = at.value if at else b""
            return b"S" + repository.pool + (head.snapshot or bytes(32)) + shown
        revision = row.revision if row else 0
        return b"R" + repository.pool + repository.id.to_bytes(8, "big") + b"%d" % revision

    def get(
        self, journal: JournalSnapshot, repository: RepositoryRecord, name: bytes
    ) -> Ref | None:
        """Return one ref as it stands, None when it is missing."""
        row = self._loose(journal, repository, name)
        if row is None:
            snapshot = self._snapshot(self.head(journal, repository))
            return snapshot.get(name) if snapshot else None
        return row if row.stands else None

    def _loose(
        self, journal: JournalSnapshot, repository: RepositoryRecord, name: bytes
    ) -> Ref | None:
        if len(name) > DEFAULT.ref_name_max_bytes:
            return None
        row = journal.get(ref_key(repository.id, name))
        return None if row is None else decode_row(name, row.value)

    def resolve(self, journal: JournalSnapshot, repository: RepositoryRecord, name: bytes) -> Ref:
        """Follow symbolic refs to one that names an object.

        Errors: RefMissing when it is unborn, missing, a circle or too long a chain.
        """
        at = name
        for _ in range(DEFAULT.ref_symbolic_depth_max):
            ref = self.get(journal, repository, at)
            if ref is None:
                break
            if ref.symbolic is None:
                return ref
            at = ref.symbolic
        raise RefMissing(
            "ref does not exist",
            ref=name.decode("utf-8", "replace"),
            repository=repository.name,
        )

    def list(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        *,
        prefixes: Sequence[bytes] = (),
        start_after: bytes = b"",
        limit: int | None = None,
    ) -> Iterator[Ref]:
        """Return the refs under any of ``prefixes`` (all without), by rising name, each once.

        HEAD is left out. Lazy, and good for as long as the journal's snapshot.
        """
        snapshot = self._snapshot(self.head(journal, repository))
        if limit is not None and limit <= 0:
            return
        given = 0
        for low, high in _ranges(prefixes):
            first = max(low, start_after + b"\0") if start_after else low
            if first >= high:
                continue
            for ref in self._between(journal, repository, snapshot, first, high):
                yield ref
                given += 1
                if given == limit:
                    return

    def _between(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        snapshot: RefSnapshot | None,
        low: bytes,
        high: bytes,
    ) -> Iterator[Ref]:
        start = len(ref_key(repository.id, b""))
        rows = journal.range(ref_key(repository.id, low), ref_key(repository.id, high))
        loose_rows = (decode_row(row.key[start:], row.value) for row in rows)
        loose = next(loose_rows, None)
        for packed in snapshot.range(low, high) if snapshot else ():
            hidden = False
            while loose is not None and loose.name <= packed.name:
                hidden = loose.name == packed.name
                if loose.stands:
                    yield loose
                loose = next(loose_rows, None)
            if not hidden:
                yield packed
        while loose is not None:
            if loose.stands:
                yield loose
            loose = next(loose_rows, None)

    # ---- planning ----

    def update(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        updates: Sequence[RefUpdate],
    ) -> RefsChange:
        """Plan a commit that makes all updates or none.

        Errors: Conflict when an old value does not fit, Refused for a ref that is a folder of
        another, InvalidRefName, InvalidArgument, RepositoryMissing.
        """
        changes: dict[bytes, Ref] = {}
        before: dict[bytes, Ref | None] = {}
        for update in updates:
            ref = update.ref
            check_ref(ref, repository.hash_kind)
            if ref.name in before:
                raise InvalidArgument("a ref stands twice in one update")
            if ref.name == HEAD and not ref.stands:
                raise InvalidArgument("HEAD is never deleted")
            now = self.get(journal, repository, ref.name)
            check_old(update, now)
            before[ref.name] = now
            if (now is not None or ref.stands) and now != ref:
                changes[ref.name] = ref
        gone = {name for name, ref in changes.items() if not ref.stands}
        check_folders(
            [name for name in changes if before[name] is None and name != HEAD],
            lambda name: name not in gone and self.get(journal, repository, name) is not None,
            lambda folder: next(
                (
                    ref.name
                    for ref in self.list(journal, repository, prefixes=(folder,))
                    if ref.name not in gone
                ),
                None,
            ),
        )
        return self._change(journal, repository, changes)

    def replace_all(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        refs: Iterable[Ref],
        head: Ref | None,
    ) -> RefsChange:
        """Plan a commit after which the repository has exactly ``refs``; HEAD stays without one.

        Only what differs is written. Errors: as update, but for Conflict.
        """
        wanted = {ref.name: ref for ref in refs}
        for ref in wanted.values():
            check_ref(ref, repository.hash_kind)
        wanted.pop(HEAD, None)
        check_folders(wanted, lambda _: False, lambda _: None)
        changes = dict(wanted)
        for now in self.list(journal, repository):
            ref = changes.get(now.name, Ref(now.name))
            if ref == now:
                del changes[now.name]
            else:
                changes[now.name] = ref
        if head is not None:
            check_ref(head, repository.hash_kind)
            if head != self.get(journal, repository, HEAD):
                changes[HEAD] = Ref(HEAD, head.target, head.symbolic, head.peeled)
        return self._change(journal, repository, changes)

    def _change(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        changes: Mapping[bytes, Ref],
    ) -> RefsChange:
        own = journal.get(repository_key(repository.id))
        if own is None:
            raise RepositoryMissing("repository does not exist", repository=repository.name)
        row = journal.get(refs_head_key(repository.id))
        head = RefsHead(None, 0) if row is None else RefsHead.decode(row.value)
        conditions: list[Condition] = [
            Compare(repository_key(repository.id), own.revision),
            Compare(refs_head_key(repository.id), row.revision if row else 0),
        ]
        if not changes:
            return RefsChange(tuple(conditions), ())
        operations: list[Operation] = []
        if HEAD in changes:
            value = encode_row(changes[HEAD], repository.hash_kind)
            operations.append(Put(ref_key(repository.id, HEAD), value))
        rest = sorted((ref for ref in changes.values() if ref.name != HEAD), key=_name_of)
        if len(rest) <= CHANGES_MAX and head.loose + len(rest) <= LOOSE_MAX:
            head = self._write_loose(journal, repository, head, rest, operations)
        else:
            head = self._write_snapshot(journal, repository, head, rest)
            low, high = loose_range(repository.id)
            conditions.append(CompareRange(low, high, journal.revision))
            operations.append(DeleteRange(low, high))
        operations.append(Put(refs_head_key(repository.id), head.encode()))
        return RefsChange(tuple(conditions), tuple(operations))

    def _write_loose(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        head: RefsHead,
        changes: Sequence[Ref],
        operations: MutableSequence[Operation],
    ) -> RefsHead:
        snapshot = self._snapshot(head)
        count, loose = head.count, head.loose
        for ref in changes:
            key = ref_key(repository.id, ref.name)
            row = self._loose(journal, repository, ref.name)
            packed = snapshot.get(ref.name) if snapshot else None
            stood = row.stands if row is not None else packed is not None
            count += ref.stands - stood
            if ref.stands or packed is not None:
                operations.append(Put(key, encode_row(ref, repository.hash_kind)))
                loose += row is None
            else:
                operations.append(Delete(key))
                loose -= row is not None
        return RefsHead(head.snapshot, count, loose, head.hash_kind)

    def _write_snapshot(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        head: RefsHead,
        changes: Sequence[Ref],
    ) -> RefsHead:
        low, high = loose_range(repository.id)
        start = len(ref_key(repository.id, b""))
        merged = {
            row.key[start:]: decode_row(row.key[start:], row.value)
            for row in journal.range(low, high)
        }
        merged.update((ref.name, ref) for ref in changes)
        ordered = sorted(merged.values(), key=_name_of)
        snapshot = self._snapshot(head)
        if snapshot is None:
            standing = (ref for ref in ordered if ref.stands)
            made = new_snapshot(standing, pool=repository.pool, hash_kind=repository.hash_kind)
        else:
            made = fold(snapshot, ordered, pool=repository.pool)
        # Durable before the commit that names them; a crash between leaves blocks that gc drops.
        self._blocks.put_many_sync(made.blocks)
        kind = repository.hash_kind if made.root else None
        return RefsHead(made.root, made.count, 0, kind)


def _name_of(ref: Ref) -> bytes:
    return ref.name


def _ranges(prefixes: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Turn prefixes into disjoint rising ranges of names under refs/."""
    kept: list[bytes] = []
    for prefix in sorted(set(prefixes)) or [b""]:
        if len(prefix) <= DEFAULT.ref_name_max_bytes and not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    ranges = ((max(prefix, _LOW), min(end_of(prefix), _HIGH)) for prefix in kept)
    return [(low, high) for low, high in ranges if low < high]
