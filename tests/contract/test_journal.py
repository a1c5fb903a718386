"""What every journal promises: one suite over those in memory, on LMDB and on etcd."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgit.errors import Conflict, InvalidArgument, LimitExceeded, ReadOnly, Unavailable
from shardgit.journal.bundles import MemoryBundles
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import (
    END,
    KEY_MAX_BYTES,
    OPERATIONS_MAX,
    VALUE_MAX_BYTES,
    Compare,
    CompareRange,
    Condition,
    Delete,
    DeleteRange,
    Journal,
    Operation,
    Put,
    Row,
    end_of,
)
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.memory import MemoryJournal
from shardgit.journal.mode import MODE_KEY, ModeRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from etcds import Etcds


@pytest.fixture(params=["memory", "lmdb", pytest.param("etcd", marks=pytest.mark.cluster)])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    made: Journal
    match request.param:
        case "memory":
            made = MemoryJournal()
        case "lmdb":
            made = LmdbJournal(tmp_path / "j", create=True)
        case _:
            made = on_etcd(request.getfixturevalue("etcds"), tmp_path)
    yield made
    made.close()


def on_etcd(etcds: Etcds, folder: Path) -> EtcdJournal:
    prefix = b"contract/" + os.urandom(8).hex().encode() + b"/"
    return EtcdJournal(folder, etcds.access(), MemoryBundles(), prefix=prefix)


def all_of(journal: Journal) -> list[Row]:
    with journal.snapshot() as snapshot:
        return list(snapshot.range(b"\0", END))


def test_a_new_journal_has_no_rows_and_revision_0(journal: Journal) -> None:
    assert journal.revision() == 0
    with journal.snapshot() as snapshot:
        assert snapshot.revision == 0
        assert snapshot.get(b"a") is None
        assert list(snapshot.range(b"a", b"z")) == []


def test_a_put_is_read_with_its_commits_revision(journal: Journal) -> None:
    first = journal.commit_sync([], [Put(b"a", b"1"), Put(b"b", b"")])
    second = journal.commit_sync([], [Put(b"b", b"2")])
    assert first < second == journal.revision()
    assert all_of(journal) == [Row(b"a", b"1", first), Row(b"b", b"2", second)]


def test_a_snapshot_stays_as_it_was(journal: Journal) -> None:
    first = journal.commit_sync([], [Put(b"a", b"1")])
    with journal.snapshot() as snapshot:
        journal.commit_sync([], [Put(b"a", b"2"), Put(b"b", b"2")])
        assert snapshot.get(b"a") == Row(b"a", b"1", first)
        assert snapshot.get(b"b") is None
        assert snapshot.revision == first


def test_a_snapshot_that_ended_does_not_answer(journal: Journal) -> None:
    journal.commit_sync([], [Put(b"a", b"1"), Put(b"b", b"1")])
    with journal.snapshot() as snapshot:
        rows = snapshot.range(b"a", b"z")
        next(rows)
    with pytest.raises(Unavailable):
        snapshot.get(b"a")
    with pytest.raises(Unavailable):
        next(rows)


def test_compare_wants_the_very_revision(journal: Journal) -> None:
    first = journal.commit_sync([Compare(b"a", 0)], [Put(b"a", b"1")])
    for wrong in (0, first + 1):
        with pytest.raises(Conflict):
            journal.commit_sync([Compare(b"a", wrong)], [Put(b"a", b"x"), Put(b"c", b"x")])
    with pytest.raises(Conflict):
        journal.commit_sync([Compare(b"b", first)], [Put(b"a", b"x")])
    assert all_of(journal) == [Row(b"a", b"1", first)]
    journal.commit_sync([Compare(b"a", first), Compare(b"b", 0)], [Delete(b"a")])
    assert all_of(journal) == []


def test_compare_range_sees_newer_rows_of_its_range_only(journal: Journal) -> None:
    first = journal.commit_sync([], [Put(b"b1", b""), Put(b"c", b"")])
    second = journal.commit_sync([], [Put(b"a", b""), Put(b"c", b"")])
    journal.commit_sync([CompareRange(b"b", b"c", first)], [Put(b"x", b"")])
    with pytest.raises(Conflict):
        journal.commit_sync([CompareRange(b"b", b"c", first - 1)], [Put(b"y", b"")])
    with pytest.raises(Conflict):
        journal.commit_sync([CompareRange(b"a", b"b", first)], [Put(b"y", b"")])
    journal.commit_sync([CompareRange(b"a", b"d", second)], [Put(b"z", b"")])


def test_delete_range_is_one_operation_and_half_open(journal: Journal) -> None:
    for start in range(0, 300, 100):
        journal.commit_sync([], [Put(b"k%03d" % n, b"") for n in range(start, start + 100)])
    journal.commit_sync([], [DeleteRange(b"k010", b"k290"), Put(b"k290", b"new")])
    assert [row.key for row in all_of(journal)] == [
        b"k%03d" % n for n in [*range(10), *range(290, 300)]
    ]


def test_a_range_is_lazy_limited_and_half_open(journal: Journal) -> None:
    journal.commit_sync([], [Put(b"k%02d" % n, b"%d" % n) for n in range(50)])
    with journal.snapshot() as snapshot:
        assert [row.value for row in snapshot.range(b"k10", b"k13")] == [b"10", b"11", b"12"]
        assert [row.value for row in snapshot.range(b"k10", b"z", limit=2)] == [b"10", b"11"]
        assert list(snapshot.range(b"k10", b"z", limit=0)) == []
        assert list(snapshot.range(b"k13", b"k10")) == []
        assert next(iter(snapshot.range(b"a", b"z"))).value == b"0"


def test_a_commit_that_changes_nothing_leaves_the_revision(journal: Journal) -> None:
    first = journal.commit_sync([], [Put(b"a", b"1")])
    assert journal.commit_sync([Compare(b"a", first)], []) == first
    assert journal.commit_sync([], [Delete(b"b"), DeleteRange(b"x", b"y")]) == first
    assert journal.revision() == first
    assert journal.commit_sync([], [Delete(b"a")]) > first


def test_as_many_conditions_and_operations_as_may_be_pass_and_one_more_does_not(
    journal: Journal,
) -> None:
    conditions: list[Condition] = [Compare(b"c%03d" % n, 0) for n in range(60)]
    operations: list[Operation] = [Put(b"p%03d" % n, b"") for n in range(OPERATIONS_MAX - 60)]
    journal.commit_sync(conditions, operations)
    with pytest.raises(LimitExceeded):
        journal.commit_sync([*conditions, Compare(b"x", 0)], operations)
    assert len(all_of(journal)) == OPERATIONS_MAX - 60


def test_as_many_deletions_as_may_be_pass(journal: Journal) -> None:
    keys = [b"p%03d" % number for number in range(OPERATIONS_MAX)]
    journal.commit_sync([], [Put(key, b"") for key in keys])
    journal.commit_sync([], [Delete(key) for key in keys])
    assert not all_of(journal)
    conditions: list[Condition] = [Compare(key, 0) for key in keys[60:]]
    deletions: list[Operation] = [Delete(key) for key in keys[:60]]
    journal.commit_sync(conditions, deletions)


@pytest.mark.parametrize(
    ("conditions", "operations", "error"),
    [
        ([], [Put(b"a", b""), Put(b"a", b"")], InvalidArgument),
        ([], [Put(b"a", b""), Delete(b"a")], InvalidArgument),
        ([], [DeleteRange(b"a", b"c"), Put(b"b", b"")], InvalidArgument),
        ([], [DeleteRange(b"a", b"c"), Delete(b"a")], InvalidArgument),
        ([], [DeleteRange(b"c", b"c")], InvalidArgument),
        ([CompareRange(b"c", b"b", 0)], [], InvalidArgument),
        ([], [DeleteRange(b"c", b"d" * (KEY_MAX_BYTES + 1))], InvalidArgument),
        ([], [DeleteRange(b"", b"c")], LimitExceeded),
        ([], [Put(b"", b"")], LimitExceeded),
        ([], [Put(b"\xffa", b"")], LimitExceeded),
        ([], [Delete(b"")], LimitExceeded),
        ([Compare(b"", 0)], [], LimitExceeded),
        ([Compare(b"k" * (KEY_MAX_BYTES + 1), 0)], [], LimitExceeded),
        ([], [Put(b"k" * (KEY_MAX_BYTES + 1), b"")], LimitExceeded),
        ([], [Put(b"a", bytes(VALUE_MAX_BYTES + 1))], LimitExceeded),
        ([], [Put(b"a", bytes(VALUE_MAX_BYTES)), Put(b"b", bytes(400_000))], LimitExceeded),
    ],
)
def test_what_no_journal_takes_is_refused_and_changes_nothing(
    journal: Journal,
    conditions: list[Condition],
    operations: list[Operation],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        journal.commit_sync(conditions, operations)
    assert all_of(journal) == []


def test_the_longest_key_and_value_are_taken(journal: Journal) -> None:
    journal.commit_sync([], [Put(b"k" * KEY_MAX_BYTES, bytes(VALUE_MAX_BYTES))])
    assert [len(row.value) for row in all_of(journal)] == [VALUE_MAX_BYTES]


def test_keys_a_snapshot_cannot_hold_are_missing(journal: Journal) -> None:
    journal.commit_sync([], [Put(b"a", b"")])
    with journal.snapshot() as snapshot:
        assert snapshot.get(b"") is None
        assert snapshot.get(b"k" * 600) is None
        assert [row.key for row in snapshot.range(b"", b"z" * 600)] == [b"a"]


async def test_commits_side_by_side_each_win_or_lose_for_themselves(journal: Journal) -> None:
    async def one(n: int) -> int | None:
        key = b"key%d" % (n % 10)
        try:
            return await journal.commit([Compare(key, 0)], [Put(key, b"%d" % n)])
        except Conflict:
            return None

    revisions = await asyncio.gather(*(one(n) for n in range(200)))
    won = [revision for revision in revisions if revision is not None]
    assert len(won) == 10
    assert sorted(row.revision for row in all_of(journal)) == sorted(won)


def test_threads_count_to_the_sum_by_compare_and_set(journal: Journal) -> None:
    def add() -> None:
        done = 0
        while done < 25:
            with journal.snapshot() as snapshot:
                row = snapshot.get(b"counter")
            value, revision = (int(row.value), row.revision) if row else (0, 0)
            try:
                journal.commit_sync(
                    [Compare(b"counter", revision)], [Put(b"counter", b"%d" % (value + 1))]
                )
                done += 1
            except Conflict:
                pass

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.value for row in all_of(journal)] == [b"100"]


async def test_a_cancelled_commit_is_there_whole_or_not_at_all(journal: Journal) -> None:
    tasks = [
        asyncio.create_task(journal.commit([], [Put(b"a%d" % n, b""), Put(b"b%d" % n, b"")]))
        for n in range(20)
    ]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await journal.commit([], [Put(b"z", b"")])  # behind all others
    keys = {row.key for row in all_of(journal)}
    assert all((b"a%d" % n in keys) == (b"b%d" % n in keys) for n in range(20))
    assert all(b"a%d" % n in keys for n in range(1, 20, 2))


def test_a_closed_journal_is_unavailable(journal: Journal) -> None:
    journal.close()
    journal.close()
    with pytest.raises(Unavailable):
        journal.commit_sync([], [Put(b"a", b"")])
    with pytest.raises(Unavailable):
        journal.revision()
    with pytest.raises(Unavailable), journal.snapshot():
        pass


def test_end_of_is_behind_the_prefix_and_nothing_else() -> None:
    assert end_of(b"ab") == b"ac"
    assert end_of(b"a\xff\xff") == b"b"
    assert end_of(b"") == end_of(b"\xff") == END


KEYS = st.binary(min_size=1, max_size=3).filter(lambda key: key[0] != 0xFF)
STEPS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=4)),
    st.builds(Delete, KEYS),
    st.builds(DeleteRange, KEYS, KEYS),
)
CONDITIONS = st.one_of(
    st.builds(Compare, KEYS, st.integers(0, 6)),
    st.builds(CompareRange, KEYS, KEYS, st.integers(0, 6)),
)
COMMITS = st.tuples(st.lists(CONDITIONS, max_size=2), st.lists(STEPS, max_size=6))


@settings(max_examples=60, deadline=None)
@given(commits=st.lists(COMMITS, max_size=12))
def test_lmdb_answers_as_the_journal_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    commits: list[tuple[list[Condition], list[Operation]]],
) -> None:
    memory = MemoryJournal()
    stored = LmdbJournal(tmp_path_factory.mktemp("journal"), create=True)
    try:
        for conditions, operations in commits:
            answers: list[int | str] = []
            for journal in (memory, stored):
                try:
                    answers.append(journal.commit_sync(conditions, operations))
                except (Conflict, InvalidArgument, LimitExceeded) as error:
                    answers.append(type(error).__name__)
            assert answers[0] == answers[1]
        assert all_of(memory) == all_of(stored)
        assert memory.revision() == stored.revision()
    finally:
        stored.close()


async def test_a_store_that_is_read_only_takes_no_commit_that_changes_repositories(
    journal: Journal,
) -> None:
    mode = Put(MODE_KEY, ModeRecord("moving", "ops", 1).encode())
    journal.commit_sync([], [Put(b"Hx", b"1")])
    with journal.snapshot() as snapshot:
        row = snapshot.get(b"Hx")
    assert row is not None
    journal.commit_sync([], [mode])
    for operations in ([Put(b"Hx", b"2")], [Delete(b"Hx")], [DeleteRange(b"H", b"I")]):
        with pytest.raises(ReadOnly) as caught:
            journal.commit_sync([Compare(b"Hx", row.revision)], operations)
        assert caught.value.facts == {"why": "moving"}
    with pytest.raises(ReadOnly):
        await journal.commit([], [Put(b"Oa", b""), Put(b"La", b"")])
    with pytest.raises(Conflict):  # what is open loses for its own reasons only
        journal.commit_sync([Compare(b"Hx", row.revision + 1)], [Put(b"Oa", b"")])
    journal.commit_sync([Compare(b"Hx", row.revision)], [Put(b"Oa", b"")])
    journal.commit_sync([], [Delete(MODE_KEY)])
    journal.commit_sync([Compare(b"Hx", row.revision)], [Put(b"Hx", b"2")])
