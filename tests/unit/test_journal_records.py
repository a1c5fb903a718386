"""The journal's records: what goes in comes out, other bytes are one of two errors."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit.errors import Conflict, JournalCorrupt, StoreFormatUnknown
from shardgit.journal.graft_records import decode_grafts, encode_grafts
from shardgit.journal.memory import MemoryJournal
from shardgit.journal.pins import LEASE_MS, Pin, PinRecord, fresh_pins
from shardgit.journal.records import (
    NameRecord,
    PoolRecord,
    RefsHead,
    RepositoryRecord,
    StoreRecord,
    allocate_repository,
    decode_counter,
    encode_counter,
    loose_range,
    ref_key,
)
from shardgit.oid import BlockId, HashKind, ObjectId, PoolId, RepositoryId
from shardgit.refs.ref import Ref, decode_row, encode_row

if TYPE_CHECKING:
    from collections.abc import Callable

POOL = PoolId(b"pool" * 4)
BLOCK = BlockId(b"block..." * 4)
U64 = st.integers(0, (1 << 64) - 1)

RECORDS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (
        RepositoryRecord(RepositoryId(7), "a/ü", POOL, HashKind.SHA256, 9).encode(),
        RepositoryRecord.decode,
    ),
    (NameRecord(RepositoryId(7), 3).encode(), NameRecord.decode),
    (
        PoolRecord(POOL, HashKind.SHA1, BLOCK, 4, 5).encode(),
        lambda data: PoolRecord.decode(POOL, data),
    ),
    (RefsHead(BLOCK, 5, 6, HashKind.SHA1).encode(), RefsHead.decode),
    (StoreRecord(bytes(range(16))).encode(), StoreRecord.decode),
    (encode_counter(12), decode_counter),
    (
        encode_row(Ref(b"refs/a", symbolic=b"refs/b"), HashKind.SHA1),
        lambda data: decode_row(b"refs/a", data),
    ),
    (
        encode_grafts([ObjectId(bytes([n]) * 32) for n in (7, 3, 7)], HashKind.SHA256),
        lambda data: decode_grafts(data, HashKind.SHA256),
    ),
]


@given(
    number=U64,
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    kind=st.sampled_from(HashKind),
    created=U64,
    settings=st.binary(max_size=50),
    parent=U64,
)
def test_a_repository_record_round_trips(
    number: int, name: str, kind: HashKind, created: int, settings: bytes, parent: int
) -> None:
    record = RepositoryRecord(
        RepositoryId(number), name, POOL, kind, created, settings, RepositoryId(parent)
    )
    assert RepositoryRecord.decode(record.encode()) == record
    of_version_1 = b"\1" + record.encode()[1:42] + record.encode()[50:]
    assert RepositoryRecord.decode(of_version_1) == replace(record, parent=RepositoryId(0))


@pytest.mark.parametrize("manifest", [None, BLOCK])
def test_other_records_round_trip(manifest: BlockId | None) -> None:
    pool = PoolRecord(POOL, HashKind.SHA256, manifest, 1, 2)
    assert PoolRecord.decode(POOL, pool.encode()) == pool
    head = RefsHead(manifest, 1, 2, HashKind.SHA256 if manifest else None, 1 << 40)
    assert RefsHead.decode(head.encode()) == head
    of_version_1 = b"\1" + head.encode()[1:-8]
    assert RefsHead.decode(of_version_1) == replace(head, sequence=0)
    assert NameRecord.decode(NameRecord(RepositoryId(1), 9).encode()) == NameRecord(
        RepositoryId(1), 9
    )
    assert StoreRecord.decode(StoreRecord(bytes(16)).encode()) == StoreRecord(bytes(16))


@given(ids=st.sets(st.binary(min_size=20, max_size=20), min_size=1, max_size=30))
def test_grafts_come_out_as_they_went_in(ids: set[bytes]) -> None:
    wanted = [ObjectId(each) for each in ids]
    assert decode_grafts(encode_grafts(wanted, HashKind.SHA1), HashKind.SHA1) == set(wanted)
    with pytest.raises(JournalCorrupt):
        decode_grafts(encode_grafts(wanted, HashKind.SHA1), HashKind.SHA256)


@pytest.mark.parametrize(("whole", "decode"), RECORDS)
def test_cut_and_lengthened_records_are_corrupt_and_newer_ones_unknown(
    whole: bytes, decode: Callable[[bytes], object]
) -> None:
    for wrong in (whole[:-1], whole + b"\0", b"", b"\0" + whole[1:]):
        with pytest.raises(JournalCorrupt):
            decode(wrong)
    with pytest.raises(StoreFormatUnknown):
        decode(b"\3" + whole[1:])


@given(data=st.data())
def test_any_bytes_are_a_record_or_corrupt(data: st.DataObject) -> None:
    whole, decode = data.draw(st.sampled_from(RECORDS))
    rotten = bytearray(data.draw(st.one_of(st.just(whole), st.binary(max_size=120))))
    for _ in range(data.draw(st.integers(0, 4))):
        if rotten:
            rotten[data.draw(st.integers(0, len(rotten) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(rotten))
    except JournalCorrupt:
        pass
    except StoreFormatUnknown as error:  # of the row, or of the whole journal
        assert rotten[0] > 1 or "journal" in error.message


def test_repository_ids_begin_at_1_and_one_of_two_takers_loses() -> None:
    journal = MemoryJournal()
    with journal.snapshot() as snapshot:
        first, second = allocate_repository(snapshot), allocate_repository(snapshot)
    assert first.id == second.id == 1
    journal.commit_sync([first.condition], [first.operation])
    with pytest.raises(Conflict):
        journal.commit_sync([second.condition], [second.operation])
    with journal.snapshot() as snapshot:
        assert allocate_repository(snapshot).id == 2


def test_the_range_of_loose_refs_leaves_head_and_neighbours_out() -> None:
    low, high = loose_range(RepositoryId(7))
    inside = [ref_key(RepositoryId(7), name) for name in (b"refs/a", b"refs/\xff\xff")]
    outside = [
        ref_key(RepositoryId(7), b"HEAD"),
        *(ref_key(RepositoryId(number), b"refs/a") for number in (6, 8)),
    ]
    assert all(low <= key < high for key in inside)
    assert not any(low <= key < high for key in outside)


def test_a_pin_is_fresh_until_its_lease_is_over_and_then_makes_room() -> None:
    journal = MemoryJournal()
    pin = Pin(journal, "backup to x", 1_000)
    with journal.snapshot() as snapshot:
        assert [one.holder for one in fresh_pins(snapshot, 1_000 + LEASE_MS - 1)] == ["backup to x"]
        assert not fresh_pins(snapshot, 1_000 + LEASE_MS)
    assert pin.renew(1_000 + LEASE_MS - 1)
    with journal.snapshot() as snapshot:
        assert fresh_pins(snapshot, 1_000 + LEASE_MS)
    late = Pin(journal, "later", 1_000 + 3 * LEASE_MS)
    with journal.snapshot() as snapshot:
        assert [one.holder for one in fresh_pins(snapshot, 0)] == ["later"]
    assert not pin.renew(1_000 + 3 * LEASE_MS)
    late.drop()
    with journal.snapshot() as snapshot:
        assert not fresh_pins(snapshot, 0)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_pin_or_one_error(data: bytes) -> None:
    with contextlib.suppress(JournalCorrupt, StoreFormatUnknown):
        assert PinRecord.decode(data).since_ms >= 0
