"""Pushes at the edges of what is allowed: aliases, deletions of nothing, leftovers, names that go away."""

from __future__ import annotations

import asyncio
import errno
import gc
import random
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from reference.gits import git
from waiting import until

from shardgit.errors import MalformedPacket, StorageFull
from shardgit.faultpoints import listening
from shardgit.journal.graft_records import encode_grafts, grafts_key
from shardgit.journal.interface import Put
from shardgit.journal.uploads import uploads_range
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.objects import object_id
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.settle import settle
from shardgit.operate.verify import verify_repository
from shardgit.pack.builder import PackBuilder
from shardgit.pool.manifest import BlockRef, decode_manifest
from shardgit.pool.view import PoolView
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.refs.change import CHANGES_MAX
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service.access import trusted
from shardgit.service.configuring import Configuring
from shardgit.service.look import Look
from shardgit.service.pack_spool import PackSpool
from shardgit.service.push import GONE, Push
from shardgit.service.receive import FEW_REFS, ReceiveService
from shardgit.service.ref_updates import update_refs
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import Uploading, put_objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.errors import ShardgitError
    from shardgit.service.store import Store

COMMIT, TREE, BLOB = 1, 2, 3
THREADS = 4
ME = trusted("tester")
NOTE = LogNote("tester", "test")
MAIN = b"refs/heads/main"
NOWHERE = ObjectId(b"\x12" * 20)


def oid(kind: int, data: bytes) -> ObjectId:
    return object_id(kind, [data], len(data), HashKind.SHA1)


def tree(**entries: ObjectId) -> bytes:
    return b"".join(b"100644 " + name.encode() + b"\0" + entries[name] for name in sorted(entries))


def commit(of: ObjectId, *parents: ObjectId, text: str = "x") -> bytes:
    lines = [f"tree {of.hex()}", *(f"parent {p.hex()}" for p in parents)]
    lines += ["author A <a@b.c> 1 +0000", "committer A <a@b.c> 1 +0000", "", text]
    return "\n".join(lines).encode()


def pack(*objects: tuple[int, bytes]) -> bytes:
    builder = PackBuilder(HashKind.SHA1)
    for kind, data in objects:
        builder.add(kind, data)
    return builder.finish()


def push(store: Store, *commands: Command, data: bytes | None = None) -> list[str | None]:
    made = Push(store, "demo", PushRequest(commands), principal=ME)
    if data is not None:
        made.take(data)
    made.check()
    return [one.error for one in made.commit().results]


def set_keys(store: Store, **values: Any) -> None:
    Configuring(store).update("demo", {f"receive.{key}": value for key, value in values.items()})


def target(store: Store, name: bytes) -> ObjectId | None:
    with store.journal.snapshot() as snapshot:
        now = store.refs.get(snapshot, store.repository(snapshot, "demo"), name)
    return now.target if now else None


FIRST_TREE = tree(readme=oid(BLOB, b"hello\n"))
FIRST = commit(oid(TREE, FIRST_TREE))
TIP = oid(COMMIT, FIRST)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        opened.create_repository("demo")
        data = pack((BLOB, b"hello\n"), (TREE, FIRST_TREE), (COMMIT, FIRST))
        assert push(opened, Command(MAIN, None, TIP), data=data) == [None]
        yield opened


def test_a_deletion_that_names_no_old_id_is_a_deletion(store: Store) -> None:
    blind = Command(MAIN, None, None)
    assert push(store, blind) == ["deletion of the current branch prohibited"]
    assert push(store, Command(b"refs/heads/x", None, TIP)) == [None]
    set_keys(store, deny_deletes=True)
    assert push(store, Command(b"refs/heads/x", None, None)) == ["deletion prohibited"]
    assert target(store, b"refs/heads/x") == TIP
    assert push(store, Command(b"refs/heads/nothing", None, None)) == [None]


