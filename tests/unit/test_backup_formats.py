"""Packs, indexes, rows and manifests of backups: what goes in comes out, other bytes are BackupCorrupt."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from shardgit.backup.bucket import is_empty, open_bucket
from shardgit.backup.cut import Cut, CutFacts, RowsBlob, decode_cut, decode_facts, encode_cut
from shardgit.backup.lease import writing
from shardgit.backup.pack import (
    BlobKind,
    PackEntry,
    check_pack,
    decode_footer,
    decode_index,
    encode_index,
    encode_pack,
    pack_name,
)
from shardgit.backup.prune import rewrite
from shardgit.backup.rows import decode_rows, encode_rows
from shardgit.backup.sending import Sender
from shardgit.backup.source import CutSnapshot
from shardgit.backup.target import Target
from shardgit.buckets.folder import FolderBucket
from shardgit.errors import (
    BackupCorrupt,
    BackupMissing,
    BlockCorrupt,
    InvalidArgument,
    Refused,
    StoreBusy,
    StoreFormatUnknown,
)
from shardgit.faultpoints import listening
from shardgit.journal.interface import Row
from shardgit.operate.operation import silent_control

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FACTS = CutFacts("20260101T000000000Z-00000000", "s", 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, "0.1", "host")


def rows(count: int, seed: int = 0) -> list[Row]:
    rand = random.Random(seed)
    keys = sorted({rand.randbytes(rand.randint(8, 40)) for _ in range(count)})
    return [Row(b"I" + key, rand.randbytes(rand.randint(0, 200)), n) for n, key in enumerate(keys)]


def blob(data: bytes, kind: BlobKind = BlobKind.BLOCK) -> tuple[PackEntry, bytes]:
    return PackEntry(blake3(data).digest(), len(data), kind), data


def samples() -> list[tuple[bytes, Callable[[bytes], object]]]:
    pack, data = encode_pack([blob(b"one"), blob(b"two" * 100, BlobKind.ROWS)])
    made = [chunk for _, _, chunk in encode_rows(rows(20))]
    cut = Cut(
        FACTS, (RowsBlob(b"r" * 32, 20, b"a"), RowsBlob(b"s" * 32, 1, b"b")), b"a" * 32 + b"b" * 32
    )
    return [
        (data[pack.blobs_end :], decode_footer),
        (encode_index([pack])[1], decode_index),
        (made[0], decode_rows),
        (encode_cut(cut), decode_cut),
    ]


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    for data, decode in samples():
        assert decode(data)
        # Rows have no checksum of their own: the id of their blob holds them.
        for at in range(len(data) if decode is not decode_rows else 0):
            flipped = bytearray(data)
            flipped[at] ^= 1 << at % 8
            with pytest.raises(BackupCorrupt):
                decode(bytes(flipped))
        for end in range(len(data)):
            with pytest.raises(BackupCorrupt):
                decode(data[:end])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_one_error(data: bytes) -> None:
    for start, decode in samples():
        for tried in (data, start[:16] + data, start[: len(start) // 2] + data):
            with suppress(BackupCorrupt):
                decode(tried)
    with suppress(BackupCorrupt):
        decode_facts(data)


def test_a_pack_gives_its_blobs_and_names_the_damaged_one() -> None:
    pack, data = encode_pack([blob(b"x" * 50), blob(b"y" * 70)])
    assert len(data) == pack.size
    assert check_pack(pack, data) == []
    starts = pack.offsets()
    assert data[starts[1] : starts[1] + 70] == b"y" * 70
    wrong = bytearray(data)
    wrong[starts[1] + 3] ^= 1
    assert check_pack(pack, bytes(wrong)) == [pack.entries[1].id]
    with pytest.raises(BackupCorrupt):
        check_pack(pack, data[:-1])


def test_rows_that_did_not_change_stay_in_the_same_blobs() -> None:
    before = rows(30_000)
    after = [row for row in before if row.key != before[15_000].key]
    first = [data for _, _, data in encode_rows(before)]
    second = {data for _, _, data in encode_rows(after)}
    assert len(first) > 10
    assert [row for data in first for row in decode_rows(data)] == before
    assert len([data for data in first if data not in second]) <= 2


def test_a_backup_answers_like_the_journal_it_was(tmp_path: Path) -> None:
    target = Target.open(str(tmp_path / "bk"), make=True)
    target.load()
    all_rows = rows(20_000, 3)
    chunks = []
    with Sender(target) as sender:
        for first, count, data in encode_rows(all_rows):
            name = blake3(data).digest()
            assert sender.add(name, data, BlobKind.ROWS)
            assert not sender.add(name, data, BlobKind.ROWS)
            assert len(decode_rows(data)) == count
            chunks.append(RowsBlob(name, count, first))
        sender.write_index()
    snapshot = CutSnapshot(target, Cut(FACTS, tuple(chunks), b""))
    rand = random.Random(1)
    for _ in range(200):
        low, high = sorted((rand.choice(all_rows).key, rand.choice(all_rows).key))
        assert (
            list(snapshot.range(low, high, limit=50))
            == [row for row in all_rows if low <= row.key < high][:50]
        )
    assert snapshot.get(all_rows[7].key) == all_rows[7]
    assert snapshot.get(all_rows[7].key + b"\0") is None
    assert list(snapshot.range(b"\0", b"\xff")) == all_rows


def test_packs_without_an_index_are_found_and_cut_ones_count_as_missing(tmp_path: Path) -> None:
    target = Target.open(str(tmp_path / "bk"), make=True)
    target.load()
    with Sender(target) as sender:
        for number in range(3):
            sender.add(blake3(b"%d" % number).digest(), b"%d" % number, BlobKind.BLOCK)
            sender.flush()
    again = Target.open(str(tmp_path / "bk"))
    again.load()
    assert len(again.unindexed) == 3
    assert again.get(blake3(b"2").digest()) == b"2"
    lost = tmp_path / "bk" / again.unindexed[0].name
    lost.write_bytes(lost.read_bytes()[:-1])
    last = Target.open(str(tmp_path / "bk"))
    last.load()
    assert len(last.unindexed) == 2
    assert not all(blake3(b"%d" % number).digest() in last for number in range(3))


def test_a_blob_that_does_not_match_is_not_sent(tmp_path: Path) -> None:
    target = Target.open(str(tmp_path / "bk"), make=True)
    with Sender(target) as sender, pytest.raises(BlockCorrupt):
        sender.add(bytes(32), b"x", BlobKind.BLOCK)


def test_places_that_hold_no_backups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackupMissing):
        Target.open(str(tmp_path / "missing"))
    with pytest.raises(Refused):
        Target.open(str(tmp_path / "not" / "mounted"), make=True)
    with pytest.raises(BackupMissing):
        Target.open(str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    with pytest.raises(Refused):
        Target.open(str(tmp_path / "full"), make=True)
    Target.open(str(tmp_path / "bk"), make=True)
    (tmp_path / "bk" / "format").write_text("shardgit backup 2\n")
    with pytest.raises(StoreFormatUnknown):
        Target.open(str(tmp_path / "bk"))
    with pytest.raises(InvalidArgument):
        open_bucket("ftp://host/x")
    with pytest.raises(InvalidArgument):
        open_bucket("s3://key:secret@bucket/x")


def test_a_target_has_one_writer(tmp_path: Path) -> None:
    bucket = FolderBucket(tmp_path)
    with writing(bucket) as renew:
        renew()
        with pytest.raises(StoreBusy), writing(FolderBucket(tmp_path)):
            pass
    with writing(bucket):
        pass


def test_create_never_replaces(tmp_path: Path) -> None:
    bucket = FolderBucket(tmp_path)
    assert bucket.create("a/b", b"1")
    assert not bucket.create("a/b", b"2")
    assert bucket.get("a/b") == b"1"
    bucket.put("a/b", b"3")
    assert bucket.get("a/b") == b"3"
    assert bucket.get("a/c") is None
    assert [(one.name, one.size) for one in bucket.list("a")] == [("a/b", 1)]
    bucket.delete(["a/b", "a/c"])
    assert not list(bucket.list("a"))


def test_what_is_damaged_keeps_its_pack_until_it_is_dropped(tmp_path: Path) -> None:
    target = Target.open(str(tmp_path / "b"), make=True)
    blobs = [blob(bytes([n]) * 1_000) for n in range(4)]
    with Sender(target) as sender:
        for entry, data in blobs:
            sender.add(entry.id, data, entry.kind)
        sender.write_index()
    (pack,) = target.packs.values()
    file = tmp_path / "b" / pack_name(pack.id)
    wrong = bytearray(file.read_bytes())
    wrong[0] ^= 1  # of the frame, which no blob needs
    wrong[wrong.index(blobs[1][1]) + 500] ^= 1
    file.write_bytes(bytes(wrong))

    def written_anew(*, drop_damaged: bool) -> list[bool]:
        rewrite(
            target,
            [pack],
            lambda one: one != blobs[3][0].id,
            control=silent_control(),
            renew=lambda: None,
            drop_damaged=drop_damaged,
        )
        return [entry.id in target for entry, _ in blobs]

    assert written_anew(drop_damaged=False) == [True] * 4
    assert file.read_bytes() == wrong
    assert written_anew(drop_damaged=True) == [True, False, True, False]
    assert [target.get(blobs[n][0].id) for n in (0, 2)] == [blobs[n][1] for n in (0, 2)]
    assert not file.exists()


def test_a_target_whose_first_writer_was_killed_is_as_good_as_new(tmp_path: Path) -> None:
    bucket = FolderBucket(tmp_path)
    with pytest.raises(KeyboardInterrupt), listening(_interrupted):
        bucket.create("format", b"x")
    left = tmp_path / "tmp" / "77-0123456789abcdef"  # of one that was killed
    left.write_bytes(b"x")
    assert is_empty(bucket)
    (tmp_path / "tmp" / "letter.txt").write_bytes(b"dear")
    assert not is_empty(bucket)
    (tmp_path / "tmp" / "letter.txt").unlink()
    (tmp_path / "other").write_bytes(b"")
    assert not is_empty(bucket)


def _interrupted(point: str) -> None:
    if point == "bucket.before_create":
        raise KeyboardInterrupt
