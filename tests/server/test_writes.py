"""Writes over gRPC: objects and packs by id, commits without a work tree. C git is the judge."""

from __future__ import annotations

import random
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from hooking import configure, program
from reference.serving import serving_rpc
from served import git, small_repository
from served import shardgit as command

import shardgit.aio
from shardgit.aio import File
from shardgit.errors import (
    Conflict,
    FsckRefused,
    InvalidArgument,
    JournalCorrupt,
    LimitExceeded,
    MalformedPack,
    ObjectMissing,
    PathMissing,
    Refused,
    RepositoryMissing,
    StoreFormatUnknown,
)
from shardgit.journal.uploads import (
    UploadRecord,
    UploadsHead,
    upload_key,
    uploads_head_key,
    uploads_range,
)
from shardgit.node import create_store, equip_hooks, open_store
from shardgit.objects import ObjectType, object_id
from shardgit.oid import BlockId, HashKind, ObjectId, RepositoryId
from shardgit.operate.settle import settle
from shardgit.pack.builder import PackBuilder
from shardgit.refs.update import RefUpdate
from shardgit.service.configuring import Configuring
from shardgit.service.exporting import export_repository
from shardgit.service.forks import fork
from shardgit.service.hooks import HookPolicy
from shardgit.service.importing import import_repository
from shardgit.service.reading import Reading
from shardgit.service.repositories import Repositories
from shardgit.v1 import object_pb2, object_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
BIG = "".join(f"{random.Random(number).random()}\n" for number in range(500))
AUTHOR = "A U Thor <author@example.com>"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_repository(tmp_path_factory.mktemp("writes") / "source")
    (folder / "big.txt").write_text(BIG)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "big")
    return folder


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Iterator[Store]:
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data") as opened:
        import_repository(opened, "demo", str(source))
        Repositories(opened).create("empty")
        Repositories(opened).create("big", HashKind.SHA256)
        yield opened


@pytest.fixture
async def client(store: Store) -> AsyncIterator[shardgit.aio.Client]:
    async with serving_rpc(store) as address, shardgit.aio.connect(address) as made:
        yield made


@pytest.fixture
def repo(client: shardgit.aio.Client) -> shardgit.aio.Repo:
    return client.repo("demo")


def blob_id(data: bytes, kind: HashKind = HashKind.SHA1) -> ObjectId:
    return object_id(ObjectType.BLOB, [data], len(data), kind)


def exported(store: Store, name: str, folder: Path) -> Path:
    """Return a repository as git sees it, checked by git."""
    export_repository(store, name, folder)
    git(folder, "fsck", "--strict", "--no-dangling")
    return folder


# ---- objects ----


@pytest.mark.parametrize("name", ["demo", "empty", "big"])
async def test_what_was_put_is_read(client: shardgit.aio.Client, store: Store, name: str) -> None:
    repo = client.repo(name)
    chance = random.Random(3)
    sizes = [0, 1, 70, 5_000, 999_999, 1_000_000, 1_000_001, 5 << 20, 17, 9 << 20, 3]
    objects = [("blob", chance.randbytes(size)) for size in sizes]
    objects += [("blob", b"%d" % number) for number in range(6_000)]
    before = store.journal.revision()
    ids = await repo.put_objects(objects)
    assert store.journal.revision() == before + 1  # all of them in one commit
    kind = HashKind.SHA256 if name == "big" else HashKind.SHA1
    assert ids == [blob_id(data, kind) for _, data in objects]
    found = [one async for one in repo.objects(ids)]
    assert [one.data if one else None for one in found] == [data for _, data in objects]
    facts, pieces = await repo.open(ids[2].hex())
    assert (facts.size, b"".join([piece async for piece in pieces])) == (70, objects[2][1])


async def test_an_upload_outlives_a_settle(repo: shardgit.aio.Repo, store: Store) -> None:
    ids = await repo.put_objects([("blob", b"%d" % number) for number in range(50)])
    settle(store, Reading(store, "demo").record.pool)
    assert [one.data async for one in repo.objects(ids) if one] == [b"%d" % n for n in range(50)]


