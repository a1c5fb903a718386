"""Quotas: what is counted, who is refused, and that no two commits count on the same room."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from gcing import AT_ONCE, MAIN, collected, commit, push, start
from served import small_repository

from shardgit import faultpoints
from shardgit.cli.quotas import size_of
from shardgit.errors import (
    Conflict,
    InvalidArgument,
    InvalidRepositoryName,
    JournalCorrupt,
    QuotaExceeded,
    QuotaMissing,
    StorageFull,
)
from shardgit.journal.interface import END, end_of
from shardgit.journal.operations import read_operation
from shardgit.journal.quota_records import (
    QuotaRecord,
    Usage,
    split_usage_key,
    usage_key,
)
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType
from shardgit.oid import RepositoryId
from shardgit.operate.gc import KIND, GcLast, GcOptions, gc
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.undeleting import undelete_repository
from shardgit.refs.log import LogNote
from shardgit.service.configuring import Configuring
from shardgit.service.importing import import_repository
from shardgit.service.lfs import LfsObjects
from shardgit.service.quotas import Quotas, words_of
from shardgit.service.repositories import Repositories
from shardgit.service.setting_keys import parse_value
from shardgit.service.uploading import put_objects
from shardgit.service.usages import counted, used

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.progress import Progress
    from shardgit.service.push import Push
    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as opened:
        opened.create_repository("team/a")
        opened.create_repository("team/b")
        yield opened


def limit(store: Store, name: str, **bounds: int) -> None:
    Configuring(store).update(name, {f"quota.{key}": value for key, value in bounds.items()})


def usages(store: Store) -> int:
    with store.journal.snapshot() as snapshot:
        return sum(1 for _ in snapshot.range(b"Q", end_of(b"Q")))


def refused(made: Push) -> str:
    """Commit a push that is over a quota; return what it tells the user."""
    (result,) = made.commit().results
    assert result.error is not None
    assert result.error.startswith("quota is used up")
    return "\n".join(made.told)


async def lfs(store: Store, name: str, data: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    digest = hashlib.sha256(data).digest()
    await LfsObjects(store).put(name, digest, len(data), pieces())


def test_nothing_is_counted_where_nobody_has_a_quota(store: Store) -> None:
    push(store, "team/a", MAIN, None, one := commit(), one)
    assert usages(store) == 0
    stats = Repositories(store).stats("team/a")
    assert stats.used.bytes_max == stats.used.bytes == 0


def test_a_push_over_the_objects_of_its_repository_leaves_nothing(store: Store) -> None:
    limit(store, "team/a", objects=6)
    push(store, "team/a", MAIN, None, one := commit(), one)
    push(store, "team/a", MAIN, one, two := commit(one), two)
    before = {block for block, _ in store.blocks.scan_sync()}
    three = commit(two, size=2 << 20)  # in blocks of its own
    told = refused(start(store, "team/a", MAIN, two, three, three))
    assert "quota of repository team/a: 6 objects of 6 objects used, 3 objects more" in told
    assert {block for block, _ in store.blocks.scan_sync()} == before
    assert used(store, "team/a").objects == 6
    limit(store, "team/a", objects=9)
    push(store, "team/a", MAIN, two, three, three)


def test_deletions_pass_though_the_quota_is_used_up(store: Store) -> None:
    push(store, "team/a", MAIN, None, one := commit(), one)
    push(store, "team/a", b"refs/heads/x", None, two := commit(one), two)
    limit(store, "team/a", objects=1)
    push(store, "team/a", b"refs/heads/x", two, None)
    push(store, "team/a", b"refs/heads/y", None, one)  # nor does a ref to what is there


def test_what_was_there_before_the_quota_counts(store: Store) -> None:
    push(store, "team/a", MAIN, None, one := commit(size=50_000), one)
    limit(store, "team/a", bytes=60_000)
    refused(start(store, "team/a", MAIN, one, two := commit(one, size=20_000), two))
    push(store, "team/a", MAIN, one, three := commit(one, size=2_000), three)
    assert 50_000 < used(store, "team/a").bytes < 60_000
    Configuring(store).update("team/a", {"quota.bytes": None})
    assert usages(store) == 0
    push(store, "team/a", MAIN, three, four := commit(three, size=20_000), four)
    limit(store, "team/a", bytes=80_000)
    assert used(store, "team/a").bytes > 72_000  # what came uncounted is counted now


def test_an_upload_and_a_commit_by_id_are_bounded_too(store: Store) -> None:
    limit(store, "team/a", objects=2)
    put_objects(store, "team/a", [(ObjectType.BLOB, b"one"), (ObjectType.BLOB, b"two")])
    with pytest.raises(QuotaExceeded) as caught:
        put_objects(store, "team/a", [(ObjectType.BLOB, b"three")])
    facts = caught.value.facts
    assert facts == {"of": "repository team/a", "used": 2, "more": 1, "allowed": 2}
    put_objects(store, "team/a", [(ObjectType.BLOB, b"one")])  # it is there


async def test_lfs_objects_count_and_are_refused(store: Store) -> None:
    limit(store, "team/a", bytes=1_000)
    await lfs(store, "team/a", b"a" * 600)
    await lfs(store, "team/a", b"a" * 600)  # again: it is there
    assert used(store, "team/a").bytes == 600
    with pytest.raises(QuotaExceeded):
        await lfs(store, "team/a", b"b" * 600)
    await lfs(store, "team/b", b"b" * 600)


async def test_an_lfs_upload_that_loses_to_many_others_is_taken_at_last(store: Store) -> None:
    limit(store, "team/a", bytes=100_000)
    made, count = [commit()], 0
    push(store, "team/a", MAIN, None, made[0], made[0])

    def hook(name: str) -> None:
        nonlocal count
        if name == "lfs.before_commit" and count < 20:
            count += 1
            made.append(commit(made[-1], size=30))
            push(store, "team/a", MAIN, made[-2], made[-1], made[-1])

    with faultpoints.listening(hook):
        await lfs(store, "team/a", b"a" * 600)
    assert count == 20
    assert used(store, "team/a").objects == 3 * 21 + 1


def test_an_import_over_the_quota_leaves_no_refs(store: Store, tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    limit(store, "team/a", objects=5)
    with pytest.raises(QuotaExceeded):
        import_repository(store, "team/a", str(source))
    assert Repositories(store).stats("team/a").refs == 0
    limit(store, "team/a", objects=500)
    done = import_repository(store, "team/a", str(source))
    assert used(store, "team/a").objects == done.objects


def writes_of(seen: list[Progress]) -> int:
    return sum(step.stage == "writing blocks" and step.done == 1 for step in seen)


def test_an_import_near_its_owners_bound_writes_once_however_often_others_push(
    store: Store, tmp_path: Path
) -> None:
    source = small_repository(tmp_path / "source")
    push(store, "team/b", MAIN, None, one := commit(), one)
    made, commits = [one], list[str]()
    seen: list[Progress] = []

    def pushed() -> None:
        made.append(commit(made[-1]))
        push(store, "team/b", MAIN, made[-2], made[-1], made[-1])

    def writing(step: Progress) -> None:
        seen.append(step)
        if writes_of(seen[-1:]):
            pushed()

    def hook(name: str) -> None:
        if name == "import.before_commit":
            commits.append(name)
            if len(commits) < 12:
                pushed()

    for _ in range(20):
        pushed()
    Quotas(store).set("team", objects_max=130)  # more than half of it is used
    with faultpoints.listening(hook):
        import_repository(store, "team/a", str(source), progress=writing)
    assert len(commits) == 12
    assert writes_of(seen) == 1
    assert used(store, "team/a").objects > 0


def test_what_an_import_wrote_meanwhile_is_counted_as_the_quota_stands_then(
    store: Store, tmp_path: Path
) -> None:
    source = small_repository(tmp_path / "source")
    commits: list[str] = []

    def writing(step: Progress) -> None:
        if step.stage == "writing blocks" and step.done == 1:
            Quotas(store).set("team", objects_max=3)

    def hook(name: str) -> None:
        commits.extend([name] if name == "import.before_commit" else [])

    with faultpoints.listening(hook), pytest.raises(QuotaExceeded):
        import_repository(store, "team/a", str(source), progress=writing)
    assert not commits
    assert Repositories(store).stats("team/a").refs == 0


def test_an_import_that_is_committed_is_told_as_done_though_its_settle_fails(
    store: Store, tmp_path: Path
) -> None:
    source = small_repository(tmp_path / "source")
    put_objects(store, "team/a", [(ObjectType.BLOB, b"one")])  # so that the import is no first run
    failed: list[str] = []

    def hook(name: str) -> None:
        if name.startswith("settle.before"):
            failed.append(name)
            raise StorageFull("no room")

    with faultpoints.listening(hook):
        done = import_repository(store, "team/a", str(source))
    assert failed
    assert Repositories(store).stats("team/a").refs == done.refs > 0


def test_an_owner_has_so_many_repositories_and_no_more(store: Store) -> None:
    quotas, repositories = Quotas(store), Repositories(store)
    assert quotas.set("team", repositories_max=3).used_repositories == 2
    repositories.create("team/c")
    repositories.create("other/c")
    with pytest.raises(QuotaExceeded, match="repositories"):
        repositories.create("team/d")
    with pytest.raises(QuotaExceeded):
        repositories.fork("other/c", "team/d")
    with pytest.raises(QuotaExceeded):
        repositories.rename("other/c", "team/d")
    repositories.delete("team/c")
    repositories.rename("other/c", "team/d")
    repositories.rename("team/d", "team/e")  # within the owner
    assert quotas.get("team").used_repositories == 3


def test_two_that_are_made_at_once_do_not_share_the_last_place(store: Store) -> None:
    Quotas(store).set("team", repositories_max=3)
    gate = Barrier(4)

    def make(number: int) -> bool:
        gate.wait()
        try:
            Repositories(store).create(f"team/n{number}")
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(make, range(4))) == 1


def test_an_owners_bytes_are_those_of_all_its_repositories(store: Store) -> None:
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    state = Quotas(store).set("team", bytes_max=50_000)
    assert 30_000 < state.used_bytes < 40_000
    told = refused(start(store, "team/b", MAIN, None, two := commit(size=30_000), two))
    assert "quota of owner team: " in told
    assert "of 48.8 KiB used" in told
    Repositories(store).delete("team/a")
    assert Quotas(store).get("team").used_bytes == 0
    push(store, "team/b", MAIN, None, two, two)
    undelete_repository(store, "team/a", note=LogNote("", "undelete"))
    assert Quotas(store).get("team").used_bytes > 60_000  # who brings it back is not refused


def test_two_pushes_to_two_repositories_do_not_share_the_last_room(store: Store) -> None:
    Quotas(store).set("team", bytes_max=50_000)
    made = [commit(size=30_000), commit(size=30_000)]
    pushes = [
        start(store, name, MAIN, None, one, one)
        for name, one in zip(("team/a", "team/b"), made, strict=True)
    ]
    first, second = (each.steps() for each in pushes)
    assert first is not None
    assert second is not None
    pushes[0].committed(store.journal.commit_sync(first.conditions, first.operations))
    with pytest.raises(Exception, match="changed"):
        store.journal.commit_sync(second.conditions, second.operations)
    pushes[1].lost()
    refused(pushes[1])


def test_pushes_to_one_repository_do_not_share_the_last_room(store: Store) -> None:
    limit(store, "team/a", bytes=50_000)
    made = [commit(size=30_000), commit(size=30_000)]
    pushes = [
        start(store, "team/a", b"refs/heads/%d" % number, None, one, one)
        for number, one in enumerate(made)
    ]
    with ThreadPoolExecutor(2) as pool:
        results = [each.results[0].error for each in pool.map(lambda one: one.commit(), pushes)]
    assert sorted(error is None for error in results) == [False, True]


def test_a_fork_counts_what_it_added(store: Store) -> None:
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    Repositories(store).fork("team/a", "team/f")
    limit(store, "team/f", bytes=20_000)
    push(store, "team/f", MAIN, one, two := commit(one, size=10_000), two)
    takes = used(store, "team/f")
    assert 10_000 < takes.bytes < 12_000
    assert takes.objects == 3
    with store.journal.snapshot() as snapshot:
        fork, source = (store.repository(snapshot, name) for name in ("team/f", "team/a"))
    assert counted(store, fork).all_objects == 3  # as gc would count it
    assert counted(store, source).all_objects == 3
    assert 10_000 < counted(store, fork).git_bytes < 12_000
    refused(start(store, "team/f", MAIN, two, three := commit(two, size=10_000), three))


async def test_a_fork_of_another_owners_repository_counts_all_of_it(store: Store) -> None:
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    await lfs(store, "team/a", b"a" * 600)
    quotas = Quotas(store)
    quotas.set("ann", bytes_max=20_000)
    with pytest.raises(QuotaExceeded):
        Repositories(store).fork("team/a", "ann/a")
    quotas.set("ann", bytes_max=50_000)
    Repositories(store).fork("team/a", "ann/a")
    state = quotas.get("ann")
    assert 30_600 < state.used_bytes < 32_000
    assert state.used_objects == 4
    push(store, "ann/a", MAIN, one, two := commit(one, size=10_000), two)
    quotas.recount("ann")
    assert quotas.get("ann").used_objects == 7
    Repositories(store).rename("ann/a", "team/f")  # where what it was forked from counts, too
    quotas.set("ted", objects_max=100)
    Repositories(store).rename("team/f", "ted/f")
    assert quotas.get("ted").used_objects == 7


async def test_who_forks_and_deletes_what_was_forked_has_no_room_for_nothing(store: Store) -> None:
    quotas = Quotas(store)
    quotas.set("team", bytes_max=50_000)
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    await lfs(store, "team/a", b"a" * 600)
    Repositories(store).fork("team/a", "team/f")
    full = quotas.get("team").used_bytes
    assert full > 30_600
    Repositories(store).delete("team/a")
    assert quotas.get("team").used_bytes == full
    refused(start(store, "team/b", MAIN, None, two := commit(size=30_000), two))
    collected(store, GcOptions(grace_s=3_600, orphan_age_s=0, wait_s=5))
    assert quotas.get("team").used_bytes == full
    collected(store, AT_ONCE)  # drops it; the fork pays from now on
    assert quotas.get("team").used_objects == 4
    assert quotas.get("team").used_bytes > 30_600
    assert usages(store) == 3  # the quota, team/f and team/b
    refused(start(store, "team/b", MAIN, None, two, two))
    Repositories(store).delete("team/f")
    assert quotas.get("team").used_bytes == 0
    push(store, "team/b", MAIN, None, two, two)


def test_a_chain_of_forks_that_are_deleted_counts_until_gc_drops_it(store: Store) -> None:
    quotas, repositories = Quotas(store), Repositories(store)
    quotas.set("team", bytes_max=100_000)
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    repositories.fork("team/a", "team/f")
    repositories.fork("team/f", "team/g")
    repositories.delete("team/f")
    repositories.delete("team/a")
    assert quotas.get("team").used_bytes > 30_000
    undelete_repository(store, "team/a", note=LogNote("", "undelete"))
    assert 30_000 < quotas.get("team").used_bytes < 40_000


def test_a_fork_that_is_made_as_its_source_is_deleted_leaves_the_count(store: Store) -> None:
    quotas = Quotas(store)
    quotas.set("team", bytes_max=50_000)
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    forked: list[str] = []

    def hook(name: str) -> None:
        if name == "repository.before_delete" and not forked:
            forked.append(name)
            Repositories(store).fork("team/a", "team/f")

    with faultpoints.listening(hook), pytest.raises(Conflict):
        Repositories(store).delete("team/a")
    Repositories(store).delete("team/a")
    assert quotas.get("team").used_bytes > 30_000


def test_a_damaged_repository_ends_neither_gc_nor_a_quota(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    source = small_repository(tmp_path / "source")
    with open_store(tmp_path / "s") as store:
        for name in ("team/a", "team/c"):
            import_repository(store, name, str(source))
        before = {block for block, _ in store.blocks.scan_sync()}
        import_repository(store, "team/b", str(source))
        mine = {block for block, _ in store.blocks.scan_sync()} - before
        store.blocks.delete_many_sync(sorted(mine))
        with store.journal.snapshot() as snapshot:
            pool = store.repository(snapshot, "team/b").pool
    with open_store(tmp_path / "s") as store:  # that has nothing of it in memory
        state = Quotas(store).set("team", bytes_max=1 << 30)
        assert state.uncounted == ("team/b",)
        assert usages(store) == 1 + 2
        done = gc(store, AT_ONCE, control=silent_control())
        assert set(done.damaged) == {pool.hex()}
        with store.journal.snapshot() as snapshot:
            assert read_operation(snapshot, KIND, GcLast).record is not None


def test_gc_counts_what_a_killed_quota_set_left_uncounted(store: Store) -> None:
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    limit(store, "team/b", objects=9)
    push(store, "team/b", MAIN, None, one, one)

    def hook(name: str) -> None:
        if name == "quota.after_set":
            raise KeyboardInterrupt

    with faultpoints.listening(hook), pytest.raises(KeyboardInterrupt):
        Quotas(store).set("team", bytes_max=50_000)
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "team/a")
        assert snapshot.get(usage_key("team", record.id)) is None
    collected(store, AT_ONCE)
    assert Quotas(store).get("team").used_bytes > 60_000


def test_gc_gives_room_back(store: Store) -> None:
    limit(store, "team/a", objects=6)
    push(store, "team/a", MAIN, None, one := commit(), one)
    push(store, "team/a", b"refs/heads/x", None, two := commit(one), two)
    push(store, "team/a", b"refs/heads/x", two, None)
    assert used(store, "team/a").objects == 6
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, "team/a").pool
    settle(store, pool)
    collected(store, AT_ONCE)
    assert used(store, "team/a").objects == 3
    push(store, "team/a", MAIN, one, three := commit(one), three)


def test_a_rename_takes_its_count_to_the_new_owner(store: Store) -> None:
    quotas = Quotas(store)
    push(store, "team/a", MAIN, None, one := commit(size=30_000), one)
    quotas.set("team", bytes_max=100_000)
    quotas.set("ann", bytes_max=10_000)
    with pytest.raises(QuotaExceeded):
        Repositories(store).rename("team/a", "ann/a")
    quotas.set("ann", bytes_max=100_000)
    Repositories(store).rename("team/a", "ann/a")
    assert quotas.get("team").used_bytes == 0
    assert quotas.get("ann").used_bytes > 30_000


def test_quotas_are_listed_changed_and_removed(store: Store) -> None:
    quotas = Quotas(store)
    quotas.set("team", bytes_max=5, repositories_max=9)
    changed = quotas.set("team", bytes_max=0)
    assert (changed.bytes, changed.objects, changed.repositories) == (0, 0, 9)
    quotas.set("ann", objects_max=7)
    assert [one.owner for one in quotas.list()] == ["ann", "team"]
    quotas.remove("team")
    with pytest.raises(QuotaMissing):
        quotas.get("team")
    with pytest.raises(QuotaMissing):
        quotas.remove("team")
    assert usages(store) == 1
    with pytest.raises(InvalidArgument):
        quotas.set("team/a", bytes_max=1)
    with pytest.raises(InvalidRepositoryName):
        quotas.set("../a", bytes_max=1)
    with pytest.raises(InvalidArgument):
        quotas.set("team", bytes_max=-1)


def test_rows_hold_what_was_put() -> None:
    quota, usage = QuotaRecord(1, 2, 3), Usage(1, 2, 3, 4)
    assert QuotaRecord.decode(quota.encode()) == quota
    assert Usage.decode(usage.encode()) == usage
    assert split_usage_key(usage_key("team", RepositoryId(7))) == ("team", 7)
    for data in (quota.encode()[:-1], b"\0" + quota.encode()[1:], b""):
        with pytest.raises(JournalCorrupt):
            QuotaRecord.decode(data)
    for data in (usage.encode()[:-1], b"\0" + usage.encode()[1:], b""):
        with pytest.raises(JournalCorrupt):
            Usage.decode(data)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("500m", 500 << 20), ("10Gi", 10 << 30), ("2TiB", 2 << 40), (" 7 kb ", 7 << 10)],
)
def test_settings_and_quotas_read_the_same_sizes(text: str, size: int) -> None:
    assert parse_value("quota.bytes", text) == size_of(text) == size


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1", "10Q", "9" * 18 + "T", "9" * 19])
def test_what_is_no_size_is_refused_by_both(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_value("quota.bytes", text)
    with pytest.raises(InvalidArgument):
        size_of(text)


def test_a_user_is_told_in_sizes() -> None:
    error = QuotaExceeded(
        "quota is used up: bytes", of="owner team", used=3 << 20, more=5 << 30, allowed=4 << 20
    )
    assert words_of(error).startswith(
        "quota of owner team: 3.0 MiB of 4.0 MiB used, 5.0 GiB more does not fit"
    )


async def test_pushes_of_an_owner_without_a_quota_do_not_compare_each_other(store: Store) -> None:
    Quotas(store).set("team", bytes_max=1 << 40)
    made = [commit(), commit()]
    pushes = [
        start(store, name, MAIN, None, one, one)
        for name, one in zip(("team/a", "team/b"), made, strict=True)
    ]
    steps = [each.steps() for each in pushes]
    outcomes = await asyncio.gather(
        *(store.journal.commit(each.conditions, each.operations) for each in steps if each)
    )
    assert len(outcomes) == 2
    with store.journal.snapshot() as snapshot:
        assert sum(1 for row in snapshot.range(b"\0", END) if row.key.startswith(b"Qu")) == 2
