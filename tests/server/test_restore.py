"""One repository brought back: from the store itself or from a backup, as of any moment, under any name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from served import git, serving, shardgit, small_repository

from shardgit import clock, faultpoints
from shardgit.backup import revive
from shardgit.backup.create import create_backup
from shardgit.backup.deleted import deleted_repositories
from shardgit.backup.last import last_backup
from shardgit.backup.repository import RepositoryRestored, restore_repository
from shardgit.backup.target import Target
from shardgit.errors import (
    BackupMissing,
    LogPositionUnknown,
    Refused,
    RepositoryExists,
    RepositoryMissing,
)
from shardgit.journal.interface import Delete, DeleteRange, end_of
from shardgit.journal.records import deleted_key, log_key, refs_head_key
from shardgit.limits import Limits
from shardgit.node import create_store, open_store, restore_store
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.gc import GcOptions, gc
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.verify import verify_repository
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.configuring import Configuring
from shardgit.service.exporting import export_repository
from shardgit.service.importing import import_repository
from shardgit.service.lfs import LfsObjects
from shardgit.service.push import Push
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop


def refs_of(store: Store, name: str) -> dict[str, str]:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        refs = store.refs.list(snapshot, record)
        return {ref.name.decode(): ref.target.hex() for ref in refs if ref.target}


@dataclass
class History:
    """A store whose repository ``demo`` moves; ``then`` has (time in ms, refs) after each step."""

    store: Store
    source: Path
    target: Path
    then: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    def note(self) -> None:
        """Remember the refs of now; what comes next has a later time."""
        time.sleep(0.003)
        self.then.append((time.time_ns() // 1_000_000, refs_of(self.store, "demo")))
        time.sleep(0.003)

    def push(self, ref: str, *, delete: bool = False) -> None:
        """Push HEAD of the source to a ref, or delete the ref, as git would."""
        now = refs_of(self.store, "demo")
        old = ObjectId(bytes.fromhex(now[ref])) if ref in now else None
        head = ObjectId(bytes.fromhex(git(self.source, "rev-parse", "HEAD")))
        new = None if delete else head
        push = Push(
            self.store,
            "demo",
            PushRequest((Command(ref.encode(), old, new),)),
            principal=trusted("tester"),
        )
        if new is not None:
            push.take(packed(self.source, sorted(set(now.values()))))
        push.check()
        assert push.commit().results[0].error is None

    def commit(self, text: str) -> None:
        """Make a commit in the source."""
        (self.source / "moving.txt").write_text(text * 50)
        git(self.source, "add", ".")
        git(self.source, "commit", "--quiet", "-m", text)


def packed(source: Path, have: list[str]) -> bytes:
    import subprocess

    from served import clean_environment

    words = "HEAD\n" + "".join(f"^{oid}\n" for oid in have)
    return subprocess.run(
        ["git", "-C", str(source), "pack-objects", "--revs", "--stdout", "-q", "--thin"],
        input=words.encode(),
        env=clean_environment(),
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout


@pytest.fixture(params=["sha1", "sha256"])
def history(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[History]:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "--quiet", "--initial-branch=main", f"--object-format={request.param}")
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data", limits=Limits(recent_embedded_max_bytes=20_000)) as store:
        made = History(store, source, tmp_path / "backups")
        made.commit("first")
        import_repository(store, "demo", str(source))
        git(source, "tag", "-a", "v1", "-m", "one")
        yield made


def moved(history: History) -> None:
    """Let refs be made, moved, forced back and deleted; large pushes and settles in between."""
    history.note()
    history.commit("second")
    history.push("refs/heads/main")
    history.push("refs/heads/other")
    history.push("refs/heads/third")
    history.note()
    (history.source / "large").write_bytes(random.Random(1).randbytes(60_000))
    history.commit("third")
    history.push("refs/heads/other")
    history.note()
    with history.store.journal.snapshot() as snapshot:
        pool = history.store.repository(snapshot, "demo").pool
    settle(history.store, pool)
    history.push("refs/heads/third", delete=True)
    history.note()
    history.commit("fourth")
    history.push("refs/heads/late")
    history.push("refs/heads/other", delete=True)
    history.note()


def judge(history: History, name: str, expected: dict[str, str], tmp_path: Path) -> None:
    """Whether a repository has those refs and all objects, by our own verify and by git."""
    assert refs_of(history.store, name) == expected
    assert verify_repository(history.store, name).bad == ()
    out = tmp_path / f"{name.replace('/', '-')}-{time.time_ns()}.git"
    export_repository(history.store, name, out)
    git(out, "fsck", "--strict")
    lines = git(out, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    assert dict(line.split() for line in lines) == expected


def restored(history: History, name: str, **words: object) -> RepositoryRestored:
    return restore_repository(
        history.store,
        Target.open(str(history.target)) if history.target.exists() else None,
        name,
        control=silent_control(),
        **words,  # type: ignore[arg-type]
    )


def test_a_deleted_repository_comes_back_as_it_was_at_any_moment(
    history: History, tmp_path: Path
) -> None:
    moved(history)
    Repositories(history.store).delete("demo")
    last = history.then[-1][1]
    done = restored(history, "demo")
    assert (done.source, done.backup, done.refs) == ("store", "", len(last))
    judge(history, "demo", last, tmp_path)
    for at_ms, expected in history.then:
        Repositories(history.store).delete("demo")
        with pytest.raises(RepositoryMissing):
            Repositories(history.store).get("demo")
        # Before it was deleted: the refs of then, though it was deleted and restored since.
        restored(history, "demo")
        copy = restored(history, "demo", new_name=f"then-{at_ms}", at_ms=at_ms)
        assert copy.source == "store"
        judge(history, f"then-{at_ms}", expected, tmp_path)
    with pytest.raises(RepositoryExists):
        restored(history, "demo")
    with pytest.raises(BackupMissing):
        restored(history, "nobody")
    with pytest.raises(BackupMissing):
        restored(history, "demo", new_name="early", at_ms=1_000)


def test_a_deleted_repository_comes_back_rewound(history: History, tmp_path: Path) -> None:
    moved(history)
    at_ms, expected = history.then[2]
    Repositories(history.store).delete("demo")
    done = restored(history, "demo", new_name="team/again", at_ms=at_ms)
    assert done.source == "store"
    judge(history, "team/again", expected, tmp_path)
    with pytest.raises(RepositoryMissing):
        Repositories(history.store).get("demo")


def test_a_backup_brings_every_moment_of_its_log_back(history: History, tmp_path: Path) -> None:
    moved(history)
    create_backup(history.store, str(history.target), control=silent_control())
    lost(history.store, "demo")
    for at_ms, expected in history.then:
        done = restored(history, "demo", new_name=f"then-{at_ms}", at_ms=at_ms)
        assert done.source == "backup"
        judge(history, f"then-{at_ms}", expected, tmp_path)
    done = restored(history, "demo")
    assert done.source == "backup"
    judge(history, "demo", history.then[-1][1], tmp_path)
    # The log came along, and tells of the restore.
    with history.store.journal.snapshot() as snapshot:
        record = history.store.repository(snapshot, "demo")
        entries = list(history.store.refs.log(snapshot, record))
        assert entries[0].message.startswith("restore of demo from ")
        assert [entry.sequence for entry in entries] == list(range(len(entries), 0, -1))
        for at_ms, _ in history.then[1:]:
            assert any(entry.time_ms <= at_ms for entry in entries)
    # It lives: it is pushed to, settled, forked and moved like any other.
    history.commit("after")
    history.push("refs/heads/after")
    settle(history.store, record.pool)
    Repositories(history.store).fork("demo", "fork")
    judge(history, "fork", refs_of(history.store, "demo"), tmp_path)
    with pytest.raises(RepositoryMissing):
        restored(history, "demo", new_name="early", at_ms=history.then[0][0] - 3_600_000)
    with pytest.raises(BackupMissing):
        restored(history, "never", at_ms=int(time.time() * 1000) + 60_000)


def test_a_restore_that_died_is_no_deleted_repository_to_bring_back(history: History) -> None:
    moved(history)
    made = create_backup(history.store, str(history.target), control=silent_control())
    with history.store.journal.snapshot() as snapshot:
        last = last_backup(snapshot)
    assert last is not None
    assert (last.backup, last.taken_ms) == (made.backup, made.taken_ms)

    def die(name: str) -> None:
        if name == "revive.before_commit":
            raise _Died

    with faultpoints.listening(die), pytest.raises(_Died):
        restored(history, "demo", new_name="again", backup=made.backup)
    with history.store.journal.snapshot() as snapshot:
        assert not list(deleted_repositories(snapshot))
        assert next(snapshot.range(b"D", b"E"), None) is not None  # gc's
    done = restored(history, "demo", new_name="again", backup=made.backup)
    assert done.refs == len(history.then[-1][1])


class _Died(Exception):
    pass


def lost(store: Store, name: str) -> None:
    """Take every trace of a repository out of a store, as gc does in the end."""
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
    Repositories(store).delete(name)
    number = record.id.to_bytes(8, "big")
    store.journal.commit_sync(
        [],
        [
            Delete(deleted_key(record.id)),
            Delete(refs_head_key(record.id)),
            Delete(b"P" + record.pool),
            DeleteRange(b"L" + number, end_of(b"L" + number)),
            DeleteRange(b"R" + number, end_of(b"R" + number)),
            DeleteRange(b"S" + record.pool, end_of(b"S" + record.pool)),
            DeleteRange(b"Fr" + number, end_of(b"Fr" + number)),
            DeleteRange(b"Fo" + record.pool, end_of(b"Fo" + record.pool)),
            DeleteRange(b"U" + number, end_of(b"U" + number)),
            DeleteRange(b"W" + number, end_of(b"W" + number)),
        ],
    )
    store.blocks.delete_many_sync(
        [
            block
            for block, _ in list(store.blocks.scan_sync())
            if store.blocks.use(block, lambda view: bytes(view[16:32])) == record.pool
        ]
    )


def test_a_whole_store_is_rewound(history: History, tmp_path: Path) -> None:
    store = history.store
    Repositories(store).create("old", history_kind(history))
    Repositories(store).fork("demo", "goes")
    history.note()
    goes = refs_of(store, "goes")
    history.commit("second")
    history.push("refs/heads/main")
    history.note()
    at_ms, expected = history.then[1]
    history.commit("third")
    history.push("refs/heads/main")
    Repositories(store).create("young", history_kind(history))
    Repositories(store).delete("goes")
    create_backup(store, str(history.target), control=silent_control())
    fresh = tmp_path / "fresh"

    def die(name: str) -> None:
        if name == "restore.before_end":
            raise _Died

    with faultpoints.listening(die), pytest.raises(_Died):
        restore_store(
            Target.open(str(history.target)), fresh, at_ms=at_ms, shards=3, control=silent_control()
        )
    with pytest.raises(Refused), open_store(fresh):
        pass
    with pytest.raises(Refused):
        restore_store(
            Target.open(str(history.target)), fresh, at_ms=at_ms + 1, control=silent_control()
        )
    done = restore_store(Target.open(str(history.target)), fresh, control=silent_control())
    assert done.at_ms == at_ms
    with open_store(fresh) as copy:
        names = [one.name for one in Repositories(copy).list()]
        assert names == ["demo", "goes", "old"]
        assert refs_of(copy, "demo") == expected
        assert refs_of(copy, "goes") == goes
        assert verify_repository(copy, "demo").bad == ()


def history_kind(history: History) -> HashKind:
    with history.store.journal.snapshot() as snapshot:
        return history.store.repository(snapshot, "demo").hash_kind


def test_a_log_that_was_cut_says_so_and_a_backup_still_knows(
    history: History, tmp_path: Path
) -> None:
    moved(history)
    create_backup(history.store, str(history.target), control=silent_control())
    with history.store.journal.snapshot() as snapshot:
        record = history.store.repository(snapshot, "demo")
        last = history.store.refs.head(snapshot, record).sequence
    history.store.journal.commit_sync(
        [], [DeleteRange(log_key(record.id, 1), log_key(record.id, last))]
    )
    at_ms, expected = history.then[1]
    done = restored(history, "demo", new_name="then", at_ms=at_ms)
    assert done.source == "backup"
    judge(history, "then", expected, tmp_path)
    with pytest.raises(LogPositionUnknown):
        restore_repository(
            history.store, None, "demo", new_name="x", at_ms=at_ms, control=silent_control()
        )


def test_lfs_settings_forks_and_large_objects_come_along(tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    rand = random.Random(7)
    (source / "huge").write_bytes(rand.randbytes(3 << 20))
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "huge")
    large, small = rand.randbytes(2_500_000), b"small"
    names = [hashlib.sha256(data).digest() for data in (large, small)]
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(source))
        objects = LfsObjects(store)
        asyncio.run(objects.put("demo", names[0], len(large), pieces(large)))
        Repositories(store).fork("demo", "fork")
        asyncio.run(objects.put("fork", names[1], len(small), pieces(small)))
        Configuring(store).update("fork", {"receive.deny_deletes": True})
        parent = Repositories(store).get("demo").id
        head = refs_of(store, "fork")
        create_backup(store, str(tmp_path / "bk"), control=silent_control())
        target = Target.open(str(tmp_path / "bk"))
        done = restore_repository(
            store,
            target,
            "fork",
            new_name="back",
            backup=target.cut_ids()[0],
            control=silent_control(),
        )
        assert done.source == "backup"
        assert done.bytes > 5 << 20
        assert refs_of(store, "back") == head
        assert verify_repository(store, "back").bad == ()
        assert Repositories(store).get("back").forked_from == parent
        assert Configuring(store).get("back").settings.receive.deny_deletes
        assert asyncio.run(whole(store, "back", names[0])) == large
        assert asyncio.run(whole(store, "back", names[1])) == small
        # What came back is its own: the pools share no block.
        with store.journal.snapshot() as snapshot:
            pools = {store.repository(snapshot, name).pool for name in ("fork", "back")}
        assert len(pools) == 2


def test_a_gc_between_the_rows_of_a_restore_leaves_its_lfs_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revive, "STEPS_MAX", 1)  # a commit for each row
    data = b"an object of git-lfs"
    name = hashlib.sha256(data).digest()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(small_repository(tmp_path / "source")))
        with monkeypatch.context() as then:
            then.setattr(clock, "now_ms", lambda: 1_700_000_000_000)
            asyncio.run(LfsObjects(store).put("demo", name, len(data), pieces(data)))
        create_backup(store, str(tmp_path / "bk"), control=silent_control())
        target = Target.open(str(tmp_path / "bk"))
        dropped: list[int] = []

        def collect(point: str) -> None:
            if point == "revive.between_rows":
                done = gc(store, GcOptions(wait_s=0.0), control=silent_control())
                dropped.append(done.lfs_objects_dropped)

        with faultpoints.listening(collect):
            restore_repository(
                store,
                target,
                "demo",
                new_name="back",
                backup=target.cut_ids()[0],
                control=silent_control(),
            )
        assert dropped
        assert not sum(dropped)
        assert asyncio.run(whole(store, "back", name)) == data


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 100_000):
        yield data[at : at + 100_000]


async def whole(store: Store, name: str, oid: bytes) -> bytes:
    objects = LfsObjects(store)
    file = await objects.open(name, oid)
    return b"".join([piece async for piece in objects.read(file, 0, file.size)])


def test_ten_minutes_ago_through_a_server_under_load(tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(source))
    with serving(tmp_path / "data", "--workers", "1") as server:
        copy = tmp_path / "copy"
        git(tmp_path, "clone", "--quiet", server.url("demo"), str(copy))
        target = str(tmp_path / "bk")
        flags = ("--server", server.grpc, "--json")
        assert shardgit("backup", "create", target, *flags, cwd=tmp_path).returncode == 0
        (copy / "new").write_text("new")
        git(copy, "add", ".")
        git(copy, "commit", "--quiet", "-m", "after the backup")
        git(copy, "push", "--quiet", "origin", "HEAD:main")
        pushed = git(copy, "rev-parse", "HEAD")
        moment = f"@{int(time.time()) + 1}"
        time.sleep(1.2)
        git(copy, "push", "--quiet", "--force", "origin", "HEAD~2:main")
        assert (
            shardgit(
                "repo", "delete", "demo", "--yes", "--server", server.grpc, cwd=tmp_path
            ).returncode
            == 0
        )
        words = ("backup", "restore", target, "--repository", "demo", "--at", moment, *flags)
        done = shardgit(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["source"] == "store"
        assert git(tmp_path, "ls-remote", server.url("demo"), "main").split()[0] == pushed
        git(tmp_path, "clone", "--quiet", server.url("demo"), "again")
        git(tmp_path / "again", "fsck", "--strict")
