"""Checking a repository's refs and their log: do they lead to objects of the right type, do both agree?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shardgit.errors import DataLoss, LogPositionUnknown
from shardgit.journal.records import RepositoryRecord, log_range
from shardgit.oid import hex_of
from shardgit.refs.name import is_ref_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.oid import ObjectId
    from shardgit.pool.grafts import Grafts
    from shardgit.pool.view import PoolView
    from shardgit.refs.ref import Ref
    from shardgit.service.store import Store

CHANGES_MAX = 2_000_000  # of a log that is replayed; of a longer one only the order is looked at
COMMIT = 1
HEADS = b"refs/heads/"


class Told(Protocol):
    """Takes a finding."""

    def __call__(self, severity: str, kind: str, line: str, oid: bytes | None = None) -> None:
        """Take severity, kind, git's line and the object."""
        ...


@dataclass(frozen=True, slots=True)
class PoolTips:
    """What the refs and uploads of a pool's repositories name: of one of them, and of all by their grafts."""

    own: frozenset[ObjectId]
    by_grafts: tuple[tuple[Grafts, frozenset[ObjectId]], ...]

    def is_graft(self, oid: ObjectId) -> bool:
        """Whether history ends at a commit in some repository: the pool may lack its parents."""
        return any(oid in grafts.ids for grafts, _ in self.by_grafts)


def tips_of_pool(store: Store, snapshot: JournalSnapshot, record: RepositoryRecord) -> PoolTips:
    """Return where the objects of a repository's pool are reached from. Errors: DataLoss."""
    found: dict[Grafts, set[ObjectId]] = defaultdict(set)
    for row in snapshot.range(b"I", b"J"):
        other = RepositoryRecord.decode(row.value)
        if other.pool == record.pool:
            grafts, _ = store.grafts_row(snapshot, other)
            found[grafts] |= _tips(store, snapshot, other)
            found[grafts] |= store.uploads.fresh_ids(snapshot, other.id)
    return PoolTips(
        frozenset(_tips(store, snapshot, record)),
        tuple((grafts, frozenset(tips)) for grafts, tips in found.items()),
    )


def _tips(store: Store, snapshot: JournalSnapshot, record: RepositoryRecord) -> set[ObjectId]:
    found = {ref.target for ref in store.refs.list(snapshot, record) if ref.target is not None}
    head = store.refs.get(snapshot, record, b"HEAD")
    if head is not None and head.target is not None:
        found.add(head.target)
    return found


def check_refs(view: PoolView | None, refs: Sequence[Ref], head: Ref | None, told: Told) -> None:
    """Tell of refs that lead nowhere, to an object of the wrong type, or that are named as none may be."""
    names = {ref.name for ref in refs}
    targets = [ref for ref in refs if ref.target is not None]
    found = dict(zip(targets, _positions(view, targets), strict=True))
    graph = None
    if view is not None:
        try:
            graph = view.graph()
        except DataLoss as error:
            told("error", "damaged", f"error: graph cannot be read: {error}")
    for ref in refs:
        name = ref.name.decode("utf-8", "replace")
        if not (ref.name.startswith(b"refs/") and is_ref_name(ref.name)):
            told("error", "bad_ref", f"error: {name}: badRefName: not a valid ref name")
        if ref.target is None:
            if ref.symbolic is not None and ref.symbolic not in names:
                target = ref.symbolic.decode("utf-8", "replace")
                told("notice", "unborn", f"notice: {name} points to an unborn branch ({target})")
            continue
        at = found[ref]
        if at < 0:
            line = f"error: {name}: invalid sha1 pointer {hex_of(ref.target)}"
            told("error", "bad_ref", line, ref.target)
        elif graph is not None:
            if ref.name.startswith(HEADS) and graph.type_at(at) != COMMIT:
                told("error", "bad_ref", f"error: {name}: not a commit", ref.target)
            peeled = graph.peel(at)
            if ref.peeled is not None and view is not None:
                whole = view.ids_at([peeled])[0] if peeled >= 0 else None
                if whole != ref.peeled:
                    told("error", "bad_ref", f"error: {name}: peels to another object", ref.target)
    if head is None:
        told("error", "bad_ref", "error: HEAD: no such ref")
    elif head.symbolic is not None and head.symbolic not in names:
        branch = head.symbolic.decode("utf-8", "replace").removeprefix("refs/heads/")
        told("notice", "unborn", f"notice: HEAD points to an unborn branch ({branch})")
    elif head.target is not None and _positions(view, [head])[0] < 0:
        line = f"error: HEAD: invalid sha1 pointer {hex_of(head.target)}"
        told("error", "bad_ref", line, head.target)


def _positions(view: PoolView | None, refs: Sequence[Ref]) -> list[int]:
    if view is None:
        return [-1] * len(refs)
    return view.positions([ref.target for ref in refs if ref.target is not None])


def check_log(store: Store, record: RepositoryRecord, refs: Sequence[Ref], told: Told) -> int:
    """Tell where a ref log has gaps, does not read, or does not end at the refs; returns its entries."""
    with store.journal.snapshot() as snapshot:
        head = store.refs.head(snapshot, record)
        first = next(snapshot.range(*log_range(record.id), limit=1), None)
        if first is None:
            if head.sequence:
                told("notice", "log_trimmed", "notice: the ref log holds no entry any more")
            return 0
        oldest = int.from_bytes(first.key[-8:], "big")
        last: dict[bytes, Ref | None] = {}
        entries = changes = 0
        whole = True
        try:
            for entry in store.refs.changes_since(snapshot, record, oldest - 1):
                entries += 1
                for change in entry.changes:
                    changes += 1
                    if changes > CHANGES_MAX:
                        whole = False
                        break
                    before = last.get(change.name, change.old)
                    if before != change.old:
                        name = change.name.decode("utf-8", "replace")
                        line = f"error: log of {name}: entry {entry.sequence} begins elsewhere"
                        told("error", "bad_log", f"{line} than the one before it ends")
                    last[change.name] = change.new
        except LogPositionUnknown as error:
            told("error", "bad_log", f"error: ref log has a gap: {error}")
            whole = False
        except DataLoss as error:
            told("error", "bad_log", f"error: ref log cannot be read: {error}")
            whole = False
        now = {ref.name: ref for ref in store.refs.list(snapshot, record)}
    if whole:
        for line in _differences(last, now, complete=oldest == 1):
            told("error", "bad_log", line)
    return entries


def _differences(
    last: dict[bytes, Ref | None], now: dict[bytes, Ref], *, complete: bool
) -> Iterator[str]:
    """Say which refs are not where their log ends; with a ``complete`` log no ref may lack one."""
    for name in sorted(last.keys() | (now.keys() if complete else set())):
        if name == b"HEAD":
            continue
        then, ref = last.get(name), now.get(name)
        if then != ref:
            text = name.decode("utf-8", "replace")
            yield f"error: log of {text} ends at {_shown(then)}, the ref is {_shown(ref)}"


def _shown(ref: Ref | None) -> str:
    if ref is None:
        return "nothing"
    return hex_of(ref.target) if ref.target is not None else str(ref.symbolic)
