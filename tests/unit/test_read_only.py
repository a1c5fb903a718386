"""Read-only stores and repositories: nothing passes by any way, nor what was under way; reads go on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from gcing import AT_ONCE, MAIN, ME, commit, push, start
from served import shardgit as command
from served import small_repository

from shardgit.errors import InvalidArgument, JournalCorrupt, ReadOnly, RepositoryMissing
from shardgit.journal.interface import Delete, DeleteRange, Put
from shardgit.journal.mode import ModeRecord, fences_of
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType
from shardgit.operate.compact import compact_repository
from shardgit.operate.gc import gc
from shardgit.operate.maintenance import Maintenance, Plan
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.shrinking import compact_shards
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service.access import trusted
from shardgit.service.committing import CommitPlan, Committing
from shardgit.service.composing import FileChange
from shardgit.service.configuring import Configuring
from shardgit.service.health import Health
from shardgit.service.importing import import_repository
from shardgit.service.lfs import LfsObjects
from shardgit.service.locks import Locks
from shardgit.service.modes import set_mode, store_mode
from shardgit.service.ref_log import restore_ref
from shardgit.service.ref_updates import update_refs
from shardgit.service.repositories import Repositories
from shardgit.service.tokens import Tokens
from shardgit.service.uploading import Uploading, put_objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

NOTE = LogNote("tester", "test")
WHY = "moving house"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as opened:
        opened.create_repository("demo")
        yield opened


def close_repository(store: Store) -> None:
    Configuring(store).update("demo", {"read_only": True, "read_only_why": WHY})


def close_store(store: Store) -> None:
    set_mode(store, read_only=True, why=WHY, by="ops")


CLOSED = pytest.mark.parametrize("close", [close_repository, close_store])


async def lfs(store: Store) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"data"

    await LfsObjects(store).put("demo", hashlib.sha256(b"data").digest(), 4, pieces())


def changes(store: Store, tip: Any, source: Path) -> dict[str, Callable[[], object]]:
    """Return every way in which a repository is changed, but for pushes."""
    update = RefUpdate(b"refs/heads/new", ANY, tip.id)
    return {
        "put": lambda: put_objects(store, "demo", [(ObjectType.BLOB, b"text")]),
        "refs": lambda: update_refs(store, "demo", [update], atomic=True, note=NOTE, principal=ME),
        "restore": lambda: restore_ref(store, "demo", update, note=NOTE, principal=ME),
        "rename": lambda: Repositories(store).rename("demo", "other"),
        "delete": lambda: Repositories(store).delete("demo"),
        "import": lambda: import_repository(store, "demo", str(source), overwrite=True),
        "lock": lambda: Locks(store).lock("demo", "file", trusted("ann")),
    }


@CLOSED
async def test_every_change_is_refused_with_the_reason(
    store: Store, tmp_path: Path, close: Callable[[Store], None]
) -> None:
    source = small_repository(tmp_path / "source", 1)
    push(store, "demo", MAIN, None, one := commit(), one)
    lock = Locks(store).lock("demo", "before", trusted("ann"))
    with store.journal.snapshot() as snapshot:
        before = store.refs.state_key(snapshot, store.repository(snapshot, "demo"))
    close(store)
    for what, change in changes(store, one, source).items():
        with pytest.raises(ReadOnly) as caught:
            change()
        assert caught.value.facts["why"] == WHY, what
        assert caught.value.code == "FAILED_PRECONDITION"
    with pytest.raises(ReadOnly):
        Locks(store).unlock("demo", lock.id.hex(), trusted("ann"))
    with pytest.raises(ReadOnly):
        await lfs(store)
    plan = CommitPlan("main", b"x", b"A <a@b.c>", {b"f": FileChange(b"x")})
    with pytest.raises(ReadOnly):
        await Committing(store, "demo", ME).commit(plan)
    (result,) = start(store, "demo", MAIN, one, two := commit(one), two).commit().results
    assert result.error is not None
    assert result.error.endswith(f"is read-only: {WHY}")
    with store.journal.snapshot() as snapshot:
        assert store.refs.state_key(snapshot, store.repository(snapshot, "demo")) == before


@CLOSED
def test_what_was_under_way_does_not_pass(store: Store, close: Callable[[Store], None]) -> None:
    push(store, "demo", MAIN, None, one := commit(), one)
    under_way = start(store, "demo", MAIN, one, two := commit(one), two)
    steps = under_way.steps()
    upload = Uploading(store, "demo")
    upload.take(commit().pack)
    close(store)
    assert steps is not None
    with pytest.raises(Exception, match=r"changed|read-only"):
        store.journal.commit_sync(steps.conditions, steps.operations)
    under_way.lost()
    (result,) = under_way.commit().results
    assert result.error is not None
    assert result.error.endswith(f"is read-only: {WHY}")
    with pytest.raises(ReadOnly):
        upload.upload()


def test_a_fork_of_a_read_only_repository_takes_changes(store: Store) -> None:
    push(store, "demo", MAIN, None, one := commit(), one)
    close_repository(store)
    Repositories(store).fork("demo", "copy")
    push(store, "copy", MAIN, one, two := commit(one), two)
    assert Repositories(store).stats("demo").read_only.endswith(WHY)
    assert not Repositories(store).stats("copy").read_only


def test_settings_open_a_repository_again(store: Store) -> None:
    close_repository(store)
    Configuring(store).update("demo", {"read_only": None})
    push(store, "demo", MAIN, None, one := commit(), one)


def test_a_read_only_store_makes_no_repositories_and_still_takes_settings_and_tokens(
    store: Store,
) -> None:
    close_store(store)
    repositories = Repositories(store)
    with pytest.raises(ReadOnly):
        repositories.create("other")
    with pytest.raises(ReadOnly):
        repositories.fork("demo", "other")
    Configuring(store).update("demo", {"receive.deny_deletes": True})
    Tokens(store.journal).create("ann", trusted("ann").rights)
    mode = store_mode(store)
    assert (mode.read_only, mode.why, mode.by) == (True, WHY, "ops")
    set_mode(store, read_only=False)
    set_mode(store, read_only=False)
    repositories.create("other")
    with pytest.raises(RepositoryMissing):
        repositories.get("nobody")


def test_another_process_sees_the_mode_at_its_next_commit(store: Store, tmp_path: Path) -> None:
    push(store, "demo", MAIN, None, one := commit(), one)
    words = ("store", "read-only", "on", "--reason", WHY, "--data", "s")
    assert command(*words, cwd=tmp_path).returncode == 0
    (result,) = start(store, "demo", MAIN, one, two := commit(one), two).commit().results
    assert result.error == f"store is read-only: {WHY}"


def test_a_read_only_store_is_not_settled(store: Store) -> None:
    push(store, "demo", MAIN, None, one := commit(), one)
    close_store(store)
    with store.journal.snapshot() as snapshot:
        revision, pool = snapshot.revision, store.repository(snapshot, "demo").pool
    with pytest.raises(ReadOnly):
        settle(
            store,
            pool,
        )
    Maintenance(store, Plan(settle_age_s=0, gc_interval_s=0)).round()
    assert store.journal.revision() == revision
    set_mode(store, read_only=False)
    Maintenance(store, Plan(settle_age_s=0, gc_interval_s=0)).round()
    assert store.journal.revision() > revision


def test_a_read_only_store_is_neither_collected_nor_compacted_by_hand(
    store: Store, tmp_path: Path
) -> None:
    import_repository(store, "demo", str(small_repository(tmp_path / "source")))
    Repositories(store).delete("demo")
    store.create_repository("other")
    close_store(store)
    with store.journal.snapshot() as snapshot:
        revision = snapshot.revision
    blocks = {block for block, _ in store.blocks.scan_sync()}
    files = sorted(store.scratch.parent.rglob("*.mdb"))
    inodes = [(path, path.stat().st_ino) for path in files]
    for work in (
        lambda control: gc(store, AT_ONCE, control=control),
        lambda control: compact_shards(store, force=True, control=control),
        lambda control: compact_repository(store, "other", control=control, full=True),
    ):
        with pytest.raises(ReadOnly):
            work(silent_control())
    assert store.journal.revision() == revision
    assert {block for block, _ in store.blocks.scan_sync()} == blocks
    assert [(path, path.stat().st_ino) for path in files] == inodes
    assert gc(store, replace(AT_ONCE, dry_run=True), control=silent_control()).dry_run
    set_mode(store, read_only=False)
    assert gc(store, AT_ONCE, control=silent_control()).blocks_deleted


def test_health_warns_of_a_read_only_store(store: Store) -> None:
    health = Health(store)
    health.look()
    assert "store" not in health.warnings
    close_store(store)
    health.look()
    assert health.warnings["store"] == f"it is read-only: {WHY}"
    assert not health.problems


def test_only_what_repositories_hold_is_fenced() -> None:
    assert fences_of([Put(b"Hx", b"")])
    assert fences_of([Put(b"Tx", b""), Delete(b"Nx")])
    assert fences_of([DeleteRange(b"La", b"Lb")])
    assert not fences_of([Put(b"Ox", b""), DeleteRange(b"Qa", b"Qb")])
    assert not fences_of([])


def test_where_no_reason_was_given_none_is_shown_as_empty(store: Store) -> None:
    set_mode(store, read_only=True)
    with pytest.raises(ReadOnly, match="nobody said why") as caught:
        Repositories(store).create("other")
    assert "why=)" not in str(caught.value)
    with pytest.raises(ReadOnly, match="nobody said why"):
        Repositories(store).delete("demo")


def test_a_mode_that_cannot_be_is_refused(store: Store) -> None:
    for why in ("x" * 1_001, "a\nb"):
        with pytest.raises(InvalidArgument):
            set_mode(store, read_only=True, why=why)
    for data in (b"", b"\0{}", b"\x01{", b"\x01[]"):
        with pytest.raises(JournalCorrupt):
            ModeRecord.decode(data)