def test_a_symbolic_ref_is_no_way_round_the_rules_of_its_branch(store: Store) -> None:
    alias = RefUpdate(b"refs/alias/x", ANY, None, symbolic=MAIN)
    update_refs(store, "demo", [alias], atomic=True, note=NOTE, principal=ME)
    blob = oid(BLOB, b"hello\n")
    set_keys(store, deny_non_fast_forwards=True)
    assert push(store, Command(b"refs/alias/x", TIP, blob)) == ["non-fast-forward"]
    set_keys(store, deny_non_fast_forwards=False)
    assert push(store, Command(b"refs/alias/x", TIP, blob)) == ["invalid new value provided"]
    gone = Command(b"refs/alias/x", TIP, None)
    assert push(store, gone) == ["deletion of the current branch prohibited"]
    assert target(store, MAIN) == TIP
    new = commit(oid(TREE, FIRST_TREE), TIP, text="next")
    moved = Command(b"refs/alias/x", TIP, oid(COMMIT, new))
    assert push(store, moved, data=pack((COMMIT, new))) == [None]
    assert target(store, MAIN) == oid(COMMIT, new)


def test_what_only_a_refused_command_brought_is_not_kept(store: Store) -> None:
    """It may link to what is not there, and would stay broken for whoever pushes it whole later."""
    assert push(store, Command(b"refs/heads/x", None, TIP)) == [None]
    leaf = oid(BLOB, b"later\n")
    holder = tree(later=leaf)
    tip = commit(oid(TREE, holder), TIP, text="broken")
    set_keys(
        store, deny_deletes=False, protected_refs=[{"pattern": "refs/heads/p*", "create": False}]
    )
    commands = (
        Command(b"refs/heads/x", TIP, None),
        Command(b"refs/heads/p", None, oid(COMMIT, tip)),
    )
    first, second = push(store, *commands, data=pack((TREE, holder), (COMMIT, tip)))
    assert first is None
    assert second is not None
    assert second.startswith("protected by refs/heads/p*")
    look = Look(store, "demo")
    assert look.view is not None
    assert look.view.positions([oid(COMMIT, tip), oid(TREE, holder)]) == [-1, -1]
    whole = pack((BLOB, b"later\n"), (TREE, holder), (COMMIT, tip))
    assert push(store, Command(b"refs/heads/y", None, oid(COMMIT, tip)), data=whole) == [None]


ELSEWHERE = """
import pathlib, sys
from shardgit.node import open_store
from shardgit.oid import ObjectId
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.push import GONE, Push
folder, at = pathlib.Path(sys.argv[1]), ObjectId(bytes.fromhex(sys.argv[2]))
with open_store(folder / "data") as store:
    for old, new in ((None, at), (at, None)):
        command = Command(b"refs/heads/again", old, new)
        push = Push(store, "demo", PushRequest((command,)), principal=trusted("x"))
        if new:
            push.take((folder / "pack").read_bytes())
        push.check()
        assert push.commit().results[0].error is None
"""


def test_what_is_found_out_late_about_a_state_holds_nothing_of_later_ones(
    store: Store, tmp_path: Path
) -> None:
    side = commit(oid(TREE, FIRST_TREE), text="side")
    at = oid(COMMIT, side)
    made = Command(b"refs/heads/side", None, at)
    assert push(store, made, data=pack((COMMIT, side))) == [None]
    assert Look(store, "demo").positions([at])[0] >= 0
    assert push(store, Command(b"refs/heads/side", at, None)) == [None]
    late = Look(store, "demo")  # walks when it is asked, and by then it is there and gone again
    (tmp_path / "pack").write_bytes(pack((COMMIT, side)))
    words = [sys.executable, "-c", ELSEWHERE, str(tmp_path), at.hex()]
    subprocess.run(words, check=True, timeout=60)
    assert late.positions([at, TIP])[0] == -1
    assert late.positions([TIP])[0] >= 0
    assert Look(store, "demo").positions([at]) == [-1]


@pytest.mark.parametrize("size", [300, 400_000])
def test_the_manifest_that_a_push_keeps_is_the_one_that_its_row_holds(
    store: Store, size: int
) -> None:
    upload = Uploading(store, "demo")
    upload.take(pack(*((BLOB, random.Random(n).randbytes(size)) for n in range(4))))
    root = upload.root()
    recent = upload._recent
    assert recent is not None
    assert recent.root == root
    inline = [entry.ref.inline for entry in recent.manifest.segments]
    assert all(inline) if size == 300 else not any(inline)

    def read(ref: BlockRef) -> bytes:
        (data,) = store.blocks.get_many_sync([ref.id])
        assert data is not None
        return data

    assert decode_manifest(root, read=read) == recent.manifest


