"""The ref table of a repository: loose rows in the journal over an immutable sorted snapshot."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from shardgit.errors import RefMissing
from shardgit.journal.interface import Compare, CompareRange, Delete, DeleteRange, Put, end_of
from shardgit.journal.records import RefsHead, ref_key, refs_head_key
from shardgit.limits import DEFAULT
from shardgit.refs.name import check_ref_name
from shardgit.refs.ref import Ref, decode_row, encode_row
from shardgit.refs.snapshot import RefSnapshot, encode_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardgit.blocks.interface import BlockStore
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import BlockId

LOOSE_MAX = 56  # refs that an import writes as loose rows, so that old and new fit a commit; more become a snapshot
SNAPSHOTS_CACHED = 256


@dataclass(frozen=True, slots=True)
class RefsChange:
    """What a change of refs adds to a journal commit; the snapshot's blocks are put already."""

    conditions: tuple[Condition, ...]
    operations: tuple[Operation, ...]


class RefTable:
    """Reads and replaces the refs of repositories. Methods without ``async`` run in the calling thread."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._opened: OrderedDict[BlockId, RefSnapshot] = OrderedDict()
        self._lock = Lock()

    def _snapshot(self, root: BlockId) -> RefSnapshot:
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

    def head(self, journal: JournalSnapshot, repository: RepositoryRecord) -> RefsHead:
        """Return the refs head; an empty one when nothing was ever written."""
        row = journal.get(refs_head_key(repository.id))
        return RefsHead(None, 0) if row is None else RefsHead.decode(row.value)

    def state_key(self, journal: JournalSnapshot, repository: RepositoryRecord) -> bytes:
        """Return a key that changes whenever any ref of the repository does."""
        row = journal.get(refs_head_key(repository.id))
        return b"%d:%d" % (repository.id, row.revision if row else 0)

    def get(self, journal: JournalSnapshot, repository: RepositoryRecord, name: bytes) -> Ref | None:
        """Return one ref as it stands, None when it is missing."""
        row = journal.get(ref_key(repository.id, name)) if len(name) <= DEFAULT.ref_name_max_bytes else None
        if row is not None:
            ref = decode_row(name, row.value)
            return None if ref.target is None and ref.symbolic is None else ref
        head = self.head(journal, repository)
        return self._snapshot(head.snapshot).get(name) if head.snapshot else None

    def resolve(self, journal: JournalSnapshot, repository: RepositoryRecord, name: bytes) -> Ref:
        """Follow symbolic refs to one that names an object; RefMissing when it is unborn, missing or a circle."""
        at = name
        for _ in range(DEFAULT.ref_symbolic_depth_max):
            ref = self.get(journal, repository, at)
            if ref is None:
                break
            if ref.symbolic is None:
                return ref
            at = ref.symbolic
        raise RefMissing("ref does not exist", ref=name.decode("utf-8", "replace"), repository=repository.name)

    def list(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        *,
        prefixes: Sequence[bytes] = (),
        start_after: bytes = b"",
        limit: int | None = None,
    ) -> Iterator[Ref]:
        """Return the refs under any of ``prefixes`` (all without), HEAD left out, by rising name, each once."""
        head = self.head(journal, repository)
        snapshot = self._snapshot(head.snapshot) if head.snapshot else None
        for low, high in _ranges(prefixes):
            first = max(low, start_after + b"\0") if start_after else low
            for ref in self._merge(journal, repository, snapshot, first, high):
                if limit == 0:
                    return
                limit = None if limit is None else limit - 1
                yield ref

    def _merge(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        snapshot: RefSnapshot | None,
        low: bytes,
        high: bytes,
    ) -> Iterator[Ref]:
        start = len(ref_key(repository.id, b""))
        rows = journal.range(ref_key(repository.id, low), ref_key(repository.id, high))
        loose = ((row.key[start:], 0, decode_row(row.key[start:], row.value)) for row in rows)
        packed = ((ref.name, 1, ref) for ref in snapshot.range(low, high)) if snapshot else iter(())
        last = None
        for name, _, ref in heapq.merge(loose, packed, key=lambda entry: entry[:2]):
            if name == last:
                continue  # the loose one came first and hides the packed one
            last = name
            if name != b"HEAD" and (ref.target is not None or ref.symbolic is not None):
                yield ref

    def replace_all(
        self, journal: JournalSnapshot, repository: RepositoryRecord, refs: Iterable[Ref], head: Ref | None
    ) -> RefsChange:
        """Prepare a commit after which the repository has exactly ``refs`` and ``head``.

        Puts the snapshot's blocks. The commit is Conflict when any ref changed since ``journal``.
        """
        rows = sorted(refs, key=lambda ref: ref.name)
        for ref in rows:
            check_ref_name(ref.name)
            if ref.symbolic is not None:
                check_ref_name(ref.symbolic)
        key = refs_head_key(repository.id)
        row = journal.get(key)
        low, high = ref_key(repository.id, b"refs/"), end_of(ref_key(repository.id, b"refs/"))
        conditions: list[Condition] = [
            Compare(key, row.revision if row else 0),
            CompareRange(ref_key(repository.id, b""), high, journal.revision),
        ]
        operations: list[Operation] = []
        root = None
        before = [old.key for old in journal.range(low, high, limit=LOOSE_MAX + 1)]
        if max(len(rows), len(before)) <= LOOSE_MAX:
            names = {ref_key(repository.id, ref.name): ref for ref in rows}
            operations += [Delete(old) for old in before if old not in names]
            operations += [Put(at, encode_row(ref, repository.hash_kind)) for at, ref in names.items()]
        else:
            root, blocks, _ = encode_snapshot(rows, pool=repository.pool, hash_kind=repository.hash_kind)
            self._blocks.put_many_sync(blocks)
            operations.append(DeleteRange(low, high))
        operations.append(Put(key, RefsHead(root, len(rows)).encode()))
        if head is not None:
            operations.append(Put(ref_key(repository.id, b"HEAD"), encode_row(head, repository.hash_kind)))
        return RefsChange(tuple(conditions), tuple(operations))


def _ranges(prefixes: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Turn prefixes into disjoint rising ranges."""
    if not prefixes or b"" in prefixes:
        return [(b"", b"\xff" * 500)]
    kept: list[bytes] = []
    for prefix in sorted(set(prefixes)):
        if len(prefix) > DEFAULT.ref_name_max_bytes:
            continue  # no ref is that long
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return [(prefix, end_of(prefix)) for prefix in kept]
