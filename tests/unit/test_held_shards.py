"""Shards that are read-only: their files do not change, whatever happens to the store; all is read; nothing is lost."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from gcing import AT_ONCE, MAIN, commit, push
from hypothesis import given
from hypothesis import strategies as st
from moving import full_store, opened, part, parts, placed
from served import shardgit as command
from served import small_repository

from shardgit import faultpoints
from shardgit.blocks import block as births
from shardgit.blocks.block import (
    BlockKind,
    keep_off,
    named,
    new_header,
    parse_header,
    partition_of,
    verify_block,
)
from shardgit.errors import (
    InvalidArgument,
    JournalCorrupt,
    ReadOnly,
    Refused,
    ShardMissing,
    Stopped,
)
from shardgit.journal.held import HELD_KEY, HeldShard, decode_held, encode_held
from shardgit.journal.interface import Put
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType
from shardgit.oid import HashKind, PoolId
from shardgit.operate import holding
from shardgit.operate.compact import compact_repository
from shardgit.operate.gc import gc
from shardgit.operate.holding import set_shard_mode
from shardgit.operate.membership import add_shard, remove_shard, set_weight
from shardgit.operate.operation import running, silent_control
from shardgit.operate.rebalance import rebalance
from shardgit.operate.repair import repair_store
from shardgit.operate.settle import settle
from shardgit.operate.shrinking import compact_shards
from shardgit.operate.verifying import verify_store
from shardgit.ring.ring import PARTITIONS
from shardgit.service.health import Health
from shardgit.service.importing import import_repository
from shardgit.service.lfs import LfsObjects
from shardgit.service.reading import Reading
from shardgit.service.repositories import Repositories
from shardgit.service.shards import list_shards
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from shardgit.oid import BlockId
    from shardgit.service.store import Store

CALM = silent_control()
POOL = PoolId(bytes(16))
WHY = "its disk is copied"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "LOOK_S", 0.01)
    monkeypatch.setattr(holding, "NEWS_S", 0.0)
    monkeypatch.setattr(holding, "WAIT_MAX_S", 30.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "s", shards=3)
    with open_store(tmp_path / "s") as made:
        made.create_repository("demo")
        yield made


def hold(store: Store, number: int = 1, *, read_only: bool = True) -> None:
    why = WHY if read_only else ""
    set_shard_mode(store, number, read_only=read_only, why=why, by="ops", control=CALM)


def written(store: Store, number: int = 1) -> bytes:
    """Return a digest of the bytes of a shard's files, but for LMDB's table of readers."""
    digest = hashlib.sha256()
    for file in sorted(store.routed.shards[number].folder.rglob("*")):
        if file.is_file() and file.name != "lock.mdb":
            digest.update(file.name.encode() + file.read_bytes())
    return digest.digest()


def in_shard(store: Store, number: int, seed: int = 9) -> tuple[BlockId, bytes]:
    """Return a block that was born before, and belongs there."""
    chance = random.Random(seed)
    while True:
        block, data = part(chance, 400)
        if store.routed.ring.shards_of(partition_of(block)) == (number,):
            return block, data


# ---- where blocks are born ----


@given(st.binary(max_size=100), st.integers(1, 255))
def test_blocks_are_born_off_the_partitions_that_are_kept(payload: bytes, every: int) -> None:
    free = random.Random(every).sample(range(PARTITIONS), PARTITIONS // 8)
    kept = bytearray(b"\1" * PARTITIONS)
    for at in free:
        kept[at] = 0
    owner = object()
    born = new_header(BlockKind.PART, HashKind.SHA1, POOL, 64 + len(payload)) + payload
    keep_off(owner, bytes(kept))
    try:
        block, data = named(born)
    finally:
        keep_off(owner, None)
    assert not kept[partition_of(block)]
    verify_block(block, data)
    assert data[64:] == payload
    before, after = parse_header(born), parse_header(data)
    assert (before.kind, before.pool, before.created_ms) == (
        after.kind,
        after.pool,
        after.created_ms,
    )
    assert named(born) == (named(born)[0], born)


def test_where_all_is_kept_off_a_block_is_born_all_the_same() -> None:
    """Two stores in a process may keep off everything between them: the put tells, not a birth without end."""
    born = new_header(BlockKind.PART, HashKind.SHA1, POOL, 64)
    even, odd = (bytes(n % 2 == at for n in range(PARTITIONS)) for at in (0, 1))
    owners = {object(): even, object(): odd}
    for owner, kept in owners.items():
        keep_off(owner, kept)
    try:
        verify_block(*named(born))
    finally:
        for owner in owners:
            keep_off(owner, None)


def test_a_store_that_is_closed_keeps_nothing_off(tmp_path: Path) -> None:
    create_store(tmp_path / "s", shards=3)
    for _ in range(2):  # held before it is opened, too
        with open_store(tmp_path / "s") as store:
            hold(store)
            assert id(store.routed) in births._kept_off
            assert store.routed.held.shards == {1}
        assert births._kept_off == {}


# ---- all that changes a store ----


async def lfs(store: Store, data: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    await LfsObjects(store).put("demo", hashlib.sha256(data).digest(), len(data), pieces())


async def work(store: Store, tmp_path: Path, turn: int) -> None:
    """Change the store in every way that puts or deletes blocks."""
    source = small_repository(tmp_path / f"source-{turn}", 3)
    import_repository(store, f"imported-{turn}", str(source))
    tip = commit(size=40_000)
    push(store, "demo", MAIN + b"%d" % turn, None, tip, tip)
    for _ in range(6):
        tip, before = commit(tip, size=40_000), tip
        push(store, "demo", MAIN + b"%d" % turn, before, tip, tip)
    put_objects(store, "demo", [(ObjectType.BLOB, random.randbytes(70_000))])
    await lfs(store, random.randbytes(300_000))
    Repositories(store).fork("demo", f"fork-{turn}")
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, "demo").pool
    settle(store, pool)
    compact_repository(store, "demo", full=True, control=CALM)
    Repositories(store).delete(f"imported-{turn}")
    gc(store, AT_ONCE, control=CALM)
    compact_shards(store, control=CALM)


async def test_nothing_is_written_to_a_shard_that_is_read_only(
    store: Store, tmp_path: Path
) -> None:
    await work(store, tmp_path, 0)
    here, elsewhere = in_shard(store, 1), in_shard(store, 0)  # nothing will ever name them
    store.blocks.put_many_sync([here, elsewhere])
    before = placed(store)
    hold(store)
    frozen = written(store)
    await work(store, tmp_path, 1)
    assert written(store) == frozen
    during = placed(store)
    assert during[1] == before[1]
    assert (during[0] | during[2]) - before[0] - before[2]
    assert elsewhere[0] not in during[0]
    told = gc(store, AT_ONCE, control=CALM)
    assert (told.blocks_deleted, told.bytes_freed) == (0, 0)
    assert told.blocks_waiting > 0
    assert told.waiting_for == ("shard 1, read-only",)
    assert verify_store(store.scratch.parent, control=CALM).counts == {}
    hold(store, read_only=False)
    await work(store, tmp_path, 2)
    gc(store, AT_ONCE, control=CALM)
    assert here[0] not in placed(store)[1]
    late = in_shard(store, 1, seed=3)
    store.blocks.put_many_sync([late])
    assert late[0] in placed(store)[1]
    assert verify_store(store.scratch.parent, control=CALM).counts == {}


def test_what_was_born_before_is_refused_where_it_would_lie_in_a_closed_shard(
    tmp_path: Path,
) -> None:
    blocks = parts(60)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        hold(store)
        chance = random.Random(9)
        taken = refused = 0
        for _ in range(60):
            block, data = part(chance, 500)
            try:
                store.blocks.put_many_sync([(block, data)])
                taken += 1
            except ReadOnly as error:
                refused += 1
                assert error.facts == {"shard": 1, "why": WHY}
                assert store.routed.ring.shards_of(partition_of(block)) == (1,)
            else:
                assert store.blocks.get_many_sync([block]) == [data]
        assert taken > 10
        assert refused > 5
        store.blocks.put_many_sync(list(blocks.items()))  # these are there
        store.blocks.delete_many_sync(list(blocks))
        left = {block for block in blocks if store.blocks.has_many_sync([block])[0]}
        assert left == set(blocks) & placed(store)[1]
        for block in left:
            assert store.blocks.get_many_sync([block]) == [blocks[block]]


def test_a_copy_that_is_damaged_is_not_put_right_in_a_shard_that_is_read_only(
    tmp_path: Path,
) -> None:
    blocks = parts(40)
    folder = full_store(tmp_path / "s", blocks, replicas=2)
    with opened(folder) as store:
        lost = sorted(placed(store)[1])[:5]
        store.routed.shards[1].delete_many_sync(lost)
        hold(store)
        frozen = written(store)
        for block in lost:
            assert store.blocks.get_many_sync([block]) == [blocks[block]]
        store.workers.submit(int).result()
        store.workers._behind.submit(int).result()
        assert written(store) == frozen


# ---- what waits ----


def test_what_writes_to_shards_by_number_waits(tmp_path: Path) -> None:
    with opened(full_store(tmp_path / "s", parts(20))) as store:
        hold(store, 2)
        for job in (
            lambda: rebalance(store, control=CALM),
            lambda: set_weight(store, 0, 2.0),
            lambda: add_shard(store),
            lambda: remove_shard(store, 2),
            lambda: repair_store(store, control=CALM),
            lambda: compact_shards(store, [2], force=True, control=CALM),
        ):
            with pytest.raises(ReadOnly, match="shard is read-only"):
                job()
        made = compact_shards(store, force=True, control=CALM)
        assert [one.id for one in made.shards] == [0, 1]
        repair_store(store, control=CALM, dry_run=True)
        hold(store, 2, read_only=False)
        repair_store(store, control=CALM)
        set_weight(store, 0, 2.0)


def test_who_holds_what(store: Store) -> None:
    with pytest.raises(ShardMissing):
        hold(store, 7)
    with pytest.raises(InvalidArgument):
        set_shard_mode(store, 1, read_only=True, why="a\nb", control=CALM)
    for read_only in (True, False):
        with pytest.raises(ShardMissing):
            hold(store, 9, read_only=read_only)
    hold(store, 0)
    hold(store, 2)
    with pytest.raises(Refused, match="too few partitions"):
        hold(store, 1)
    hold(store, 2)  # again
    assert {one.id: one.state for one in list_shards(store)} == {
        0: "read-only",
        1: "active",
        2: "read-only",
    }
    health = Health(store)
    health.look()
    assert health.warnings == {f"shard {n}": f"it is read-only: {WHY}" for n in (0, 2)}
    assert not health.problems
    put_objects(store, "demo", [(ObjectType.BLOB, b"x" * 70_000)])
    for number in (0, 2):
        hold(store, number, read_only=False)
    hold(store, 2, read_only=False)
    assert {one.state for one in list_shards(store)} == {"active"}
    with store.journal.snapshot() as snapshot:
        assert snapshot.get(HELD_KEY) is None


def test_one_shard_alone_stays_open(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as store, pytest.raises(Refused, match="store read-only on"):
        hold(store, 0)


def started(job: Callable[[], object]) -> Future[object]:
    """Run a job in a thread of its own."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def stays(future: Future[object]) -> bool:
    """Say whether a job has not ended in a while."""
    with suppress(TimeoutError):
        future.exception(timeout=0.3)
    return not future.done()