def test_views_that_grow_out_of_one_at_once_do_not_see_each_others_objects(store: Store) -> None:
    """A push's own view, for its hooks, grows beside the one of the push that wins."""
    view = Look(store, "demo").view
    assert view is not None
    ids, roots = [], []
    for number in range(THREADS):
        blobs = [b"%d of %d\n" % (each, number) for each in range(3 * number + 1)]
        upload = Uploading(store, "demo")
        upload.take(pack(*((BLOB, data) for data in blobs)))
        ids.append([oid(BLOB, data) for data in blobs])
        roots.append(upload.root())
    flat = [one for some in ids for one in some]
    start = threading.Barrier(THREADS)
    grown: list[PoolView] = [view] * THREADS

    def grow(number: int) -> None:
        start.wait()
        grown[number] = base.extended(1, roots[number])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            base = PoolView(store.blocks, view.hash_kind, None).extended(1, roots[0])
            threads = [threading.Thread(target=grow, args=(n,)) for n in range(1, THREADS)]
            for each in threads:
                each.start()
            start.wait()
            for each in threads:
                each.join()
            for number in range(1, THREADS):
                seen = {
                    one
                    for one, at in zip(flat, grown[number].positions(flat), strict=True)
                    if at >= 0
                }
                assert seen == {*ids[0], *ids[number]}
    finally:
        sys.setswitchinterval(before)


def test_a_push_into_a_repository_that_was_deleted_meanwhile_is_refused(store: Store) -> None:
    new = commit(oid(TREE, FIRST_TREE), TIP, text="next")
    made = Push(store, "demo", PushRequest((Command(MAIN, TIP, oid(COMMIT, new)),)), principal=ME)
    made.take(pack((COMMIT, new)))
    made.check()
    old = made.record
    repositories = Repositories(store)
    repositories.delete("demo")
    store.create_repository("demo")
    assert [one.error for one in made.commit().results] == [GONE]
    with store.journal.snapshot() as snapshot:
        now = store.refs.get(snapshot, old, MAIN)
        assert now is not None
        assert now.target == TIP
    assert Look(store, "demo").view is None


def line(text: bytes) -> bytes:
    return b"%04x" % (len(text) + 4) + text


async def answer_of(store: Store, *pieces: bytes, stateful: bool = False) -> bytes:
    async def sent() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        if stateful:
            await asyncio.Event().wait()  # the client has said all and waits for the answer

    service = ReceiveService(store, version="1")
    async with asyncio.timeout(30):
        source = service.receive("demo", sent(), principal=ME, stateful=stateful)
        return b"".join([piece async for piece in source])


def test_a_stream_that_begins_wrong_is_answered_at_once(store: Store) -> None:
    with pytest.raises(MalformedPacket):
        asyncio.run(answer_of(store, line(b"what is this?"), stateful=True))


def test_damage_that_a_push_meets_is_told_in_its_report(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=Limits(recent_embedded_max_bytes=0)) as store:
        store.create_repository("demo")
        data = pack((BLOB, b"hello\n"), (TREE, FIRST_TREE), (COMMIT, FIRST))
        assert push(store, Command(MAIN, None, TIP), data=data) == [None]
        view = Look(store, "demo").view
        assert view is not None
        store.blocks.delete_many_sync([one.entry.ref.id for one in view.segments])
        words = b"%s %s refs/heads/x\0report-status\n" % (b"0" * 40, TIP.hex().encode())
        answer = asyncio.run(answer_of(store, line(words) + b"0000", data))
    assert b"unpack block is missing" in answer
    assert b"ng refs/heads/x" in answer


