"""Objects decoded into messages, and many ids looked up at once, against what reads them one by one."""

from __future__ import annotations

import hashlib
import random
import zlib
from array import array
from typing import TYPE_CHECKING

import pytest
from fuzz.targets import packs, resolve, segments
from reference.gits import git, make_history
from reference.packs import PackMaker, copy, entry_header, insert, varint

from shardgit import _segment
from shardgit._objects import Messages, confirm, outside
from shardgit.errors import BlockCorrupt, Internal
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind, ObjectId
from shardgit.pool import decoding as pool_decoding
from shardgit.pool import outside as pool_outside
from shardgit.pool import view as pool_view
from shardgit.pool.decoding import Decoding
from shardgit.service.importing import import_repository
from shardgit.service.reading import Reading
from shardgit.service.uploading import Uploading
from shardgit.v1 import object_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.service.store import Store

ROOMS = (1_024, 5_000, 1 << 20)
Told = list[tuple[bytes, int, bytes]]


def told(messages: list[bytes], size: int = 20) -> Told:
    """Return (id, type, bytes) of each object that messages carry, as a client reads them."""
    rows: list[tuple[bytes, int, int]] = []
    data = b""
    for message in messages:
        answer = object_pb2.GetObjectsResponse.FromString(message)
        ids = [answer.ids[at : at + size] for at in range(0, len(answer.ids), size)]
        rows += zip(ids, answer.types, answer.sizes, strict=True)
        data += answer.data
    out: Told = []
    at = 0
    for oid, kind, length in rows:
        out.append((oid, kind, data[at : at + length]))
        at += length
    assert at == len(data)
    return out


def messages_of(block: bytes, places: list[int], room: int, held: int = 1 << 24) -> list[bytes]:
    made = Messages(20, room, held)
    large = 1 << 40
    wanted = array("q", places)
    outside_ids = _segment.externals_of(block, 20)
    over, missing = made.begin(block, 0, wanted, 0, len(wanted), large)
    assert not over
    assert set(missing) <= set(outside_ids)
    if missing:
        assert made.begin(block, 0, wanted, 0, len(wanted), large, dict.fromkeys(missing, b"")) == (
            [],
            [],
        )
    out = []
    while not made.fill(block):
        out.append(made.take())
    out.append(made.take())
    assert all(0 < len(one) <= room + 64 for one in out if one)
    assert made.take() == b""
    return out


@pytest.mark.parametrize("room", ROOMS)
def test_messages_carry_what_is_decoded_one_by_one(room: int) -> None:
    chance = random.Random(room)
    for block in segments():
        count = _segment.check(block, 20)
        ids = _segment.ids_at(block, 20, range(count))
        kind = block[-48 + 20]  # in the trailer
        for wanted in (
            list(range(count)),
            sorted(chance.choices(range(count), k=count)),  # some twice, some not at all
            [count - 1],
        ):
            objects, _ = _segment.decode_many(block, 20, wanted)
            got = told(messages_of(block, wanted, room))
            assert got == [(ids[at], kind, one) for at, one in zip(wanted, objects, strict=True)]


def test_a_long_chain_goes_through_small_messages() -> None:
    """Bases that lie in a message which goes out are still there for what hangs from them."""
    block = max(segments(), key=lambda one: _segment.check(one, 20))
    count = _segment.check(block, 20)
    objects, _ = _segment.decode_many(block, 20, range(count))
    for held in (0, 100, 1_000, 1 << 20):
        got = told(messages_of(block, list(range(count)), 1_024, held))
        assert [one for _, _, one in got] == objects


