"""The ref log: one row a committed change-set, with what each ref was and became."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgit.blocks.memory import MemoryBlocks
from shardgit.errors import (
    BlockCorrupt,
    Conflict,
    DataLoss,
    InvalidArgument,
    InvalidRefName,
    JournalCorrupt,
    LimitExceeded,
    LogPositionUnknown,
    Refused,
    StoreFormatUnknown,
)
from shardgit.journal.interface import Delete, Put
from shardgit.journal.memory import MemoryJournal
from shardgit.journal.records import RepositoryRecord, log_key, repository_key
from shardgit.limits import DEFAULT
from shardgit.oid import HashKind, ObjectId, PoolId, RepositoryId
from shardgit.refs import change as change_module
from shardgit.refs.log import LogChange, LogNote
from shardgit.refs.ref import Ref
from shardgit.refs.table import RefTable
from shardgit.refs.update import ANY, RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.errors import ShardgitError
    from shardgit.refs.log import LogEntry

MAIN = b"refs/heads/main"
HEAD = Ref(b"HEAD", symbolic=MAIN)


def oid(n: int) -> ObjectId:
    return ObjectId(n.to_bytes(20, "big"))


class Bench:
    def __init__(self, workers: Workers) -> None:
        self.journal = MemoryJournal()
        self.blocks = MemoryBlocks(workers)
        self.table = RefTable(self.blocks)
        self.writer = RefWriter(self.table, self.journal, workers)
        self.repository = RepositoryRecord(
            RepositoryId(1), "r", PoolId(b"p" * 16), HashKind.SHA1, 0
        )
        own = Put(repository_key(self.repository.id), self.repository.encode())
        self.journal.commit_sync([], [own])

    def update(self, *updates: RefUpdate, note: LogNote | None = None) -> int:
        return self.writer.update_sync(self.repository, updates, note=note)

    def plan(self, *updates: RefUpdate) -> dict[bytes, ShardgitError]:
        with self.journal.snapshot() as snapshot:
            change, failed = self.table.plan(snapshot, self.repository, updates)
        self.journal.commit_sync(change.conditions, change.operations)
        return failed

    def all(self) -> list[Ref]:
        with self.journal.snapshot() as snapshot:
            return list(self.table.list(snapshot, self.repository))

    def since(self, sequence: int) -> list[LogEntry]:
        with self.journal.snapshot() as snapshot:
            return list(self.table.changes_since(snapshot, self.repository, sequence))

    def newest_first(self, before: int | None = None) -> list[int]:
        with self.journal.snapshot() as snapshot:
            found = self.table.log(snapshot, self.repository, before=before)
            return [entry.sequence for entry in found]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.close()


@pytest.fixture
def bench(workers: Workers) -> Bench:
    return Bench(workers)


def test_each_change_set_is_one_entry_with_old_and_new_values(bench: Bench) -> None:
    bench.update(RefUpdate(b"HEAD", ANY, None, symbolic=MAIN), RefUpdate(MAIN, None, oid(1)))
    note = LogNote("ann", "push", "10.0.0.9", 1_700_000_000_123)
    bench.update(
        RefUpdate(MAIN, oid(1), oid(2)), RefUpdate(b"refs/tags/t", None, oid(3), oid(2)), note=note
    )
    bench.update(RefUpdate(MAIN, oid(2), None))
    first, second, third = bench.since(0)
    assert [entry.sequence for entry in (first, second, third)] == [1, 2, 3]
    assert list(first.changes) == [
        LogChange(b"HEAD", None, HEAD),
        LogChange(MAIN, None, Ref(MAIN, oid(1))),
    ]
    tag = Ref(b"refs/tags/t", oid(3), None, oid(2))
    assert list(second.changes) == [
        LogChange(MAIN, Ref(MAIN, oid(1)), Ref(MAIN, oid(2))),
        LogChange(tag.name, None, tag),
    ]
    assert (second.actor, second.message, second.address) == ("ann", "push", "10.0.0.9")
    assert second.time_ms == 1_700_000_000_123
    assert list(third.changes) == [LogChange(MAIN, Ref(MAIN, oid(2)), None)]
    assert third.time_ms > 1_700_000_000_123
    assert second.changes.of(tag.name) == LogChange(tag.name, None, tag)
    assert second.changes.of(b"refs/tags/") is None
    assert bench.newest_first() == [3, 2, 1]


def test_what_changes_nothing_is_not_logged_but_a_remark_is(bench: Bench) -> None:
    bench.update(RefUpdate(MAIN, ANY, oid(1)))
    revision = bench.journal.revision()
    bench.update(RefUpdate(MAIN, ANY, oid(1)), RefUpdate(b"refs/tags/no", ANY, None))
    assert bench.journal.revision() == revision
    with bench.journal.snapshot() as snapshot:
        change = bench.table.remark(snapshot, bench.repository, LogNote("bob", "rename"))
    bench.journal.commit_sync(change.conditions, change.operations)
    (entry,) = bench.since(1)
    assert (entry.sequence, entry.message, list(entry.changes)) == (2, "rename", [])
    assert change.sequence == 2


def test_a_large_change_set_lies_in_blocks(bench: Bench) -> None:
    updates = [RefUpdate(b"refs/heads/%05d" % n, None, oid(n + 1)) for n in range(30_000)]
    bench.update(RefUpdate(MAIN, None, oid(7)))
    bench.update(*updates, note=LogNote("a", "b", certificate=b"signed" * 50_000))
    (entry,) = bench.since(1)
    assert len(entry.changes) == 30_000
    assert list(entry.changes) == [
        LogChange(update.name, None, Ref(update.name, update.new)) for update in updates
    ]
    assert entry.certificate == b"signed" * 50_000
    assert len(entry.changes.blocks) == 3
    name = b"refs/heads/29999"
    assert entry.changes.of(name) == LogChange(name, None, Ref(name, oid(30_000)))
    assert entry.changes.of(b"refs/heads/2999") is None
    with bench.journal.snapshot() as snapshot:
        row = snapshot.get(log_key(bench.repository.id, 2))
    assert row is not None
    assert len(row.value) < 300
    del bench.blocks.blocks[entry.changes.blocks[2]]
    with pytest.raises(DataLoss):
        list(entry.changes)


def test_a_certificate_alone_lies_in_a_block_when_it_is_large(bench: Bench) -> None:
    for number, size in enumerate((10, 100_000)):
        note = LogNote("a", "b", certificate=b"c" * size)
        bench.update(RefUpdate(MAIN, ANY, oid(number + 1)), note=note)
        (entry,) = bench.since(number)
        assert entry.certificate == b"c" * size
        assert [change.name for change in entry.changes] == [MAIN]
    with pytest.raises(LimitExceeded):
        large = b"c" * (DEFAULT.log_certificate_max_bytes + 1)
        bench.update(RefUpdate(MAIN, ANY, oid(9)), note=LogNote("a", "b", certificate=large))


def test_refs_made_from_nothing_are_logged_by_their_snapshot(bench: Bench) -> None:
    refs = [Ref(b"refs/tags/%05d" % n, oid(n + 1)) for n in range(20_000)]
    bench.writer.replace_all_sync(bench.repository, refs, HEAD)
    (entry,) = bench.since(0)
    assert entry.changes.blocks == ()
    assert len(entry.changes) == 20_001
    assert list(entry.changes) == [
        LogChange(b"HEAD", None, HEAD),
        *(LogChange(ref.name, None, ref) for ref in refs),
    ]
    assert entry.changes.of(refs[70].name) == LogChange(refs[70].name, None, refs[70])
    bench.writer.replace_all_sync(bench.repository, refs[1:], None)
    (entry,) = bench.since(1)
    assert list(entry.changes) == [LogChange(refs[0].name, refs[0], None)]


def test_places_that_are_gone_or_not_there_yet_are_unknown(bench: Bench) -> None:
    for n in range(5):
        bench.update(RefUpdate(MAIN, ANY, oid(n + 1)))
    assert [entry.sequence for entry in bench.since(3)] == [4, 5]
    assert bench.since(5) == []
    assert bench.newest_first(before=3) == [2, 1]
    with pytest.raises(LogPositionUnknown):
        bench.since(6)
    bench.journal.commit_sync([], [Delete(log_key(bench.repository.id, n)) for n in (1, 2)])
    with pytest.raises(LogPositionUnknown):
        bench.since(1)
    assert [entry.sequence for entry in bench.since(2)] == [3, 4, 5]
    assert bench.newest_first() == [5, 4, 3]
    bench.journal.commit_sync([], [Delete(log_key(bench.repository.id, n)) for n in (3, 4, 5)])
    with pytest.raises(LogPositionUnknown):
        bench.since(4)
    assert bench.newest_first() == []


def test_texts_are_cut_between_letters(bench: Bench) -> None:
    long = "é" * 3_000
    bench.update(RefUpdate(MAIN, ANY, oid(1)), note=LogNote(long, long + "\udc80", "x" + long))
    (entry,) = bench.since(0)
    assert entry.actor == "é" * 512
    assert entry.address == "x" + "é" * 511
    assert entry.message == "é" * 2_048


def test_a_plan_leaves_out_what_cannot_be_done(bench: Bench) -> None:
    bench.update(RefUpdate(MAIN, ANY, oid(1)), RefUpdate(b"refs/heads/a", ANY, oid(1)))
    failed = bench.plan(
        RefUpdate(b"refs/heads/a/b", None, oid(2)),
        RefUpdate(b"refs/heads/a", oid(1), None),
        RefUpdate(MAIN, oid(9), oid(2)),
        RefUpdate(MAIN + b"/x", None, oid(2)),
        RefUpdate(b"refs/heads/n", None, oid(2)),
        RefUpdate(b"refs/heads/n/m", None, oid(2)),
        RefUpdate(b"refs/heads/..", None, oid(2)),
        RefUpdate(b"refs/heads/t", None, oid(2)),
        RefUpdate(b"refs/heads/t", None, oid(3)),
        RefUpdate(b"HEAD", ANY, None),
        RefUpdate(b"refs/heads/short", None, ObjectId(b"12")),
    )
    assert {name: type(error) for name, error in failed.items()} == {
        MAIN: Conflict,
        MAIN + b"/x": Refused,
        b"refs/heads/n/m": Refused,
        b"refs/heads/..": InvalidRefName,
        b"refs/heads/t": InvalidArgument,
        b"HEAD": InvalidArgument,
        b"refs/heads/short": InvalidArgument,
    }
    assert [ref.name for ref in bench.all()] == [b"refs/heads/a/b", MAIN, b"refs/heads/n"]
    (entry,) = bench.since(1)
    assert [change.name for change in entry.changes] == [
        b"refs/heads/a",
        b"refs/heads/a/b",
        b"refs/heads/n",
    ]
    assert bench.plan(RefUpdate(MAIN, oid(9), oid(2))).keys() == {MAIN}
    assert bench.since(2) == []


def test_the_steps_of_a_full_change_leave_room_in_their_commit(bench: Bench) -> None:
    bench.update(RefUpdate(b"refs/heads/x", None, oid(1)))
    updates = [RefUpdate(b"refs/heads/%d" % n, None, oid(1)) for n in range(100)]
    with bench.journal.snapshot() as snapshot:
        change = bench.table.update(
            snapshot, bench.repository, [RefUpdate(b"HEAD", ANY, oid(1)), *updates]
        )
    assert len(change.conditions) + len(change.operations) == 105


def test_damaged_rows_and_blocks_are_told(bench: Bench) -> None:
    bench.update(RefUpdate(MAIN, ANY, oid(1)))
    key = log_key(bench.repository.id, 1)
    with bench.journal.snapshot() as snapshot:
        row = snapshot.get(key)
    assert row is not None
    for wrong in (b"", row.value[:20], row.value[:-1], row.value + b"\0", b"\0" + row.value[1:]):
        bench.journal.commit_sync([], [Put(key, wrong)])
        with pytest.raises(JournalCorrupt):
            [list(entry.changes) for entry in bench.since(0)]
    bench.journal.commit_sync([], [Put(key, b"\2" + row.value[1:])])
    with pytest.raises(StoreFormatUnknown):
        [list(entry.changes) for entry in bench.since(0)]
    updates = [RefUpdate(b"refs/heads/%05d" % n, None, oid(n + 1)) for n in range(2_000)]
    bench.journal.commit_sync([], [Put(key, row.value)])
    bench.update(*updates)
    (entry,) = bench.since(1)
    bench.blocks.blocks[entry.changes.blocks[0]] = b"other"
    with pytest.raises(BlockCorrupt):
        list(entry.changes)


NAMES = st.sampled_from([b"refs/heads/%d" % n for n in range(8)] + [b"HEAD"])
STEPS = st.lists(
    st.dictionaries(NAMES, st.one_of(st.none(), st.integers(1, 4).map(oid)), max_size=5), max_size=8
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, replaced=st.booleans())
def test_the_log_played_again_gives_the_refs(
    steps: list[dict[bytes, ObjectId | None]], replaced: bool, workers: Workers
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change_module, "CHANGES_MAX", 2)
        patch.setattr(change_module, "LOOSE_MAX", 3)
        bench = Bench(workers)
        for step in steps:
            some = {name: new for name, new in step.items() if new or name != b"HEAD"}
            if replaced:
                refs = [Ref(name, new) for name, new in some.items() if new and name != b"HEAD"]
                bench.writer.replace_all_sync(bench.repository, refs, None)
            else:
                bench.update(*(RefUpdate(name, ANY, new) for name, new in some.items()))
        played: dict[bytes, Ref] = {}
        for expected, entry in enumerate(bench.since(0), 1):
            assert entry.sequence == expected
            names = [change.name for change in entry.changes]
            assert names == sorted(set(names))
            for change in entry.changes:
                assert played.get(change.name) == change.old != change.new
                played.pop(change.name, None)
                if change.new:
                    played[change.name] = change.new
        head = played.pop(b"HEAD", None)
        assert bench.all() == [played[name] for name in sorted(played)]
        with bench.journal.snapshot() as snapshot:
            assert bench.table.get(snapshot, bench.repository, b"HEAD") == head
