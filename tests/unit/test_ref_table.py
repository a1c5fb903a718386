"""The ref table: loose rows over a snapshot behave like one dict of refs."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgit.blocks.memory import MemoryBlocks
from shardgit.errors import (
    Conflict,
    InvalidArgument,
    InvalidRefName,
    LimitExceeded,
    RefMissing,
    Refused,
    RepositoryMissing,
)
from shardgit.journal.interface import END, Compare, Delete, Put
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.memory import MemoryJournal
from shardgit.journal.records import RepositoryRecord, ref_key, refs_head_key, repository_key
from shardgit.oid import HashKind, ObjectId, PoolId, RepositoryId
from shardgit.refs import change as change_module
from shardgit.refs.ref import Ref
from shardgit.refs.table import RefTable
from shardgit.refs.update import ANY, Old, RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.journal.interface import Journal

MAIN = b"refs/heads/main"


def oid(n: int) -> ObjectId:
    return ObjectId(n.to_bytes(20, "big"))


class Bench:
    """A repository with all that its refs need."""

    def __init__(self, journal: Journal, workers: Workers, number: int = 1) -> None:
        self.journal = journal
        self.blocks = MemoryBlocks(workers)
        self.table = RefTable(self.blocks)
        self.writer = RefWriter(self.table, journal, workers)
        self.repository = RepositoryRecord(
            RepositoryId(number), "r", PoolId(b"p" * 16), HashKind.SHA1, 0
        )
        journal.commit_sync([], [Put(repository_key(self.repository.id), self.repository.encode())])

    def update(self, *updates: RefUpdate) -> int:
        return self.writer.update_sync(self.repository, updates)

    def put(self, name: bytes, n: int, old: ObjectId | Old | None = ANY) -> int:
        return self.update(RefUpdate(name, old, oid(n)))

    def all(self, prefixes: Sequence[bytes] = (), limit: int | None = None) -> list[Ref]:
        with self.journal.snapshot() as snapshot:
            return list(self.table.list(snapshot, self.repository, prefixes=prefixes, limit=limit))

    def get(self, name: bytes) -> Ref | None:
        with self.journal.snapshot() as snapshot:
            return self.table.get(snapshot, self.repository, name)

    def resolve(self, name: bytes) -> Ref:
        with self.journal.snapshot() as snapshot:
            return self.table.resolve(snapshot, self.repository, name)

    def key(self) -> bytes:
        with self.journal.snapshot() as snapshot:
            return self.table.state_key(snapshot, self.repository)

    def counts(self) -> tuple[int, int]:
        with self.journal.snapshot() as snapshot:
            head = self.table.head(snapshot, self.repository)
            return head.count, head.loose

    def loose_rows(self) -> int:
        with self.journal.snapshot() as snapshot:
            rows = snapshot.range(ref_key(self.repository.id, b"refs/"), b"S")
            return len(list(rows))


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.close()


@pytest.fixture
def bench(workers: Workers) -> Bench:
    return Bench(MemoryJournal(), workers)


def test_a_new_repository_has_no_refs(bench: Bench) -> None:
    assert bench.all() == []
    assert bench.get(MAIN) is None
    assert bench.counts() == (0, 0)


def test_old_values_are_compared(bench: Bench) -> None:
    bench.put(MAIN, 1, None)
    for wrong in (None, oid(2)):
        with pytest.raises(Conflict):
            bench.put(MAIN, 3, wrong)
    bench.put(MAIN, 2, oid(1))
    bench.update(RefUpdate(MAIN, oid(2), None))
    assert bench.all() == []
    with pytest.raises(Conflict):
        bench.update(RefUpdate(MAIN, oid(2), None))
    bench.update(RefUpdate(MAIN, ANY, None))
    assert bench.counts() == (0, 0)


def test_updates_go_together_or_not_at_all(bench: Bench) -> None:
    bench.put(MAIN, 1)
    with pytest.raises(Conflict):
        bench.update(RefUpdate(b"refs/heads/a", None, oid(2)), RefUpdate(MAIN, oid(9), oid(2)))
    assert bench.all() == [Ref(MAIN, oid(1))]


def test_a_ref_twice_in_an_update_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidArgument):
        bench.update(RefUpdate(MAIN, ANY, oid(1)), RefUpdate(MAIN, ANY, oid(2)))


@pytest.mark.parametrize(
    "update",
    [
        RefUpdate(MAIN, ANY, HashKind.SHA1.null),
        RefUpdate(MAIN, ANY, ObjectId(bytes(32))),
        RefUpdate(MAIN, ANY, oid(1), symbolic=b"refs/heads/x"),
        RefUpdate(MAIN, ANY, None, peeled=oid(1)),
        RefUpdate(b"HEAD", ANY, None),
    ],
)
def test_what_no_ref_can_be_is_refused(bench: Bench, update: RefUpdate) -> None:
    with pytest.raises(InvalidArgument):
        bench.update(update)


@pytest.mark.parametrize("name", [b"main", b"refs/heads/a..b", b"refs/" + b"x" * 500])
def test_bad_names_are_refused(bench: Bench, name: bytes) -> None:
    with pytest.raises(InvalidRefName):
        bench.put(name, 1)
    with pytest.raises(InvalidRefName):
        bench.update(RefUpdate(b"HEAD", ANY, None, symbolic=name))
    assert bench.get(name) is None


@pytest.mark.parametrize("packed", [False, True])
def test_a_ref_and_a_folder_of_its_name_do_not_meet(bench: Bench, packed: bool) -> None:
    bench.put(b"refs/heads/a/b/c", 1)
    bench.put(b"refs/heads/x", 1)
    bench.put(b"refs/heads/a-b", 1)
    if packed:
        bench.update(*(RefUpdate(b"refs/tags/%d" % n, ANY, oid(1)) for n in range(200)))
        assert bench.loose_rows() == 0
    for name in (b"refs/heads/a", b"refs/heads/a/b", b"refs/heads/x/y", b"refs/heads/a/b/c/d/e"):
        with pytest.raises(Refused):
            bench.put(name, 2)
    with pytest.raises(Refused):
        bench.update(
            RefUpdate(b"refs/heads/n", ANY, oid(1)), RefUpdate(b"refs/heads/n/m", ANY, oid(1))
        )
    bench.put(b"refs/heads/a/b/d", 1)
    bench.update(RefUpdate(b"refs/heads/x", ANY, None), RefUpdate(b"refs/heads/x/y", None, oid(2)))
    bench.update(
        RefUpdate(b"refs/heads/a/b/c", ANY, None),
        RefUpdate(b"refs/heads/a/b/d", ANY, None),
        RefUpdate(b"refs/heads/a", None, oid(3)),
    )
    assert [ref.name for ref in bench.all((b"refs/heads/",))] == [
        b"refs/heads/a",
        b"refs/heads/a-b",
        b"refs/heads/x/y",
    ]


def test_head_is_symbolic_unborn_or_detached_and_in_no_listing(bench: Bench) -> None:
    bench.update(RefUpdate(b"HEAD", ANY, None, symbolic=MAIN))
    with pytest.raises(RefMissing):
        bench.resolve(b"HEAD")
    bench.put(MAIN, 1)
    assert bench.resolve(b"HEAD") == Ref(MAIN, oid(1))
    bench.update(RefUpdate(b"HEAD", ANY, oid(2)))
    assert bench.get(b"HEAD") == bench.resolve(b"HEAD") == Ref(b"HEAD", oid(2))
    assert bench.all() == bench.all((b"", b"HEAD")) == [Ref(MAIN, oid(1))]
    assert bench.all((b"HEAD",)) == []
    assert bench.counts() == (1, 1)


def test_circles_and_long_chains_of_symbolic_refs_are_missing(bench: Bench) -> None:
    for n in range(8):
        bench.update(RefUpdate(b"refs/s/%d" % n, ANY, None, symbolic=b"refs/s/%d" % (n + 1)))
    bench.put(b"refs/s/8", 1)
    assert bench.resolve(b"refs/s/4").target == oid(1)
    with pytest.raises(RefMissing):
        bench.resolve(b"refs/s/0")
    bench.update(RefUpdate(b"refs/s/8", ANY, None, symbolic=b"refs/s/7"))
    with pytest.raises(RefMissing):
        bench.resolve(b"refs/s/7")


def test_prefixes_are_sorted_and_give_each_ref_once(bench: Bench) -> None:
    for name in (b"refs/heads/a", b"refs/heads/ab", b"refs/notes/n", b"refs/tags/t"):
        bench.put(name, 1)
    prefixes = (b"refs/tags/", b"refs/heads/ab", b"refs/heads/", b"refs/heads/a", b"x", b"y" * 600)
    names = [ref.name for ref in bench.all(prefixes)]
    assert names == [b"refs/heads/a", b"refs/heads/ab", b"refs/tags/t"]
    assert [ref.name for ref in bench.all((b"r",), limit=2)] == names[:2]
    with bench.journal.snapshot() as snapshot:
        later = bench.table.list(
            snapshot, bench.repository, prefixes=prefixes, start_after=b"refs/heads/a", limit=1
        )
        assert [ref.name for ref in later] == [b"refs/heads/ab"]


def test_a_bulk_update_becomes_a_snapshot_and_keeps_head(bench: Bench) -> None:
    bench.update(RefUpdate(b"HEAD", ANY, None, symbolic=MAIN), RefUpdate(MAIN, ANY, oid(1)))
    bench.update(
        *(RefUpdate(b"refs/tags/%04d" % n, None, oid(n + 1), oid(n + 2)) for n in range(3_000))
    )
    assert bench.loose_rows() == 0
    assert bench.counts() == (3_001, 0)
    assert bench.get(b"refs/tags/2999") == Ref(b"refs/tags/2999", oid(3_000), None, oid(3_001))
    assert bench.resolve(b"HEAD").target == oid(1)
    bench.update(RefUpdate(b"refs/tags/0000", oid(1), None), RefUpdate(MAIN, oid(1), oid(2)))
    assert bench.loose_rows() == 2
    assert bench.counts() == (3_000, 2)
    assert bench.get(b"refs/tags/0000") is None
    assert len(bench.all()) == 3_000
    bench.put(b"refs/tags/0000", 5, None)
    assert bench.counts() == (3_001, 2)


def test_loose_rows_are_folded_before_they_are_many(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_module, "LOOSE_MAX", 20)
    for n in range(70):
        bench.put(b"refs/heads/%d" % n, n + 1)
        assert bench.loose_rows() == bench.counts()[1] <= 20
    assert len(bench.all()) == 70 == bench.counts()[0]


def test_replace_all_writes_only_what_differs(bench: Bench) -> None:
    refs = [Ref(b"refs/tags/%04d" % n, oid(n + 1)) for n in range(2_000)]
    head = Ref(b"HEAD", symbolic=MAIN)
    bench.writer.replace_all_sync(bench.repository, refs, head)
    assert bench.all() == refs
    blocks, revision = len(bench.blocks.blocks), bench.journal.revision()
    bench.writer.replace_all_sync(bench.repository, refs, head)
    assert bench.journal.revision() == revision
    changed = [*refs[1:], Ref(MAIN, oid(5))]
    bench.writer.replace_all_sync(bench.repository, changed, None)
    assert bench.all() == sorted(changed, key=lambda ref: ref.name)
    assert bench.get(b"HEAD") == head
    assert len(bench.blocks.blocks) == blocks
    bench.writer.replace_all_sync(bench.repository, [], None)
    assert bench.all() == []
    assert bench.counts() == (0, 0)


def test_replace_all_refuses_folders_that_are_refs(bench: Bench) -> None:
    with pytest.raises(Refused):
        bench.writer.replace_all_sync(
            bench.repository, [Ref(b"refs/a/b", oid(1)), Ref(b"refs/a", oid(1))], None
        )


def test_other_operations_ride_in_the_same_commit(bench: Bench) -> None:
    bench.writer.update_sync(
        bench.repository,
        [RefUpdate(MAIN, None, oid(1))],
        conditions=[Compare(b"Xother", 0)],
        operations=[Put(b"Xother", b"1")],
    )
    with pytest.raises(Conflict):  # not tried again: the refs did not change
        bench.writer.update_sync(
            bench.repository, [RefUpdate(MAIN, ANY, oid(2))], conditions=[Compare(b"Xother", 0)]
        )
    assert bench.all() == [Ref(MAIN, oid(1))]
    with pytest.raises(LimitExceeded):
        bench.writer.update_sync(
            bench.repository,
            [RefUpdate(b"refs/x/%d" % n, ANY, oid(1)) for n in range(100)],
            operations=[Put(b"X%d" % n, b"") for n in range(30)],
        )


def test_refs_of_a_deleted_repository_are_not_written(bench: Bench) -> None:
    with bench.journal.snapshot() as snapshot:
        change = bench.table.update(snapshot, bench.repository, [RefUpdate(MAIN, ANY, oid(1))])
    bench.journal.commit_sync([], [Delete(repository_key(bench.repository.id))])
    with pytest.raises(Conflict):
        bench.journal.commit_sync(change.conditions, change.operations)
    with pytest.raises(RepositoryMissing):
        bench.put(MAIN, 1)


def test_the_state_key_changes_with_every_ref_and_is_shared_by_equal_snapshots(
    bench: Bench, workers: Workers
) -> None:
    seen = [bench.key()]
    steps = [
        [RefUpdate(b"HEAD", ANY, None, symbolic=MAIN)],
        [RefUpdate(MAIN, ANY, oid(1))],
        [RefUpdate(MAIN, ANY, oid(2))],
        [RefUpdate(b"refs/tags/%d" % n, ANY, oid(1)) for n in range(200)],
        [RefUpdate(b"HEAD", ANY, oid(3))],
        [RefUpdate(b"HEAD", ANY, oid(4))],
        [RefUpdate(b"refs/tags/5", ANY, None)],
        [RefUpdate(b"refs/tags/%d" % n, ANY, oid(2)) for n in range(200)],
    ]
    for step in steps:
        bench.update(*step)
        seen.append(bench.key())
    assert len(set(seen)) == len(seen)
    fork = Bench(bench.journal, workers, number=2)
    with bench.journal.snapshot() as snapshot:
        copied = [
            (snapshot.get(key(bench.repository.id)), key(fork.repository.id))
            for key in (refs_head_key, lambda number: ref_key(number, b"HEAD"))
        ]
    bench.journal.commit_sync([], [Put(key, row.value) for row, key in copied if row])
    assert fork.key() == bench.key()
    fork.blocks.blocks = bench.blocks.blocks
    fork.put(MAIN, 9)
    assert fork.key() != bench.key()
    assert bench.get(MAIN) == Ref(MAIN, oid(2))


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
async def test_pushers_side_by_side_all_get_through(
    kind: str, tmp_path: Path, workers: Workers
) -> None:
    journal: Journal = (
        MemoryJournal() if kind == "memory" else LmdbJournal(tmp_path / "j", create=True)
    )
    bench = Bench(journal, workers)
    await asyncio.gather(
        *(
            bench.writer.update(
                bench.repository, [RefUpdate(b"refs/heads/%d" % n, None, oid(n + 1))]
            )
            for n in range(40)
        )
    )
    assert bench.counts() == (40, 40)
    outcomes = await asyncio.gather(
        *(
            bench.writer.update(
                bench.repository, [RefUpdate(b"refs/heads/0", oid(1), oid(100 + n))]
            )
            for n in range(10)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 9
    await bench.writer.replace_all(bench.repository, [Ref(MAIN, oid(1))], None)
    assert bench.all() == [Ref(MAIN, oid(1))]
    journal.close()


NAMES = st.sampled_from(
    [
        b"refs/%s/%s" % (folder, name)
        for folder in (b"heads", b"tags")
        for name in (b"a", b"b", b"a/x", b"c")
    ]
)
VALUES = st.one_of(st.none(), st.integers(1, 3).map(oid))
UPDATES = st.lists(st.builds(RefUpdate, NAMES, st.one_of(st.just(ANY), VALUES), VALUES), max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    few=st.sampled_from([0, 16]),
    batches=st.lists(st.one_of(UPDATES, st.dictionaries(NAMES, VALUES, max_size=6)), max_size=14),
)
def test_the_table_behaves_like_a_dict(
    few: int, batches: list[list[RefUpdate] | dict[bytes, ObjectId | None]], workers: Workers
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change_module, "CHANGES_MAX", 2)
        patch.setattr(change_module, "LOOSE_MAX", 3)
        patch.setattr("shardgit.refs.lookup.FEW", few)
        patch.setattr("shardgit.refs.table.FEW", few)
        bench = Bench(MemoryJournal(), workers)
        truth: dict[bytes, ObjectId] = {}
        for batch in batches:
            wanted = dict(truth)
            if isinstance(batch, dict):
                wanted = {name: value for name, value in batch.items() if value}
                names = list(batch)
                fits = True
            else:
                names = [update.name for update in batch]
                fits = all(
                    isinstance(update.old, Old) or truth.get(update.name) == update.old
                    for update in batch
                )
                for update in batch:
                    wanted.pop(update.name, None)
                    if update.new:
                        wanted[update.name] = update.new
            fits = fits and len(set(names)) == len(names)
            fits = fits and not any(a.startswith(b + b"/") for a in wanted for b in wanted)
            try:
                if isinstance(batch, dict):
                    refs = [Ref(name, value) for name, value in wanted.items()]
                    bench.writer.replace_all_sync(bench.repository, refs, None)
                else:
                    bench.update(*batch)
                assert fits
                truth = wanted
            except (Conflict, Refused, InvalidArgument):
                assert not fits
            assert bench.all() == [Ref(name, truth[name]) for name in sorted(truth)]
            assert bench.counts() == (len(truth), bench.loose_rows())
            for name in (b"refs/heads/a", b"refs/heads/a/x", b"refs/tags/c"):
                assert bench.get(name) == (Ref(name, truth[name]) if name in truth else None)


@pytest.mark.slow
def test_200_000_refs_take_part_in_updates(workers: Workers, tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True)
    bench = Bench(journal, workers)
    refs = [Ref(b"refs/pull/%06d/head" % n, oid(n + 1)) for n in range(200_000)]
    bench.writer.replace_all_sync(bench.repository, refs, Ref(b"HEAD", symbolic=MAIN))
    assert bench.counts() == (200_000, 0)
    before = len(bench.blocks.blocks)
    chance = random.Random(1)
    for n in chance.sample(range(200_000), 20):
        bench.put(b"refs/pull/%06d/head" % n, 7, oid(n + 1))
    assert len(bench.blocks.blocks) == before
    bench.update(*(RefUpdate(b"refs/heads/%d" % n, None, oid(n + 1)) for n in range(500)))
    assert bench.counts() == (200_500, 0)
    assert len(bench.all((b"refs/pull/1234",))) == 100
    with journal.snapshot() as snapshot:
        assert len(list(snapshot.range(b"\0", b"L"))) == 2
        assert len(list(snapshot.range(b"R", END))) == 1
        assert len(list(snapshot.range(b"L", b"M"))) == 22
    journal.close()