async def test_an_upload_is_not_the_forks(repo: shardgit.aio.Repo, store: Store) -> None:
    """Repositories of one pool do not see each other's uploads."""
    fork(store, "demo", "fork")
    (oid,) = await repo.put_objects([("blob", b"mine alone")])
    other = repo.client.repo("fork")
    assert [one async for one in other.objects([oid])] == [None]
    with pytest.raises(ObjectMissing):
        await other.open(oid.hex())
    tree = b"100644 a\0" + oid
    with pytest.raises(Refused, match="links to what is neither"):
        await other.put_objects([("tree", tree)])
    with pytest.raises(ObjectMissing):
        await other.commit("x", message="m", author=AUTHOR, files={"a": File(id=oid)})
    pack = PackBuilder(HashKind.SHA1)
    pack.add(ObjectType.TREE, tree)
    with pytest.raises(Refused, match="links to what is neither"):
        await other.store_pack(pack.finish())
    (mine,) = await repo.put_objects([("tree", tree)])
    assert [one async for one in other.objects([mine])] == [None]
    with pytest.raises(ObjectMissing):
        await other.update_refs([RefUpdate(b"refs/tags/x", None, oid)], atomic=True)
    with pytest.raises((ObjectMissing, InvalidArgument)):
        async for _ in other.fetch_pack([oid]):
            pass
    assert await other.put_objects([("blob", b"mine alone")]) == [oid]
    assert [one.data async for one in other.objects([oid]) if one] == [b"mine alone"]


async def test_a_ref_may_name_what_was_put(
    repo: shardgit.aio.Repo, store: Store, tmp_path: Path
) -> None:
    old = await repo.commit_info("main")
    blob, tree = b"by id\n", b"100644 a\0" + blob_id(b"by id\n")
    (_, root) = await repo.put_objects([("blob", blob), ("tree", tree)])
    who = b"A U Thor <author@example.com> 1700000000 +0000"
    head = b"tree %s\nparent %s\n" % (root.hex().encode(), old.id.hex().encode())
    made = head + b"author %s\ncommitter %s\n\nby id\n" % (who, who)
    (commit,) = await repo.put_objects([("commit", made)])
    update = RefUpdate(b"refs/heads/main", old.id, commit)
    await repo.update_refs([update], atomic=True)
    folder = exported(store, "demo", tmp_path / "out.git")
    assert git(folder, "rev-parse", "main") == commit.hex()
    assert git(folder, "show", "main:a") == "by id"


async def test_a_ref_does_not_name_what_leads_to_something_lost(
    repo: shardgit.aio.Repo, store: Store
) -> None:
    """An uploaded tree names a blob that the repository has lost since, and a sibling still has."""
    side = await repo.commit("side", message="m", author=AUTHOR, files={"lost": b"lost"})
    fork(store, "demo", "fork")
    blob = blob_id(b"lost")
    (tree,) = await repo.put_objects([("tree", b"100644 lost\0" + blob)])
    await repo.update_refs([RefUpdate(b"refs/heads/side", side.id, None)], atomic=True)
    assert [one async for one in repo.objects([blob])] == [None]
    with pytest.raises(ObjectMissing, match="leads to what is not"):
        await repo.update_refs([RefUpdate(b"refs/tags/t", None, tree)], atomic=True)
    await repo.put_objects([("blob", b"lost")])
    await repo.update_refs([RefUpdate(b"refs/tags/t", None, tree)], atomic=True)


async def test_links_may_lead_to_the_repository_and_to_uploads(repo: shardgit.aio.Repo) -> None:
    (blob,) = await repo.put_objects([("blob", b"new")])
    old = (await repo.commit_info("main")).tree
    tree = b"40000 old\0" + old + b"100644 z\0" + blob
    (oid,) = await repo.put_objects([("tree", tree)])
    names = [row.path async for row in repo.tree(oid.hex())]
    assert names == [b"old", b"z"]


async def test_an_object_that_dangles_is_refused(repo: shardgit.aio.Repo) -> None:
    missing = ObjectId(b"\x01" * 20)
    with pytest.raises(Refused) as caught:
        await repo.put_objects([("blob", b"ok"), ("tree", b"100644 a\0" + missing)])
    assert caught.value.facts["oid"] == missing.hex()
    assert [one async for one in repo.objects([blob_id(b"ok")])] == [None]  # all or none


async def test_objects_are_checked(repo: shardgit.aio.Repo, store: Store) -> None:
    blob = blob_id(b"x")
    evil = [("blob", b"x"), ("tree", b"100644 .git\0" + blob)]
    with pytest.raises(FsckRefused):
        await repo.put_objects(evil)
    Configuring(store).update("demo", {"fsck.severities.hasDotgit": "ignore"})
    assert (await repo.put_objects(evil))[0] == blob
    with pytest.raises(InvalidArgument):
        await repo.put_objects([("commit", b"nonsense")])