def test_what_is_large_is_left_out_and_named() -> None:
    for block in segments():
        count = _segment.check(block, 20)
        sizes = _segment.sizes_at(block, 20, range(count))
        limit = sorted(sizes)[count // 2]
        made = Messages(20, 1 << 20)
        places = array("q", range(7, 7 + count))
        over, missing = made.begin(block, 7, places, 0, count, limit)
        assert not missing
        assert over == [7 + at for at, size in enumerate(sizes) if size > limit]
        assert made.fill(block)
        assert [len(one) for _, _, one in told([made.take()])] == [s for s in sizes if s <= limit]


def test_absent_ids_fill_messages_of_their_own() -> None:
    made = Messages(20, 1_024)
    ids = [bytes([number]) * 20 for number in range(100)]
    at, out = 0, []
    while at < len(ids):
        at = made.absent(b"".join(ids), at)
        out.append(made.take())
    assert len(out) > 1
    assert told(out) == [(oid, 0, b"") for oid in ids]


def test_a_damaged_segment_is_told_and_nothing_else() -> None:
    chance = random.Random(5)
    block = max(segments(), key=len)
    count = _segment.check(block, 20)
    end = _segment.entries_span(block, 20)[1]
    for _ in range(200):
        wrong = bytearray(block)
        for _ in range(3):
            wrong[chance.randrange(64, end)] = chance.randrange(256)
        made = Messages(20, 1_024)
        try:
            _segment.check(wrong, 20)
            made.begin(wrong, 0, array("q", range(count)), 0, count, 1 << 40)
            while not made.fill(wrong):
                made.take()
        except BlockCorrupt:
            continue
        made.take()


def test_another_segment_than_was_begun_is_refused() -> None:
    blocks = segments()
    short, long = min(blocks, key=len), max(blocks, key=len)
    made = Messages(20, 1_024)
    made.begin(long, 0, array("q", [0]), 0, 1, 1 << 40)
    with pytest.raises(Internal):
        made.fill(short)
    with pytest.raises(IndexError):
        made.begin(short, 0, array("q", [1 << 20]), 0, 1, 1 << 40)
    with pytest.raises(IndexError):
        made.begin(short, 0, array("q", [0]), 0, 2, 1 << 40)


def test_ids_at_other_places_are_named() -> None:
    block = max(segments(), key=len)
    count = _segment.check(block, 20)
    ids = _segment.ids_of(block, 20)
    places = array("q", range(10, 10 + count))
    numbers = array("q", range(count))
    assert confirm(block, 20, 10, places, numbers, 0, count, ids) == []
    wrong = bytearray(ids)
    wrong[20 * 3 + 19] ^= 1
    assert confirm(block, 20, 10, places, numbers, 0, count, wrong) == [3]
    assert confirm(block, 20, 10, places, numbers, 4, count, wrong) == []
    with pytest.raises(IndexError):
        confirm(block, 20, 10, places, numbers, 0, count, ids[:20])
    assert outside(bytes([0b101]), array("q", [0, 1, 2, -1, 8])) == [1, 4]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("objects")
    origin = make_history(folder / "work", commits=60)
    create_store(folder / "data")
    with open_store(folder / "data") as opened:
        import_repository(opened, "demo", str(origin))
        for number in range(3):  # runs behind each other
            (origin / "more").write_text(f"{number}\n" * 500)
            git(origin, "add", "-A")
            git(origin, "commit", "-qm", "more")
            import_repository(opened, "demo", str(origin))
        yield opened


def test_many_ids_are_found_where_each_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(store, "demo")
    assert reading.view is not None
    ids = [info.id for infos in reading.all_infos() for info in infos]
    chance = random.Random(1)
    ids += [ObjectId(chance.randbytes(20)) for _ in range(50)]
    ids += [ObjectId(one[:19] + bytes([one[19] ^ 1])) for one in ids[:50]]  # an index knows starts
    chance.shuffle(ids)
    one_by_one = [reading.view.positions([oid])[0] for oid in ids]
    monkeypatch.setattr(pool_view, "MANY_IDS", 8)
    assert reading.view.positions(ids) == one_by_one
    assert one_by_one.count(-1) == 100


def test_a_decoding_gives_what_reading_gives(store: Store) -> None:
    reading = Reading(store, "demo")
    ids = [info.id for infos in reading.all_infos() for info in infos]
    random.Random(2).shuffle(ids)
    ids.insert(5, ObjectId(bytes(20)))
    for room in ROOMS:
        decoding = reading.decoding(ids, room=room, large=500)
        messages = list(iter(decoding.next, None))
        large = reading.view.read_positions(decoding.large_places) if reading.view else []
        got = told(messages) + [(one.id, one.type, one.data) for one in large]
        plain = [
            (oid, one.type if one else 0, one.data if one else b"")
            for oid, one in zip(ids, reading.objects(ids), strict=True)
        ]
        assert sorted(got) == sorted(plain)
        assert any(large)


def test_an_empty_pool_has_nothing() -> None:
    decoding = Decoding(None, [ObjectId(bytes(20))], [-1], room=1_024, large=1)
    assert told(list(iter(decoding.next, None))) == [(bytes(20), 0, b"")]


def test_bases_of_other_segments_are_asked_for() -> None:
    """A thin pack's deltas decode with their bases as with decode_many."""
    found = 0
    for pack in packs():
        ingest = resolve(pack)
        for number in range(ingest.layout(target=300, most=700, count_most=3)):
            block = ingest.segment(number, bytes(64))
            names = _segment.externals_of(block, 20)
            if not names:
                continue
            count = _segment.check(block, 20)
            places = array("q", range(count))
            made = Messages(20, 1_024)
            _, missing = made.begin(block, 0, places, 0, count, 1 << 40)
            assert set(missing) == set(names)
            with pytest.raises(BlockCorrupt):
                made.fill(block)
            objects: dict[bytes, bytes] = {}
            for other in range(number):
                before = ingest.segment(other, bytes(64))
                n = _segment.check(before, 20)
                some, _ = _segment.decode_many(before, 20, range(n), objects)
                held = zip(_segment.ids_at(before, 20, range(n)), some, strict=True)
                objects |= {oid: one for oid, one in held if one is not None}
            if not set(names) <= set(objects):
                continue
            assert made.begin(block, 0, places, 0, count, 1 << 40, objects) == ([], [])
            out = []
            while not made.fill(block):
                out.append(made.take())
            out.append(made.take())
            plain, _ = _segment.decode_many(block, 20, range(count), objects)
            assert [one for _, _, one in told(out)] == plain
            found += 1
    assert found


def blob_id(data: bytes) -> ObjectId:
    return ObjectId(hashlib.sha1(b"blob %d\0" % len(data) + data).digest())


def on_top(store: Store, name: str, before: list[bytes], mark: bytes) -> list[bytes]:
    """Upload a pack of deltas, each on another of the blobs before; returns the blobs that they make."""
    pack, out = PackMaker(), []
    for data in before:
        delta = varint(len(data)) + varint(len(data) + len(mark)) + insert(mark)
        delta += copy(0, len(data))
        pack.body += entry_header(7, len(delta)) + blob_id(data) + zlib.compress(delta)
        pack.count += 1
        out.append(mark + data)
    upload(store, name, pack)
    return out


def upload(store: Store, name: str, pack: PackMaker) -> None:
    uploading = Uploading(store, name)
    uploading.take(pack.pack())
    uploading.upload()


def test_bases_outside_are_held_a_share_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deltas on deltas on others' objects come out whole, however few of the bases are held at once."""
    store.create_repository("shares", HashKind.SHA1)
    # Too large for what a view keeps of bases.
    blobs = [b"%04d" % number + b"x" * (33_000 + number) for number in range(60)]
    first = PackMaker()
    for data in blobs:
        first.body += entry_header(3, len(data)) + zlib.compress(data)
        first.count += 1
    upload(store, "shares", first)
    second = on_top(store, "shares", blobs, b"second")
    third = on_top(store, "shares", second, b"third")
    data_of = {blob_id(data): data for data in (*blobs, *second, *third)}
    for share in (1, 100_000, 1 << 24):
        monkeypatch.setattr(pool_outside, "SHARE_BYTES", share)
        monkeypatch.setattr(pool_decoding, "SHARE_BYTES", share)
        reading = Reading(store, "shares")
        assert reading.view is not None
        names = [blob_id(data) for data in blobs]
        cut = pool_outside.shares(reading.view, names)
        assert [oid for one in cut for oid in one] == names
        assert all(sum(len(data_of[ObjectId(o)]) for o in c) <= max(share, 33_063) for c in cut)
        assert len(cut) == {1: 60, 100_000: 20, 1 << 24: 1}[share]
        decoding = reading.decoding(list(data_of), room=10_000, large=4 << 20)
        messages = []
        while some := decoding.some(2):
            messages += some
        got = told(messages)
        assert len(got) == len(data_of)
        assert {oid: data for oid, _, data in got} == data_of
        objects = reading.objects(list(data_of))
        assert [one.data for one in objects if one] == list(data_of.values())


def test_a_segment_whose_offsets_fall_is_refused() -> None:
    """No check went before: what lies between two offsets must not be taken for a length."""
    block = bytearray(max(segments(), key=lambda one: _segment.check(one, 20)))
    count = _segment.check(block, 20)
    width = block[-48 + 23] & 7 or 4
    at = int.from_bytes(block[-48:-44], "little") + count * 20 + (count // 2) * width
    for wrong in (0, (1 << 8 * width) - 1):
        block[at : at + width] = wrong.to_bytes(width, "little")
        with pytest.raises(BlockCorrupt):
            _segment.check(block, 20)
        made = Messages(20, 1_024)
        with pytest.raises(BlockCorrupt):
            made.begin(block, 0, array("q", range(count)), 0, count, 1 << 40)
