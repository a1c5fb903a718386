"""What making objects may cost, and footers that nobody checked."""

from __future__ import annotations

import random
import struct
from array import array

import pytest
from fuzz.targets import resolve, segments
from reference.packs import PackMaker, copy, insert, varint

from shardgit import _segment
from shardgit._objects import Messages
from shardgit.errors import BlockCorrupt, Internal
from shardgit.v1 import object_pb2

MIB = 1 << 20
LARGE = 4 * MIB
TRAILER = 48


def block_of(pack: PackMaker) -> bytes:
    """Return the one segment that the objects of a pack fit."""
    ingest = resolve(pack.pack())
    assert ingest.layout(target=MIB, most=8 * MIB, count_most=65_535) == 1
    return ingest.segment(0, bytes(64))


def small_of(block: bytes) -> array[int]:
    count = _segment.check(block, 20)
    sizes = _segment.sizes_at(block, 20, range(count))
    return array("q", [at for at, size in enumerate(sizes) if size == 8])


def whole_copy(size: int) -> bytes:
    most = 0xFFFF00
    return b"".join(copy(at, min(most, size - at)) for at in range(0, size, most))


def chain(size: int, links: int, children: int) -> bytes:
    """Return a segment of a chain of objects of about ``size`` bytes, each with ``children`` of 8."""
    pack = PackMaker()
    ats = [pack.add(3, bytes(size))]
    for link in range(links):
        now = size + 8 * link
        ats.append(
            pack.ofs(
                ats[-1], varint(now) + varint(now + 8) + whole_copy(now) + insert(b"%08d" % link)
            )
        )
    for link, at in enumerate(ats):
        for child in range(children):
            pack.ofs(at, varint(size + 8 * link) + varint(8) + insert(b"%04d%04d" % (link, child)))
    return block_of(pack)


def data_of(messages: list[bytes]) -> bytes:
    return b"".join(object_pb2.GetObjectsResponse.FromString(one).data for one in messages)