def test_pushes_that_shared_a_commit_hold_no_lease_behind_their_answers(store: Store) -> None:
    """The journal's writer kept the last of a group, with its lease, until another group came: gc deleted nothing."""
    begun, go_on = threading.Event(), threading.Event()
    handed_on: list[str] = []

    def at(point: str) -> None:
        if point == "journal.before_commit" and not begun.is_set():
            begun.set()
            go_on.wait(30)
        elif point == "receive.before_commit":
            handed_on.append(point)

    async def answers() -> list[bytes]:
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(None, store.journal.commit_sync, [], [Put(b"Z", b"")])
        await asyncio.to_thread(begun.wait, 30)
        words = (
            b"%s %s refs/heads/b%d\0report-status\n" % (b"0" * 40, TIP.hex().encode(), number)
            for number in range(3)
        )
        pushes = [
            asyncio.ensure_future(answer_of(store, line(one) + b"0000", pack())) for one in words
        ]
        async with asyncio.timeout(30):
            while len(handed_on) < len(pushes):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        go_on.set()
        await first
        return await asyncio.gather(*pushes)

    with listening(at):
        told = asyncio.run(answers())
    assert all(b"ok refs/heads/b" in one for one in told)
    until(lambda: not list(store.leases.all()))


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "point", ["shard.before_put", "receive.before_commit", "journal.before_commit"]
)
def test_a_push_that_fails_holds_no_lease_behind_its_answer(
    tmp_path: Path, point: str, shards: int
) -> None:
    """Its error led to itself, and kept the push until Python looked for cycles."""

    def at(reached: str) -> None:
        if reached == point:
            raise OSError(errno.ENOSPC, "full")

    async def answer(store: Store) -> bytes | None:
        new = commit(oid(TREE, FIRST_TREE), text="new")
        words = b"%s %s refs/heads/x\0report-status\n" % (
            b"0" * 40,
            oid(COMMIT, new).hex().encode(),
        )
        try:
            data = pack((BLOB, b"hello\n"), (TREE, FIRST_TREE), (COMMIT, new))
            return await answer_of(store, line(words) + b"0000", data)
        except OSError:
            return None

    create_store(tmp_path / "data", shards=shards)
    with open_store(tmp_path / "data", limits=Limits(recent_embedded_max_bytes=0)) as store:
        store.create_repository("demo")
        gc.collect()
        gc.disable()
        try:
            with listening(at):
                told = asyncio.run(answer(store))
            assert told is None or b"ng refs/heads/x no space left" in told
            until(lambda: not list(store.leases.all()))
        finally:
            gc.enable()


def test_an_advertisement_that_reads_much_is_not_made_in_the_event_loop(store: Store) -> None:
    """A shallow history of 16,384 ends held all other clients up for 35 ms; 980 deleted refs for 5."""
    service = ReceiveService(store, version="1")

    def advertised() -> bytes:
        async def pages() -> bytes:
            return b"".join([one async for one in service.advertisement("demo", principal=ME)])

        return asyncio.run(pages())

    assert service._first_page("demo", None, most=FEW_REFS) is not None
    before = advertised()
    names = [b"refs/heads/b%d" % number for number in range(CHANGES_MAX + 1)]  # a snapshot of them
    for new in (TIP, None):
        for some in (names,) if new else (names[:50], names[50:]):
            updates = [RefUpdate(name, ANY, new) for name in some]
            update_refs(store, "demo", updates, atomic=True, note=NOTE, principal=ME)
    assert service._first_page("demo", None, most=FEW_REFS) is None
    assert advertised() == before
    Repositories(store).delete("demo")
    record = store.create_repository("demo")
    assert service._first_page("demo", None, most=FEW_REFS) is not None
    ends = encode_grafts([NOWHERE], HashKind.SHA1)
    store.journal.commit_sync([], [Put(grafts_key(record.id), ends)])
    assert service._first_page("demo", None, most=FEW_REFS) is None
    assert b"shallow " + NOWHERE.hex().encode() in advertised()


def test_a_commit_that_the_journal_does_not_take_is_told_in_the_report(store: Store) -> None:
    def at(point: str) -> None:
        if point == "receive.before_commit":
            store.journal.close()

    words = b"%s %s refs/heads/x\0report-status\n" % (b"0" * 40, TIP.hex().encode())
    with listening(at):
        answer = asyncio.run(answer_of(store, line(words) + b"0000", pack()))
    assert b"ng refs/heads/x journal is closed" in answer


def test_a_pack_that_finds_the_disk_full_is_refused(store: Store) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def filled() -> ShardgitError | None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield bytes(1 << 16)

        async with PackSpool(store, 1 << 30, HashKind.SHA1) as spool:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
            try:
                await spool.fill(b"", pieces(), to_its_end=False)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            return spool.refused

    assert isinstance(asyncio.run(filled()), StorageFull)