async def test_limits_of_the_repository_count(repo: shardgit.aio.Repo, store: Store) -> None:
    Configuring(store).update("demo", {"receive.max_file_bytes": 1_000})
    with pytest.raises(LimitExceeded, match="file over the size limit"):
        await repo.put_objects([("blob", bytes(1_001))])
    Configuring(store).update(
        "demo", {"receive.max_file_bytes": None, "receive.max_push_bytes": 5_000}
    )
    with pytest.raises(LimitExceeded, match="too much at once"):
        await repo.put_objects([("blob", random.Random(1).randbytes(6_000))])


async def test_nothing_is_nothing(repo: shardgit.aio.Repo, store: Store) -> None:
    before = store.journal.revision()
    assert await repo.put_objects([]) == []
    assert store.journal.revision() == before


async def test_streams_that_break_the_rules(repo: shardgit.aio.Repo) -> None:
    request = object_pb2.PutObjectsRequest
    header = request(header=request.Header(repository="demo"))
    data = request.Data
    for parts in (
        [],
        [request(data=data())],
        [header, header],
        [header, request(data=data(types=b"\3"))],
        [header, request(data=data(types=b"\3", sizes=[1, 2]))],
        [header, request(data=data(types=b"\5", sizes=[0]))],
        [header, request(data=data(types=b"\0", sizes=[0]))],
        [header, request(data=data(types=b"\3", sizes=[2], data=b"1"))],
        [header, request(data=data(types=b"\3", sizes=[1], data=b"12"))],
        [header, request(data=data(data=b"1"))],
        [header, request(data=data(types=b"\3", sizes=[5 << 20], data=b"1"))],
    ):
        with pytest.raises(InvalidArgument):
            async for _ in repo.client.stream(
                object_pb2_grpc.ObjectServiceStub, "PutObjects", iter(parts)
            ):
                pass
    with pytest.raises(LimitExceeded):
        async for _ in repo.client.stream(
            object_pb2_grpc.ObjectServiceStub,
            "PutObjects",
            iter([header, request(data=data(types=b"\3", sizes=[1 << 40]))]),
        ):
            pass
    with pytest.raises(RepositoryMissing):
        await repo.client.repo("nobody").put_objects([("blob", b"")])


async def test_uploads_expire(
    repo: shardgit.aio.Repo, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (oid,) = await repo.put_objects([("blob", b"short-lived")])
    later_s = time.time() + store.limits.upload_grace_s + 61
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: later_s)
        patched.setattr(time, "time_ns", lambda: int(later_s * 1e9))
        assert [one async for one in repo.objects([oid])] == [None]
        await repo.put_objects([("blob", b"another")])
    assert len(rows(store)) == 1  # the row went with the next upload


def rows(store: Store) -> list[UploadRecord]:
    with store.journal.snapshot() as snapshot:
        number = store.repository(snapshot, "demo").id
        return [UploadRecord.decode(row.value) for row in snapshot.range(*uploads_range(number))]


async def test_uploads_of_a_day_are_folded(repo: shardgit.aio.Repo, store: Store) -> None:
    ids = [(await repo.put_objects([("blob", b"%d" % number)]))[0] for number in range(40)]
    assert len(rows(store)) <= 16
    assert [one.data async for one in repo.objects(ids) if one] == [b"%d" % n for n in range(40)]


async def test_many_ids_stand_in_blocks(repo: shardgit.aio.Repo, store: Store) -> None:
    ids = await repo.put_objects([("blob", b"%d" % number) for number in range(3_000)])
    (row,) = rows(store)
    assert (len(row.blocks), row.ids) == (1, b"")
    assert len([one async for one in repo.objects(ids) if one]) == 3_000


def test_rows_come_back() -> None:
    for record in (
        UploadRecord(HashKind.SHA1, 5, ids=bytes(40)),
        UploadRecord(HashKind.SHA256, 5, blocks=(BlockId(bytes(32)), BlockId(b"\1" * 32))),
    ):
        assert UploadRecord.decode(record.encode()) == record
    assert UploadsHead.decode(UploadsHead(7).encode()) == UploadsHead(7)
    head = uploads_head_key(RepositoryId(1))
    low, high = uploads_range(RepositoryId(1))
    assert head < low <= upload_key(RepositoryId(1), 1) < high < uploads_head_key(RepositoryId(2))
    for data in (b"", b"\2" * 16, UploadRecord(HashKind.SHA1, 5, ids=b"12").encode()):
        with pytest.raises((JournalCorrupt, StoreFormatUnknown)):
            UploadRecord.decode(data)
    with pytest.raises(JournalCorrupt):
        UploadsHead.decode(b"\1")