def test_it_is_closed_once_all_have_ended_who_began_before(store: Store) -> None:
    lease = store.lease()
    held = started(lambda: hold(store))
    assert stays(held)
    assert store.routed.held.closed == set()
    assert [one.state for one in list_shards(store)] == ["active", "closing", "active"]
    block, data = in_shard(store, 1)
    store.blocks.put_many_sync([(block, data)])  # born before
    with store.lease():  # began behind
        lease.end()
        held.result(20)
    assert store.routed.held.closed == {1}
    assert store.blocks.get_many_sync([block]) == [data]


def test_who_takes_too_long_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "WAIT_MAX_S", 0.1)
    with store.lease():
        hold(store)
        with pytest.raises(ReadOnly):
            store.blocks.put_many_sync([in_shard(store, 1)])


def test_a_write_that_is_under_way_is_awaited_and_none_gets_the_lock_behind_it(
    store: Store,
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(point: str) -> None:
        if point == "shard.before_put":
            inside.set()
            assert go_on.wait(20)

    (block, data), late = in_shard(store, 1), in_shard(store, 1, seed=5)
    with faultpoints.listening(slow):
        put = started(lambda: store.routed.shards[1].put_verified_sync([(block, data)]))
        assert inside.wait(20)
        held = started(lambda: hold(store))
        assert stays(held)
        assert stays(put)
        go_on.set()
        put.result(20)
        held.result(20)
    frozen = written(store)
    with pytest.raises(ReadOnly):
        store.routed.shards[1].put_verified_sync([late])
    with pytest.raises(ReadOnly):
        store.routed.shards[1].delete_many_sync([block])
    assert written(store) == frozen
    assert store.blocks.get_many_sync([block]) == [data]


def test_a_hold_that_is_stopped_says_that_it_is_not_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        raise Stopped("stopped")

    control = silent_control()
    monkeypatch.setattr(control, "sleep", stop)
    with store.lease():
        with pytest.raises(Stopped):
            set_shard_mode(store, 1, read_only=True, why=WHY, control=control)
        assert [one.state for one in list_shards(store)] == ["active", "closing", "active"]
        health = Health(store)
        health.look()
        assert health.warnings == {"shard 1": f"it is being made read-only: {WHY}"}
        store.blocks.put_many_sync([in_shard(store, 1)])
    hold(store)
    assert list_shards(store)[1].state == "read-only"


def test_the_wait_for_a_writer_can_be_stopped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(point: str) -> None:
        if point == "shard.before_put":
            inside.set()
            assert go_on.wait(20)

    def stop(_: float) -> None:
        raise Stopped("stopped")

    control = silent_control()
    monkeypatch.setattr(control, "sleep", stop)
    with faultpoints.listening(slow):
        put = started(lambda: store.routed.shards[1].put_verified_sync([in_shard(store, 1)]))
        assert inside.wait(20)
        with pytest.raises(Stopped):
            set_shard_mode(store, 1, read_only=True, why=WHY, control=control)
        again = started(lambda: hold(store))
        assert stays(again)
        go_on.set()
        put.result(20)
        again.result(20)


def test_no_other_operation_on_shards_runs_beside(store: Store) -> None:
    for kind in ("rebalance", "repair", "compact-shards"):
        with running(store, kind), pytest.raises(Refused, match="running already"):
            hold(store)


def test_a_put_does_not_take_a_damaged_copy_for_a_whole_one(tmp_path: Path) -> None:
    blocks = parts(30)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        block = min(placed(store)[1])
        with store.routed.shards[1]._writing() as transaction:
            assert transaction is not None
            transaction.put(block, blocks[block][:-1] + b"?")
        hold(store)
        with pytest.raises(ReadOnly):
            store.blocks.put_many_sync([(block, blocks[block])])


def test_pools_that_outgrow_their_root_do_so_beside_a_shard_that_is_read_only(
    store: Store,
) -> None:
    """Their blocks were embedded, and some have ids that lead there: these are born anew."""
    tips = {}
    for number in range(8):
        name = f"small-{number}"
        store.create_repository(name)
        tips[name] = one = commit(size=2_000)
        push(store, name, MAIN, None, one, one)
        with store.journal.snapshot() as snapshot:
            settle(store, store.repository(snapshot, name).pool)
    hold(store)
    frozen = written(store)
    for name, one in tips.items():
        before = [one]
        for _ in range(5):
            before.append(two := commit(before[-1], size=100_000))
            push(store, name, MAIN, before[-2], two, two)
        with store.journal.snapshot() as snapshot:
            pool = store.repository(snapshot, name).pool
        settle(store, pool)
        gc(store, AT_ONCE, control=CALM)
        compact_repository(store, name, full=True, control=CALM)
        ids = [oid for made in before for oid in made.ids]
        found = Reading(store, name).objects(ids)
        assert [one.id if one is not None else None for one in found] == ids
    assert written(store) == frozen
    assert verify_store(store.scratch.parent, objects=True, control=CALM).counts == {}


def test_the_command(tmp_path: Path) -> None:
    assert command("init", "s", "--shards", "2", cwd=tmp_path).returncode == 0
    on = ("shard", "read-only", "1")
    done = command(*on, "on", "--reason", WHY, "--data", "s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("shard 1: read-only since ")
    assert done.stdout.endswith(f": {WHY}\n")
    listed = command("shard", "list", "--data", "s", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[1] for line in listed[1:]] == ["active", "read-only"]
    refused = command("shard", "rebalance", "--data", "s", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "shard is read-only" in refused.stderr
    done = command(*on, "off", "--data", "s", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {
        "id": 1,
        "read_only": False,
        "why": "",
        "by": "",
        "since_ms": 0,
    }
    wrong = command(*on, "off", "--reason", "x", "--data", "s", cwd=tmp_path)
    assert wrong.returncode == 2


# ---- the row ----


def test_a_row_that_is_damaged_stops_what_writes_to_shards_until_it_is_said_anew(
    tmp_path: Path,
) -> None:
    blocks = parts(10)
    folder = full_store(tmp_path / "s", blocks)
    with opened(folder) as store:
        store.journal.commit_sync([], [Put(HELD_KEY, b"\1[{]")])
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
    with opened(folder) as store:
        store.create_repository("demo")
        with store.journal.snapshot() as snapshot:
            store.pool(snapshot, store.repository(snapshot, "demo").pool)
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
        with pytest.raises(JournalCorrupt):
            store.blocks.put_many_sync([in_shard(store, 1)])
        hold(store, read_only=False)
        store.blocks.put_many_sync([in_shard(store, 1)])
        with store.journal.snapshot() as snapshot:
            assert snapshot.get(HELD_KEY) is None


@given(
    st.lists(
        st.builds(
            HeldShard,
            st.integers(0, 4_095),
            st.text(max_size=20),
            st.text(max_size=9),
            st.integers(0, 1 << 50),
            st.booleans(),
        ),
        unique_by=lambda one: one.id,
        max_size=5,
    )
)
def test_the_row_comes_back(shards: list[HeldShard]) -> None:
    assert decode_held(encode_held(shards)) == tuple(sorted(shards, key=lambda one: one.id))


@given(st.binary(max_size=80))
def test_a_row_that_is_off_is_corrupt(data: bytes) -> None:
    for bad in (data, b"\1" + data):
        try:
            decode_held(bad)
        except JournalCorrupt:
            continue
        except Refused as error:
            assert "newer" in str(error)