def test_of_many_refs_only_those_are_refused_that_lack_something(store: Store) -> None:
    objects: list[tuple[int, bytes]] = []
    commands, wanted = [], []
    for number in range(50):
        bad = number in {3, 17, 18, 49}
        parent = NOWHERE if bad else TIP
        one = commit(oid(TREE, FIRST_TREE), parent, text=f"commit {number}")
        two = commit(oid(TREE, FIRST_TREE), oid(COMMIT, one), text=f"then {number}")
        objects += [(COMMIT, one), (COMMIT, two)]
        commands.append(Command(b"refs/heads/b%d" % number, None, oid(COMMIT, two)))
        wanted.append("missing necessary objects" if bad else None)
    assert push(store, *commands, data=pack(*objects)) == wanted
    view = Look(store, "demo").view
    assert view is not None
    there = [at >= 0 for at in view.positions([oid(kind, data) for kind, data in objects])]
    assert there == [reason is None for reason in wanted for _ in range(2)]


def test_large_objects_that_are_there_are_not_compared_all_at_once(store: Store) -> None:
    blobs = [bytes(6 << 20) + b"%d" % number for number in range(24)]
    rows = {f"f{number:02}": oid(BLOB, data) for number, data in enumerate(blobs)}
    tip = commit(oid(TREE, tree(**rows)), text="large")
    data = pack(*((BLOB, one) for one in blobs), (TREE, tree(**rows)), (COMMIT, tip))
    del blobs
    assert push(store, Command(b"refs/heads/a", None, oid(COMMIT, tip)), data=data) == [None]
    tracemalloc.start()
    try:
        assert push(store, Command(b"refs/heads/b", None, oid(COMMIT, tip)), data=data) == [None]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 120 << 20


def test_uploads_that_have_expired_are_not_folded_as_well(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        store.create_repository("demo")
        for number in range(16):
            put_objects(store, "demo", [(BLOB, b"%d" % number)])
    with open_store(tmp_path / "data", limits=Limits(upload_grace_s=0.0)) as store:
        time.sleep(0.01)
        put_objects(store, "demo", [(BLOB, b"more")])
        with store.journal.snapshot() as snapshot:
            record = store.repository(snapshot, "demo")
            assert len(list(snapshot.range(*uploads_range(record.id)))) == 1


def look_at_pool(store: Store) -> PoolView:
    view = Look(store, "demo").view
    assert view is not None
    return view


def test_a_settle_of_many_large_bases_goes_by_parts(tmp_path: Path) -> None:
    """Each push leans on few bytes of the pool; what all of them lean on is more than is held at once."""
    origin = tmp_path / "origin"
    origin.mkdir()
    rand = random.Random(3)
    git(origin, "init", "-q", "-b", "main")
    for number in range(8):
        (origin / f"f{number}").write_bytes(rand.randbytes(30_000))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "first")
    limits = Limits(
        thin_bases_max_bytes=70_000,
        recents_settle=10_000,
        recents_max=10_000,
        block_target_bytes=60_000,
    )
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=limits) as store:
        store.create_repository("demo")
        pool = Look(store, "demo").record.pool
        old: ObjectId | None = None
        for number in range(9):
            if number:
                with (origin / f"f{number - 1}").open("ab") as file:
                    file.write(b"%d" % number)
                git(origin, "commit", "-qam", "more")
            new = ObjectId(bytes.fromhex(git(origin, "rev-parse", "HEAD").decode().strip()))
            revisions = f"{new.hex()}\n" + (f"^{old.hex()}\n" if old else "")
            words = ["pack-objects", "--revs", "--stdout", "-q", "--thin"]
            data = git(origin, *words, stdin=revisions.encode())
            assert push(store, Command(MAIN, old, new), data=data) == [None]
            old = new
            if number in {0, 6}:
                assert settle(store, pool)
        assert len(look_at_pool(store).recents) == 2
    with open_store(tmp_path / "data", limits=replace(limits, thin_bases_max_bytes=9_000)) as store:
        assert settle(store, pool)  # each alone leans on more
        look = Look(store, "demo")
        assert look.view is not None
        assert not look.view.recents
        assert verify_repository(store, "demo").bad == ()


def test_a_settle_without_room_for_its_pack_says_so_and_may_be_tried_again(store: Store) -> None:
    pool = Look(store, "demo").record.pool
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(StorageFull):
            settle(store, pool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(look_at_pool(store).recents) == 1
    assert settle(store, pool)
    assert verify_repository(store, "demo").bad == ()