# ---- packs ----


async def test_packs_come_and_go(client: shardgit.aio.Client, source: Path, tmp_path: Path) -> None:
    pack = b"".join([piece async for piece in client.repo("demo").fetch_pack()])
    git(tmp_path, "init", "-q", "--bare", "got.git")
    index = subprocess.run(
        ["git", "index-pack", "--stdin", "--strict"],
        cwd=tmp_path / "got.git",
        input=pack,
        capture_output=True,
        check=False,
    )
    assert index.returncode == 0, index.stderr
    git(tmp_path / "got.git", "update-ref", "refs/heads/main", git(source, "rev-parse", "main"))
    git(tmp_path / "got.git", "fsck", "--strict")
    count = len(git(source, "cat-file", "--batch-all-objects", "--batch-check").splitlines())
    stored = await client.repo("empty").store_pack(pack)
    assert (stored.objects, stored.new_objects) == (count, count)
    again = await client.repo("empty").store_pack(pack)
    assert (again.objects, again.new_objects) == (count, 0)
    head = await client.repo("empty").commit_info(git(source, "rev-parse", "main"))
    assert head.message == b"big\n"


@pytest.mark.parametrize("name", ["empty", "big"])
async def test_an_empty_repository_has_an_empty_pack(
    client: shardgit.aio.Client, name: str, tmp_path: Path
) -> None:
    pack = b"".join([piece async for piece in client.repo(name).fetch_pack()])
    assert pack[:12] == b"PACK" + bytes([0, 0, 0, 2, 0, 0, 0, 0])
    kind = "sha256" if name == "big" else "sha1"
    git(tmp_path, "init", "-q", "--bare", f"--object-format={kind}", "judge.git")
    index = ["git", "-C", str(tmp_path / "judge.git"), "index-pack", "--stdin"]
    subprocess.run(index, input=pack, check=True, capture_output=True)