def test_a_base_over_the_bound_is_made_once_for_all_that_hang_from_it() -> None:
    block = chain(MIB, 0, 50)
    places = small_of(block)
    for held in (0, MIB // 2, 4 * MIB):
        made = Messages(20, 1_024, held)
        made.begin(block, 0, places, 0, len(places), LARGE)
        messages = []
        while not made.fill(block):
            messages.append(made.take())
        messages.append(made.take())
        assert data_of(messages) == b"".join(b"0000%04d" % child for child in range(50))
        assert made.made == 1 + 50


@pytest.mark.parametrize(("held", "times"), [(64 * MIB, 1), (3 * MIB, 4)])
def test_links_of_a_chain_are_kept_within_the_bound(held: int, times: int) -> None:
    """What hangs from the last link comes first: what was let go of is made again, a few links at once."""
    links, children = 12, 4
    block = chain(MIB, links, children)
    places = small_of(block)
    assert len(places) == (links + 1) * children
    plain, _ = _segment.decode_many(block, 20, places)
    # With a step of a byte each fill makes one object: in between is seen what is kept.
    made = Messages(20, 1_024, held, step=1)
    made.begin(block, 0, places, 0, len(places), LARGE)
    messages = []
    most = fills = 0
    while not made.fill(block):
        messages.append(made.take())
        most = max(most, made.held)
        fills += 1
    messages.append(made.take())
    assert data_of(messages) == b"".join(one or b"" for one in plain)
    assert links + 1 <= made.made - len(places) <= times * (links + 1)
    assert MIB < most <= held
    assert b"" in messages  # a base alone tells nothing
    assert fills + 1 >= made.made
    made.begin(block, 0, places, 0, 0, LARGE)
    assert made.held == 0


def test_the_last_of_a_long_chain_takes_many_fills() -> None:
    """However long its chain, one object does not keep a call for longer than its step."""
    block = chain(MIB // 4, 40, 1)
    places = small_of(block)[-1:]
    plain, _ = _segment.decode_many(block, 20, places)
    made = Messages(20, 1_024, 0, step=MIB)
    made.begin(block, 0, places, 0, 1, LARGE)
    fills = 1
    while not made.fill(block):
        before = made.made
        assert made.take() == b""
        assert made.made == before
        fills += 1
    assert data_of([made.take()]) == plain[0]
    assert made.made <= 42
    assert fills >= made.made // 5


@pytest.mark.parametrize("step", [1, 3_000])
@pytest.mark.parametrize("held", [0, 200, MIB])
def test_small_steps_give_what_one_call_gives(step: int, held: int) -> None:
    for block in segments():
        count = _segment.check(block, 20)
        if _segment.externals_of(block, 20):
            continue
        plain, _ = _segment.decode_many(block, 20, range(count))
        places = array("q", [at for at in range(count) for _ in range(2)])
        made = Messages(20, 1_100, held, step)
        made.begin(block, 0, places, 0, len(places), 1 << 40)
        messages = []
        while not made.fill(block):
            messages.append(made.take())
        messages.append(made.take())
        assert data_of(messages) == b"".join((one or b"") * 2 for one in plain)


def read_all(block: bytes | bytearray, count: int, then: bytes | bytearray | None = None) -> None:
    """Make all of a segment, as it was begun and ``then`` is; it may say that it cannot."""
    made = Messages(20, 1_024)
    places = array("q", range(count))
    _, missing = made.begin(block, 0, places, 0, count, 1 << 40)
    if missing:
        made.begin(block, 0, places, 0, count, 1 << 40, dict.fromkeys(missing, b"base"))
    while not made.fill(block if then is None else then):
        made.take()
    made.take()


def test_a_damaged_footer_that_nobody_checked_is_told() -> None:
    chance = random.Random(11)
    blocks = segments()
    told = 0
    for _ in range(3_000):
        block = chance.choice(blocks)
        count = _segment.check(block, 20)
        ids_end = _segment.entries_span(block, 20)[1] + 20 * count
        wrong = bytearray(block)
        for _ in range(chance.choice((1, 1, 3))):
            wrong[chance.randrange(ids_end, len(block))] = chance.choice(
                (0, 255, chance.randrange(256))
            )
        # Another number of objects, or a segment in parts, is not what the manifest said.
        for begun, then in ((wrong, None), (block, wrong)):
            try:
                read_all(begun, count, then)
            except BlockCorrupt:
                told += 1
            except (Internal, IndexError):
                pass
        for at in range(count):
            try:
                _segment.entry_at(wrong, 20, at)
                _segment.decode_many(wrong, 20, [at])
            except BlockCorrupt:
                told += 1
            except (Internal, IndexError):
                break
    assert told > 1_000


def with_size(block: bytes, row: int) -> bytes:
    """Return a segment of the same objects whose footer has 4 bytes for each size, the first one ``row``."""
    count = _segment.check(block, 20)
    end = _segment.entries_span(block, 20)[1]
    trailer = bytearray(block[-TRAILER:])
    width = trailer[23] & 7
    sizes = [row, *_segment.sizes_at(block, 20, range(count))[1:]]
    trailer[23] = width | 4 << 3
    head = block[: end + count * (20 + width)]
    ext = block[end + count * (20 + width + (block[-TRAILER + 23] >> 3)) : -TRAILER]
    return head + struct.pack(f"<{count}I", *sizes) + ext + trailer


def test_a_size_that_the_footer_lacks_is_told() -> None:
    for block in segments():
        count = _segment.check(block, 20)
        first = _segment.sizes_at(block, 20, [0])[0]
        same = with_size(block, first)
        assert _segment.check(same, 20) == count
        assert _segment.decode_many(same, 20, range(count)) == _segment.decode_many(
            block, 20, range(count)
        )
        for row in (0x80000000, 0x80000005, 0xFFFFFFFF):
            wrong = with_size(block, row)
            with pytest.raises(BlockCorrupt):
                _segment.check(wrong, 20)
            made = Messages(20, 1_024)
            assert made.begin(wrong, 0, array("q", [0]), 0, 1, 1 << 40) == ([0], [])
            with pytest.raises(BlockCorrupt):
                made.begin(wrong, 0, array("q", [0]), 0, 1, (1 << 64) - 1)
            with pytest.raises(Internal):
                made.fill(wrong)
            with pytest.raises(BlockCorrupt):
                _segment.decode_many(wrong, 20, [0])


def test_messages_go_on_where_memory_was_short() -> None:
    memory = pytest.importorskip("_testcapi")
    block = max(segments(), key=len)
    count = _segment.check(block, 20)
    places = array("q", range(count))
    failed = 0
    for number in range(8):
        made = Messages(20, 2_000)
        made.begin(block, 0, places, 0, count, 1 << 40)
        assert not made.fill(block)
        before, message = made.objects, b""
        memory.set_nomemory(number, number + 1)
        try:
            message = made.take()
        except MemoryError:
            failed += 1
        finally:
            memory.remove_mem_hooks()
        # All of the message is there, or nothing of it is.
        assert made.objects == (0 if message else made.objects)
        assert made.objects in (0, before)
        if made.objects:
            message = made.take()
        if message:
            sizes = object_pb2.GetObjectsResponse.FromString(message).sizes
            assert len(sizes) == before
        while not made.fill(block):
            assert made.take()
        made.take()
    assert failed
