"""Git LFS objects and locks: whole or not at all, seen by who has them, and rows that hold what was put."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header
from shardgit.errors import (
    BlockCorrupt,
    DataLoss,
    InvalidArgument,
    JournalCorrupt,
    LfsObjectMissing,
    LfsObjectRefused,
    LimitExceeded,
    LockExists,
    LockMissing,
    PermissionRefused,
    RepositoryMissing,
    StoreFormatUnknown,
)
from shardgit.journal.interface import Put
from shardgit.journal.lfs_records import (
    LfsOwned,
    LfsRecord,
    LfsSource,
    LockRecord,
    decode_lock_name,
    decode_sources,
    encode_lock_name,
    encode_sources,
    lfs_object_key,
)
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import BlockId, HashKind, PoolId, RepositoryId
from shardgit.pool.parts import PartList, decode_parts, new_part, part_payload
from shardgit.service.access import trusted
from shardgit.service.forks import fork
from shardgit.service.lfs import LfsObjects, fork_operations
from shardgit.service.locks import Locks
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from shardgit.service.store import Store

POOL = PoolId(b"pool" * 4)
BLOCK = BlockId(b"block..." * 4)
PART = 1 << 12
LIMITS = Limits(
    block_target_bytes=PART + HEADER_SIZE,
    lfs_object_max_bytes=100 * PART,
    lfs_locks_page_max=5,
    lfs_lock_path_max_bytes=100,
)
ALICE, BOB = trusted("alice"), trusted("bob")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data", limits=LIMITS, threads=2) as opened:
        opened.create_repository("one")
        yield opened


def sample(size: int, seed: int = 1) -> tuple[bytes, bytes]:
    """Return bytes and their LFS id."""
    data = random.Random(seed).randbytes(size)
    return data, hashlib.sha256(data).digest()


async def pieces(data: bytes, step: int = 1_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


async def put(store: Store, name: str, data: bytes, oid: bytes, size: int | None = None) -> None:
    await LfsObjects(store).put(name, oid, len(data) if size is None else size, pieces(data))


async def read(store: Store, name: str, oid: bytes, low: int = 0, high: int | None = None) -> bytes:
    objects = LfsObjects(store)
    file = await objects.open(name, oid)
    async with aclosing(objects.read(file, low, file.size if high is None else high)) as source:
        return b"".join([piece async for piece in source])


def blocks_of(store: Store) -> list[BlockId]:
    return [block for block, _ in store.blocks.scan_sync()]


def sees(store: Store, name: str, oid: bytes) -> bool:
    return LfsObjects(store).find(name, [oid]) != [None]


# ---- objects ----


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 4 * PART, 9 * PART + 7])
async def test_an_object_comes_back_as_it_went_in(store: Store, size: int) -> None:
    data, oid = sample(size)
    await put(store, "one", data, oid)
    assert await read(store, "one", oid) == data
    assert len(blocks_of(store)) == -(-size // PART) + (size > PART)
    for low, high in ((0, size), (size // 3, size // 2), (max(0, size - 1), size), (size, size)):
        assert await read(store, "one", oid, low, high) == data[low:high]


@pytest.mark.parametrize("size", [1, PART, 6 * PART + 5])
async def test_bytes_that_do_not_match_leave_nothing(store: Store, size: int) -> None:
    data, oid = sample(size)
    wrong = bytes([data[0] ^ 1]) + data[1:]
    for bad, announced, words in (
        (wrong, size, "does not match its id"),
        (data[:-1], size, "shorter"),
        (data + b"x", size, "larger"),
        (data, size + 1, "shorter"),
        (data, size - 1, "larger"),
    ):
        with pytest.raises(LfsObjectRefused, match=words):
            await put(store, "one", bad, oid, announced)
    assert blocks_of(store) == []
    assert not sees(store, "one", oid)
    with pytest.raises(LfsObjectMissing):
        await read(store, "one", oid)
    await put(store, "one", data, oid)  # and none of it is in the way
    assert await read(store, "one", oid) == data


async def test_a_broken_upload_leaves_nothing(store: Store) -> None:
    data, oid = sample(20 * PART)

    async def breaking() -> AsyncIterator[bytes]:
        yield data[: 10 * PART]
        assert blocks_of(store)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await LfsObjects(store).put("one", oid, len(data), breaking())
    assert blocks_of(store) == []


async def test_a_cancelled_upload_leaves_nothing(store: Store) -> None:
    data, oid = sample(20 * PART)
    waiting = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield data[: 10 * PART]
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(LfsObjects(store).put("one", oid, len(data), stuck()))
    await waiting.wait()
    assert blocks_of(store)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert blocks_of(store) == []


async def test_what_is_there_is_not_stored_again_but_checked(store: Store) -> None:
    data, oid = sample(3 * PART)
    await put(store, "one", data, oid)
    before = blocks_of(store)
    await put(store, "one", data, oid)
    with pytest.raises(LfsObjectRefused):
        await put(store, "one", data[:-1] + b"x", oid)
    assert blocks_of(store) == before
    assert await read(store, "one", oid) == data


async def test_many_uploads_of_one_object_at_once_all_succeed_and_keep_one(store: Store) -> None:
    data, oid = sample(5 * PART)
    await asyncio.gather(*[put(store, "one", data, oid) for _ in range(6)])
    assert await read(store, "one", oid) == data
    assert len(blocks_of(store)) == 6


async def test_limits_and_missing_repositories_are_told_before_anything_is_read(
    store: Store,
) -> None:
    begun = []

    async def unread() -> AsyncIterator[bytes]:
        begun.append(True)
        yield b""

    objects = LfsObjects(store)
    with pytest.raises(LimitExceeded):
        await objects.put("one", bytes(32), 100 * PART + 1, unread())
    with pytest.raises(RepositoryMissing):
        await objects.put("two", bytes(32), 5, unread())
    with pytest.raises(InvalidArgument):
        await objects.put("one", bytes(31), 5, unread())
    with pytest.raises(RepositoryMissing):
        objects.find("two", [bytes(32)])
    assert begun == []


async def test_a_repository_deleted_meanwhile_gets_nothing(store: Store) -> None:
    data, oid = sample(2 * PART)

    async def deleting() -> AsyncIterator[bytes]:
        yield data
        await store.workers.run(Repositories(store).delete, "one")

    with pytest.raises(RepositoryMissing):
        await LfsObjects(store).put("one", oid, len(data), deleting())
    assert blocks_of(store) == []


async def test_a_missing_part_is_data_loss_and_sending_it_again_repairs(store: Store) -> None:
    data, oid = sample(3 * PART)
    await put(store, "one", data, oid)
    store.blocks.delete_many_sync(blocks_of(store)[:1])
    with pytest.raises(DataLoss):
        await read(store, "one", oid)
    await put(store, "one", data, oid)
    assert await read(store, "one", oid) == data


# ---- forks ----


async def test_siblings_do_not_see_each_others_objects(store: Store) -> None:
    fork(store, "one", "left")
    fork(store, "one", "right")
    data, oid = sample(PART + 1)
    await put(store, "left", data, oid)
    assert [sees(store, name, oid) for name in ("one", "left", "right")] == [False, True, False]
    with pytest.raises(LfsObjectMissing):
        await read(store, "right", oid)
    with pytest.raises(LfsObjectRefused):  # the id alone proves nothing
        await put(store, "right", b"x" * len(data), oid)
    assert not sees(store, "right", oid)
    before = blocks_of(store)
    await put(store, "right", data, oid)  # the bytes do, and the pool keeps them once
    assert await read(store, "right", oid) == data
    assert blocks_of(store) == before
    assert not sees(store, "one", oid)


async def test_a_fork_sees_what_its_source_had_then(store: Store) -> None:
    early, early_id = sample(10, 1)
    late, late_id = sample(10, 2)
    later, later_id = sample(10, 3)
    await put(store, "one", early, early_id)
    fork(store, "one", "fork")
    await put(store, "one", late, late_id)
    await put(store, "fork", later, later_id)
    fork(store, "fork", "forks-fork")
    assert [sees(store, "fork", oid) for oid in (early_id, late_id, later_id)] == [1, 0, 1]
    assert [sees(store, "forks-fork", oid) for oid in (early_id, late_id, later_id)] == [1, 0, 1]
    assert [sees(store, "one", oid) for oid in (early_id, late_id, later_id)] == [1, 1, 0]
    Repositories(store).delete("one")  # the source's end takes nothing away
    assert await read(store, "fork", early_id) == early
    # What came to both sides apart is seen by both.
    await put(store, "fork", late, late_id)
    assert sees(store, "fork", late_id)
    assert not sees(store, "forks-fork", late_id)


async def test_a_fork_without_objects_costs_no_row(store: Store) -> None:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "one")
        assert fork_operations(snapshot, record, RepositoryId(9)) == []
    data, oid = sample(10)
    await put(store, "one", data, oid)
    with store.journal.snapshot() as snapshot:
        assert len(fork_operations(snapshot, record, RepositoryId(9))) == 1


# ---- locks ----


def test_a_path_has_one_lock_and_its_holder_ends_it(store: Store) -> None:
    locks = Locks(store)
    lock = locks.lock("one", "a/ü.bin", ALICE)
    assert (lock.owner, lock.path) == ("alice", "a/ü.bin")
    for principal in (ALICE, BOB):
        with pytest.raises(LockExists) as refused:
            locks.lock("one", "a/ü.bin", principal)
        assert refused.value.facts["lock"] == lock
    with pytest.raises(PermissionRefused):
        locks.unlock("one", lock.id.hex(), BOB)
    assert locks.unlock("one", lock.id.hex(), ALICE) == lock
    with pytest.raises(LockMissing):
        locks.unlock("one", lock.id.hex(), ALICE)
    again = locks.lock("one", "a/ü.bin", BOB)
    assert locks.unlock("one", again.id.hex(), ALICE, force=True) == again
    assert locks.list("one").locks == ()


def test_locks_are_paged_by_age(store: Store) -> None:
    locks = Locks(store)
    store.create_repository("two")
    made = [locks.lock("one", f"f{number}", ALICE) for number in range(12)]
    ordered = sorted(made, key=lambda lock: lock.id)
    other = locks.lock("two", "f0", BOB)
    for limit, size in ((0, 5), (3, 3), (1_000, 5)):
        cursor = ""
        found: list[LockRecord] = []
        while True:
            page = locks.list("one", cursor=cursor, limit=limit)
            assert len(page.locks) <= size
            found += page.locks
            cursor = page.next
            if not cursor:
                break
        assert found == ordered
    assert locks.list("one", path="f3").locks == (made[3],)
    assert locks.list("one", lock=made[4].id.hex()).locks == (made[4],)
    assert locks.list("one", path="f3", lock=made[4].id.hex()).locks == ()
    for nothing in ("zz", "0" * 32, other.id.hex()):
        assert locks.list("one", lock=nothing).locks == ()
    with pytest.raises(LockMissing):
        locks.unlock("one", other.id.hex(), BOB)
    with pytest.raises(LockMissing):
        locks.list("one", cursor="what")


async def test_one_of_many_at_once_gets_the_lock(store: Store) -> None:
    locks = Locks(store)
    names = [trusted(f"p{number}") for number in range(8)]
    tries = [store.workers.run(locks.lock, "one", "f", name) for name in names]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    got = [answer for answer in answers if isinstance(answer, LockRecord)]
    assert len(got) == 1
    assert all(isinstance(answer, LockExists) for answer in answers if answer not in got)


@pytest.mark.parametrize(
    "path", ["", "/a", "a//b", "a/../b", ".", "a/", "a\0b", "x" * 101, "a\ud800"]
)
def test_what_is_no_path_is_not_locked(store: Store, path: str) -> None:
    with pytest.raises(InvalidArgument):
        Locks(store).lock("one", path, ALICE)


# ---- bytes ----

RECORDS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (LfsRecord(9, 1, BLOCK, 5).encode(), LfsRecord.decode),
    (LfsOwned(9, 5).encode(), LfsOwned.decode),
    (
        encode_sources((LfsSource(RepositoryId(4), 5), LfsSource(RepositoryId(6), 7))),
        decode_sources,
    ),
    (
        LockRecord(b"i" * 16, "p/ü", "someone", 6).encode(),
        lambda data: LockRecord.decode(b"i" * 16, data),
    ),
    (encode_lock_name(b"i" * 16), decode_lock_name),
]


def test_rows_hold_what_was_put() -> None:
    for record in (LfsRecord(9, 1, BLOCK, 5), LfsRecord(0, 0, None, 5), LfsRecord(9, 9, BLOCK, 1)):
        assert LfsRecord.decode(record.encode()) == record
    assert LfsOwned.decode(LfsOwned(9, 5).encode()) == LfsOwned(9, 5)
    lock = LockRecord(b"i" * 16, "p/ü", "", 6)
    assert LockRecord.decode(lock.id, lock.encode()) == lock
    assert decode_lock_name(encode_lock_name(lock.id)) == lock.id
    assert decode_sources(encode_sources(())) == ()


@given(data=st.data(), which=st.sampled_from(RECORDS))
def test_other_bytes_are_no_row(
    data: st.DataObject, which: tuple[bytes, Callable[[bytes], object]]
) -> None:
    good, decode = which
    cut = data.draw(st.integers(0, len(good) - 1))
    for bad in (good[:cut], good + b"x", b"\x09" + good[1:], data.draw(st.binary(max_size=80))):
        try:
            decode(bad)
        except JournalCorrupt:
            continue
        except StoreFormatUnknown:
            assert bad[0] > 1
            continue
        assert bad[:1] == b"\x01"


def test_a_part_list_is_checked() -> None:
    parts = PartList(b"o" * 32, 2 * 10 + 1, 10, (BLOCK, BLOCK, BLOCK))
    good = parts.encode(POOL)
    assert decode_parts(good) == parts
    body = good[HEADER_SIZE:]
    for at, byte in ((0, 0), (4, 9), (8, 0), (12, 9), (16, 0)):
        bad = bytearray(body)
        bad[at] = byte
        header = new_header(BlockKind.PART, HashKind.SHA256, POOL, len(good), flags=1)
        with pytest.raises(BlockCorrupt):
            decode_parts(header + bytes(bad))
    for cut in (body[:-32], body + BLOCK, body[:40]):
        length = HEADER_SIZE + len(cut)
        with pytest.raises(BlockCorrupt):
            decode_parts(new_header(BlockKind.PART, HashKind.SHA256, POOL, length, flags=1) + cut)
    with pytest.raises(BlockCorrupt, match="no list"):
        decode_parts(new_part(POOL, b"x" * 100))
    with pytest.raises(BlockCorrupt, match="another length"):
        part_payload(memoryview(good), 0, 5, length=len(body))


async def test_a_list_of_another_object_is_data_loss(store: Store) -> None:
    data, oid = sample(3 * PART)
    await put(store, "one", data, oid)
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, "one").pool
        row = snapshot.get(lfs_object_key(pool, oid))
    assert row is not None
    record = LfsRecord.decode(row.value)
    assert record.root is not None
    block = PartList(b"x" * 32, record.size, PART, (BLOCK,) * 3).encode(pool)
    store.blocks.put_many_sync([(block_id(block), block)])
    wrong = LfsRecord(record.size, record.parts, block_id(block), 0)
    store.journal.commit_sync([], [Put(lfs_object_key(pool, oid), wrong.encode())])
    with pytest.raises(DataLoss, match="another lfs object"):
        await read(store, "one", oid)