async def test_a_thin_pack_builds_on_the_repository(
    client: shardgit.aio.Client, source: Path, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", str(source), "work")
    work = tmp_path / "work"
    (work / "big.txt").write_text(BIG + "more\n")
    git(work, "commit", "-qam", "more")
    made = subprocess.run(
        ["git", "pack-objects", "--thin", "--revs", "--stdout", "--delta-base-offset"],
        cwd=work,
        input=b"HEAD\n^HEAD~1\n",
        capture_output=True,
        check=True,
    ).stdout
    stored = await client.repo("demo").store_pack(made)
    assert len(made) < 1_000  # a delta
    assert (stored.objects, stored.new_objects) == (3, 3)
    text = await client.repo("demo").read(git(work, "rev-parse", "HEAD"), "big.txt")
    assert text == (work / "big.txt").read_bytes()
    with pytest.raises(MalformedPack):
        await client.repo("empty").store_pack(made)
    haves = [bytes.fromhex(git(source, "rev-parse", "main"))]
    wants = [bytes.fromhex(git(source, "rev-parse", "main~1"))]
    nothing = b"".join(
        [piece async for piece in client.repo("demo").fetch_pack(wants, haves, thin=True)]
    )
    assert nothing[8:12] == bytes(4)


@pytest.mark.parametrize("pack", [b"", b"PACK", b"nope" * 10])
async def test_a_broken_pack_is_refused(repo: shardgit.aio.Repo, pack: bytes) -> None:
    with pytest.raises(MalformedPack):
        await repo.store_pack(pack)


async def test_fetching_what_is_not_reached_is_refused(repo: shardgit.aio.Repo) -> None:
    with pytest.raises((ObjectMissing, InvalidArgument)):
        async for _ in repo.fetch_pack([b"\x01" * 20]):
            pass


# ---- commits ----


async def test_a_commit_without_a_work_tree(
    repo: shardgit.aio.Repo, store: Store, source: Path, tmp_path: Path
) -> None:
    old = (await repo.ref("refs/heads/main")).target
    before = store.journal.revision()
    made = await repo.commit(
        "main",
        message="by hand",
        author=AUTHOR,
        files={"new/file.txt": b"hello\n", "README.md": None, "sub/0.txt": b"changed\n"},
        expected=old,
    )
    assert store.journal.revision() == before + 1
    assert made.old == old
    assert (await repo.ref("refs/heads/main")).target == made.id
    folder = exported(store, "demo", tmp_path / "out.git")
    assert git(folder, "rev-parse", "main") == made.id.hex()
    assert git(folder, "log", "-1", "--format=%T %an <%ae> %cn %s", "main") == (
        f"{made.tree.hex()} {AUTHOR} A U Thor by hand"
    )
    assert git(folder, "diff", "--name-status", "main~1", "main").split("\n") == [
        "D\tREADME.md",
        "A\tnew/file.txt",
        "M\tsub/0.txt",
    ]
    assert git(folder, "rev-parse", "main~1") == git(source, "rev-parse", "main")


@pytest.mark.parametrize("name", ["empty", "big"])
async def test_a_first_commit(
    client: shardgit.aio.Client, store: Store, tmp_path: Path, name: str
) -> None:
    repo = client.repo(name)
    files: dict[str | bytes, bytes | File | None] = {
        "a": b"1",
        "d/run": File(b"#!/bin/sh\n", mode=0o100755),
        b"l": File(b"a", mode=0o120000),
    }
    made = await repo.commit("main", message=b"first\n", author=AUTHOR, files=files)
    assert made.old is None
    folder = exported(store, name, tmp_path / "out.git")
    modes = [line.split()[0] for line in git(folder, "ls-tree", "-r", "main").splitlines()]
    assert modes == ["100644", "100755", "120000"]
    assert git(folder, "rev-list", "--count", "main") == "1"


async def test_a_large_file_is_uploaded_before(repo: shardgit.aio.Repo) -> None:
    data = random.Random(7).randbytes(3 << 20)
    (oid,) = await repo.put_objects([("blob", data)])
    await repo.commit("main", message="big", author=AUTHOR, files={"big": File(id=oid)})
    assert await repo.read("main", "big") == data
    await repo.commit("main", message="direct", author=AUTHOR, files={"big2": data + b"x"})
    assert await repo.read("main", "big2") == data + b"x"


async def test_a_branch_starts_where_it_is_told(repo: shardgit.aio.Repo) -> None:
    made = await repo.commit(
        "topic", message="m", author=AUTHOR, files={"a": b"1"}, base="main~1", expected=bytes(20)
    )
    (parent,) = (await repo.commit_info(made.id.hex())).parents
    assert parent == (await repo.commit_info("main~1")).id


async def test_head_is_no_branch(repo: shardgit.aio.Repo) -> None:
    with pytest.raises(InvalidArgument, match="HEAD is no branch"):
        await repo.commit("HEAD", message="x", author="A <a@b.c>", files={"a": b"b"})


async def test_a_branch_that_moved_is_a_conflict(repo: shardgit.aio.Repo) -> None:
    stale = (await repo.commit_info("main~1")).id
    for branch, expected in (("main", stale), ("main", bytes(20)), ("new", stale)):
        with pytest.raises(Conflict):
            await repo.commit(
                branch, message="m", author=AUTHOR, files={"a": b"1"}, expected=expected
            )


async def test_commits_side_by_side_all_count(repo: shardgit.aio.Repo) -> None:
    import asyncio

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(
                repo.commit("main", message="m", author=AUTHOR, files={f"f{number}": b"x"})
            )
    names = {row.path async for row in repo.tree("main")}
    assert {b"f%d" % number for number in range(8)} <= names
    assert len([one async for one in repo.log("main")]) == 4 + 8


async def test_what_cannot_be_committed(repo: shardgit.aio.Repo) -> None:
    async def attempt(files: dict[str, bytes | None], **more: str) -> None:
        words = {"branch": "main", "message": "m", "author": AUTHOR, **more}
        await repo.commit(files=files, **words)  # type: ignore[arg-type]

    for files, more, error in (
        ({"nothing": None}, {}, PathMissing),
        ({".git/hooks/x": b""}, {}, InvalidArgument),
        ({"sub": b""}, {}, InvalidArgument),
        ({"README.md/x": b""}, {}, InvalidArgument),
        ({}, {}, InvalidArgument),
        ({"a": b""}, {"author": "nobody"}, InvalidArgument),
        ({"a": b""}, {"author_zone": "UTC"}, InvalidArgument),
        ({"a": b""}, {"message": "a\0b"}, InvalidArgument),
        ({"a": b""}, {"branch": "a..b"}, Refused),
        ({"a": b""}, {"branch": "refs/tags/v1"}, InvalidArgument),
    ):
        with pytest.raises(error):
            await attempt(files, **more)  # type: ignore[arg-type]
    tree = (await repo.commit_info("main")).tree
    with pytest.raises(InvalidArgument, match="a file is a blob"):
        await repo.commit("main", message="m", author=AUTHOR, files={"t": File(id=tree)})
    empty = await repo.commit("main", message="m", author=AUTHOR, files={}, allow_empty=True)
    assert empty.tree == tree


async def test_policy_counts_for_commits_too(repo: shardgit.aio.Repo, store: Store) -> None:
    locked = [{"pattern": "refs/heads/main", "update": False, "advice": "open a change"}]
    Configuring(store).update("demo", {"receive.protected_refs": locked})
    with pytest.raises(Refused, match="open a change"):
        await repo.commit("main", message="m", author=AUTHOR, files={"a": b"1"})
    Configuring(store).update(
        "demo", {"receive.protected_refs": None, "signed_push.mode": "required"}
    )
    with pytest.raises(Refused, match="only signed pushes"):
        await repo.commit("main", message="m", author=AUTHOR, files={"a": b"1"})
    assert len([one async for one in repo.log("main")]) == 4


async def test_hooks_are_asked_of_commits(
    repo: shardgit.aio.Repo, store: Store, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    text = f"cat >>{seen}; echo $GIT_PUSH_OPTION_0 >>{seen}; test -e {seen}.yes || {{ echo not now; exit 1; }}"
    hook = program(tmp_path / "hooks", "pre", text)
    equip_hooks(store, HookPolicy(programs=tmp_path / "hooks"))
    configure(store, {"kind": "program", "event": "pre_receive", "target": hook})
    old = (await repo.ref("refs/heads/main")).target
    assert old is not None
    with pytest.raises(Refused, match="pre-receive hook declined") as caught:
        await repo.commit("main", message="m", author=AUTHOR, files={"a": b"1"}, options=["ci"])
    assert caught.value.facts["told"] == "not now"
    assert (await repo.ref("refs/heads/main")).target == old
    (tmp_path / "seen.yes").touch()
    made = await repo.commit("main", message="m", author=AUTHOR, files={"a": b"1"})
    lines = seen.read_text().splitlines()
    assert lines[1] == "ci"
    assert f"{old.hex()} {made.id.hex()} refs/heads/main" in lines


async def test_required_signatures_count_for_updates_too(
    repo: shardgit.aio.Repo, store: Store
) -> None:
    old = (await repo.commit_info("main~1")).id
    Configuring(store).update("demo", {"signed_push.mode": "required"})
    with pytest.raises(Refused, match="only signed pushes"):
        await repo.update_refs([RefUpdate(b"refs/heads/x", None, old)], atomic=True)


def test_the_same_verbs_without_async(store: Store, source: Path) -> None:
    import asyncio
    import threading

    ready, ended = threading.Event(), threading.Event()
    address = ""

    async def serve() -> None:
        nonlocal address
        async with serving_rpc(store) as address:
            ready.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        with shardgit.connect(address) as client:
            repo = client.repo("demo")
            (oid,) = repo.put_objects([("blob", b"x")])
            assert oid == blob_id(b"x")
            made = repo.commit("main", message="m", author=AUTHOR, files={"x": File(id=oid)})
            assert repo.read("main", "x") == b"x"
            haves = [bytes.fromhex(git(source, "rev-parse", "main"))]
            pack = b"".join(repo.fetch_pack([made.id], haves))
            assert pack.startswith(b"PACK")
            assert repo.store_pack(pack).new_objects == 0
    finally:
        ended.set()
        thread.join(30)


def test_the_command_stores_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    done = command("object", "put", "demo", "a", "b", cwd=tmp_path)
    assert done.stdout.split() == [blob_id(b"one").hex(), blob_id(b"two").hex()], done.stderr
    assert command("object", "get", "demo", done.stdout.split()[0], cwd=tmp_path).stdout == "one"
    tree = command("object", "put", "demo", "--type", "tree", "--json", cwd=tmp_path)
    assert '"4b825dc642cb6eb9a060e54bf8d69288fbee4904"' in tree.stdout
    assert command("object", "put", "demo", "a", "--type", "x", cwd=tmp_path).returncode == 2
    failed = command("object", "put", "demo", "a", "--type", "commit", cwd=tmp_path)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
