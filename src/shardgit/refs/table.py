"""The ref table of a repository: loose rows in the journal over an immutable sorted snapshot."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from shardgit.errors import (
    Conflict,
    InvalidArgument,
    LogPositionUnknown,
    RefMissing,
    Refused,
)
from shardgit.journal.interface import end_of
from shardgit.journal.records import RefsHead, log_key, ref_key, refs_head_key
from shardgit.kept import Kept
from shardgit.limits import DEFAULT
from shardgit.refs.change import HEAD, ChangeWriter
from shardgit.refs.log import LogSource, decode_entry
from shardgit.refs.lookup import FEW, Lookup
from shardgit.refs.page import changes_of_rows
from shardgit.refs.ref import Ref, decode_row
from shardgit.refs.snapshot import RefSnapshot
from shardgit.refs.update import Folders, check_old, check_ref

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shardgit.blocks.interface import BlockStore
    from shardgit.errors import ShardgitError
    from shardgit.journal.interface import JournalSnapshot, Row
    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import BlockId
    from shardgit.refs.change import RefsChange, Shared
    from shardgit.refs.log import LogEntry, LogNote
    from shardgit.refs.snapshot import Rendered
    from shardgit.refs.update import RefUpdate

SNAPSHOTS_CACHED = 256
LINES_KEPT_BYTES = 96 << 20  # a listing of 1,000,000 refs has 67 MB
LINES_LEAST_BYTES = 64 << 10  # of a page, all but whole
LOG_STEP = 256  # log rows read at once where the newest come first
_LOW, _HIGH = b"refs/", b"refs0"


class RefTable:
    """Reads the refs of repositories and plans their changes. Runs in the calling thread.

    A plan's commit is Conflict when any ref of the repository, or its record, changed since the
    snapshot it was made from; RefWriter makes it anew then.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._opened: OrderedDict[BlockId, RefSnapshot] = OrderedDict()
        self._lock = Lock()
        self.lines = Kept(LINES_KEPT_BYTES, least_bytes=LINES_LEAST_BYTES)
        self._changes = ChangeWriter(blocks, self)
        self._log = LogSource(blocks, self.opened)

    def snapshot(self, head: RefsHead) -> RefSnapshot | None:
        """Return the snapshot that a head names."""
        return None if head.snapshot is None else self.opened(head.snapshot)

    def opened(self, root: BlockId) -> RefSnapshot:
        """Return an opened snapshot; the last few are kept."""
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
        row = self.loose(journal, repository, name)
        if row is None:
            snapshot = self.snapshot(self.head(journal, repository))
            return snapshot.get(name) if snapshot else None
        return row if row.stands else None

    def get_many(
        self, journal: JournalSnapshot, repository: RepositoryRecord, names: Sequence[bytes]
    ) -> dict[bytes, Ref]:
        """Return refs by name; those that are missing are left out."""
        if len(names) <= FEW:
            one_by_one = ((name, self.get(journal, repository, name)) for name in names)
            return {name: ref for name, ref in one_by_one if ref is not None}
        inside = sorted({name for name in names if _LOW <= name < _HIGH})
        ranges = [(name, name + b"\0") for name in inside]
        found = self._firsts(journal, repository)(ranges)
        made = {name: ref for name, ref in zip(inside, found, strict=True) if ref is not None}
        head = self.get(journal, repository, HEAD) if HEAD in names else None
        return made if head is None else {**made, HEAD: head}

    def _firsts(
        self, journal: JournalSnapshot, repository: RepositoryRecord
    ) -> Callable[[Sequence[tuple[bytes, bytes]]], list[Ref | None]]:
        snapshot = self._standing(journal, repository)
        loose = self._loose_in(journal, repository)
        return lambda ranges: snapshot.firsts_of(ranges, loose)

    def loose(
        self, journal: JournalSnapshot, repository: RepositoryRecord, name: bytes
    ) -> Ref | None:
        """Return a loose row's ref, the mark of a deleted one too; None without a row."""
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
        start: bytes = b"",
        start_after: bytes = b"",
        limit: int | None = None,
    ) -> Iterator[Ref]:
        """Return the refs under any of ``prefixes`` (all without), by rising name, each once.

        They begin with the name ``start``, or behind ``start_after``. HEAD is left out. Lazy, and
        good for as long as the journal's snapshot.
        """
        snapshot = self._standing(journal, repository)
        loose = self._loose_in(journal, repository)
        if limit is not None and limit <= 0:
            return
        given = 0
        for low, high in _ranges(prefixes):
            first = max(low, start, start_after + b"\0" if start_after else b"")
            for ref in snapshot.range(first, high, loose):
                yield ref
                given += 1
                if given == limit:
                    return

    def render(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        *,
        v0: bool,
        peel: bool = False,
        prefixes: Sequence[bytes] = (),
        start: bytes = b"",
    ) -> Iterator[Rendered]:
        """Return the pkt-lines of refs as ``list`` gives them, from the name ``start`` on.

        ``v0`` are the lines of an advertisement, else those of ls-refs. Symbolic refs are left to
        the caller. Lazy, and good for as long as the journal's snapshot.
        """
        snapshot = self._standing(journal, repository)
        loose = self._loose_in(journal, repository)
        ranges = [(max(low, start), high) for low, high in _ranges(prefixes) if start < high]
        for number, (first, high) in enumerate(ranges):
            for some in snapshot.render(first, high, loose, v0=v0, peel=peel, kept=self.lines):
                if some.next is None and number + 1 < len(ranges):
                    yield replace(some, next=ranges[number + 1][0])
                else:
                    yield some

    def _standing(self, journal: JournalSnapshot, repository: RepositoryRecord) -> RefSnapshot:
        found = self.snapshot(self.head(journal, repository))
        return found or RefSnapshot.empty(self._blocks, repository.hash_kind)

    def _loose_in(
        self, journal: JournalSnapshot, repository: RepositoryRecord
    ) -> Callable[[bytes, bytes], bytes | None] | None:
        if not self.head(journal, repository).loose:
            return None
        start = len(ref_key(repository.id, b""))

        def loose(low: bytes, high: bytes) -> bytes | None:
            first, last = (ref_key(repository.id, name) for name in (low, high))
            rows = journal.range(first, last)
            return changes_of_rows(rows, start=start, hash_kind=repository.hash_kind)

        return loose

    # ---- the log ----

    def changes_since(
        self, journal: JournalSnapshot, repository: RepositoryRecord, sequence: int
    ) -> Iterator[LogEntry]:
        """Return the change-sets behind the one numbered ``sequence``, oldest first; lazy.

        Errors: LogPositionUnknown when rows that should follow were deleted, or when the log does
        not go as far as ``sequence``.
        """
        head = self.head(journal, repository)
        if sequence > head.sequence:
            raise LogPositionUnknown(
                "the ref log does not go that far", sequence=sequence, newest=head.sequence
            )
        expected = sequence + 1
        for entry in self._entries(journal, repository, expected, head.sequence + 1):
            if entry.sequence != expected:
                break
            yield entry
            expected += 1
        if expected <= head.sequence:
            raise LogPositionUnknown(
                "the ref log no longer goes back that far; read the refs anew",
                sequence=sequence,
                newest=head.sequence,
            )

    def log(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        *,
        before: int | None = None,
    ) -> Iterator[LogEntry]:
        """Return the change-sets numbered below ``before`` (all without), newest first; lazy."""
        high = self.head(journal, repository).sequence + 1
        high = high if before is None else min(before, high)
        while high > 1:
            low = max(high - LOG_STEP, 1)
            some = list(self._entries(journal, repository, low, high))
            yield from reversed(some)
            if not some:
                return  # rows are deleted from the front only
            high = low

    def entry(self, row: Row) -> LogEntry:
        """Return the change-set in a log row."""
        return decode_entry(int.from_bytes(row.key[-8:], "big"), row.value, self._log)

    def _entries(
        self, journal: JournalSnapshot, repository: RepositoryRecord, low: int, high: int
    ) -> Iterator[LogEntry]:
        for row in journal.range(log_key(repository.id, low), log_key(repository.id, high)):
            yield self.entry(row)

    # ---- planning ----

    def update(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        updates: Sequence[RefUpdate],
        note: LogNote | None = None,
    ) -> RefsChange:
        """Plan a commit that makes all updates or none.

        Errors: Conflict when an old value does not fit, Refused for a ref that is a folder of
        another, InvalidRefName, InvalidArgument, RepositoryMissing.
        """
        change, failed = self._planned(journal, repository, updates, note, partly=False)
        assert not failed
        return change

    def plan(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        updates: Sequence[RefUpdate],
        note: LogNote | None = None,
    ) -> tuple[RefsChange, dict[bytes, ShardgitError]]:
        """Plan a commit that makes each update that can be made, and say why the others cannot.

        Deletions come first, so that a name may be used again at once. A ref that stands twice is
        not changed at all. Errors for all: RepositoryMissing.
        """
        return self._planned(journal, repository, updates, note, partly=True)

    def _planned(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        updates: Sequence[RefUpdate],
        note: LogNote | None,
        *,
        partly: bool,
    ) -> tuple[RefsChange, dict[bytes, ShardgitError]]:
        before: dict[bytes, Ref | None] = {}
        changes: dict[bytes, Ref] = {}
        failed: dict[bytes, ShardgitError] = {}
        gone: set[bytes] = set()
        lookup = Lookup(
            get=lambda name: self.get(journal, repository, name),
            below=lambda folder: self.list(journal, repository, prefixes=(folder,)),
        )
        lookup.prepare(updates, self._firsts(journal, repository))
        folders = Folders(
            lambda name: name not in gone and lookup.get(name) is not None,
            lambda folder: lookup.below(folder, gone),
        )
        names = Counter(update.name for update in updates)
        for update in sorted(updates, key=lambda one: one.stands):
            try:
                ref, once = update.ref, names[update.name] == 1
                now = _checked(repository, update, ref, lookup, once=once)
                if now is None and ref.stands and ref.name != HEAD:
                    folders.add(ref.name)
            except (Conflict, InvalidArgument, Refused) as error:
                if not partly:
                    raise
                failed[update.name] = error
                continue
            if now != ref and (now is not None or ref.stands):
                before[ref.name], changes[ref.name] = now, ref
                if not ref.stands:
                    gone.add(ref.name)
        return self._changes.write(journal, repository, changes, before, note), failed

    def replace_all(
        self,
        journal: JournalSnapshot,
        repository: RepositoryRecord,
        refs: Iterable[Ref],
        head: Ref | None,
        note: LogNote | None = None,
    ) -> RefsChange:
        """Plan a commit after which the repository has exactly ``refs``; HEAD stays without one.

        Only what differs is written. Errors: as update, but for Conflict.
        """
        wanted = {ref.name: ref for ref in refs}
        wanted.pop(HEAD, None)
        folders = Folders(lambda _: False, lambda _: None)
        for ref in wanted.values():
            check_ref(ref, repository.hash_kind)
            folders.add(ref.name)
        changes = dict(wanted)
        before: dict[bytes, Ref | None] = {}
        for now in self.list(journal, repository):
            ref = changes.get(now.name, Ref(now.name))
            if ref == now:
                del changes[now.name]
            else:
                changes[now.name], before[now.name] = ref, now
        if head is not None:
            check_ref(head, repository.hash_kind)
            before[HEAD] = self.get(journal, repository, HEAD)
            if head != before[HEAD]:
                changes[HEAD] = Ref(HEAD, head.target, head.symbolic, head.peeled)
        return self._changes.write(journal, repository, changes, before, note)

    def remark(
        self, journal: JournalSnapshot, repository: RepositoryRecord, note: LogNote
    ) -> RefsChange:
        """Plan a commit that changes no ref and leaves a note in the log."""
        return self._changes.write(journal, repository, {}, {}, note, always=True)

    def share(self, journal: JournalSnapshot, repository: RepositoryRecord) -> Shared:
        """Plan a commit that makes the repository's refs ready to be shared; see ChangeWriter."""
        return self._changes.share(journal, repository)


def _checked(
    repository: RepositoryRecord, update: RefUpdate, ref: Ref, lookup: Lookup, *, once: bool
) -> Ref | None:
    """Return the ref as it is, when the update fits it."""
    if not once:
        raise InvalidArgument("a ref stands twice in one update")
    check_ref(ref, repository.hash_kind)
    if update.name == HEAD and not ref.stands:
        raise InvalidArgument("HEAD is never deleted")
    now = lookup.get(update.name)
    check_old(update, now)
    return now


def _ranges(prefixes: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Turn prefixes into disjoint rising ranges of names under refs/."""
    kept: list[bytes] = []
    for prefix in sorted(set(prefixes)) or [b""]:
        if len(prefix) <= DEFAULT.ref_name_max_bytes and not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    ranges = ((max(prefix, _LOW), min(end_of(prefix), _HIGH)) for prefix in kept)
    return [(low, high) for low, high in ranges if low < high]
