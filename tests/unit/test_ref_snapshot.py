"""Ref snapshots: what goes in comes out, and only the pages needed are read."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.refpages import lines_of, parse_page

from shardgit._refpage import PageWriter, render, take
from shardgit.blocks.block import HEADER_SIZE, block_id, new_header, parse_header
from shardgit.blocks.memory import MemoryBlocks
from shardgit.errors import BlockCorrupt, DataLoss
from shardgit.journal.interface import END
from shardgit.kept import Kept
from shardgit.oid import BlockId, HashKind, ObjectId, PoolId
from shardgit.refs import snapshot as snapshot_module
from shardgit.refs.page import changes_of_refs, page_block, page_of
from shardgit.refs.ref import Ref, encode_body
from shardgit.refs.snapshot import NewSnapshot, RefSnapshot, new_snapshot
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.blocks.interface import BlockStore

T = TypeVar("T")
POOL = PoolId(b"p" * 16)


class Counting(MemoryBlocks):
    """Remembers which blocks were read."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(workers)
        self.read: list[BlockId] = []

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        self.read.append(block)
        return super().use(block, job)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def oid(n: int, size: int = 20) -> ObjectId:
    return ObjectId(n.to_bytes(size, "big"))


def opened(blocks: BlockStore, made: NewSnapshot) -> RefSnapshot:
    assert made.root is not None
    blocks.put_many_sync(made.blocks)
    return RefSnapshot.open(blocks, made.root)


def fold(old: RefSnapshot, changes: list[Ref], *, count: int) -> NewSnapshot:
    return old.with_changes(changes_of_refs(changes, old.hash_kind), count=count, pool=POOL)


def many(count: int) -> list[Ref]:
    return sorted(
        (Ref(b"refs/pull/%d/head" % n, oid(n + 1)) for n in range(count)),
        key=lambda ref: ref.name,
    )


NAMES = st.one_of(
    st.text("ab/", min_size=1, max_size=6).map(str.encode), st.binary(min_size=1, max_size=300)
)


@st.composite
def refs_of(draw: st.DrawFn, size: int) -> list[Ref]:
    names = sorted(draw(st.sets(NAMES, max_size=60)))
    out = []
    for name in names:
        target = ObjectId(draw(st.binary(min_size=size, max_size=size)))
        match draw(st.integers(0, 2)):
            case 0:
                out.append(Ref(name, target))
            case 1:
                out.append(Ref(name, target, None, ObjectId(target[::-1])))
            case _:
                out.append(Ref(name, symbolic=draw(NAMES)))
    return out


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(HashKind),
    page_bytes=st.sampled_from([400, 2_000, 1 << 18]),
    overlay_bytes=st.sampled_from([0, 500, 1 << 18]),
    alone_bytes=st.sampled_from([0, 1 << 14]),
)
def test_a_snapshot_holds_what_went_in_and_changes_like_a_dict(
    data: st.DataObject,
    kind: HashKind,
    page_bytes: int,
    overlay_bytes: int,
    alone_bytes: int,
    workers: Workers,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_module, "PAGE_BYTES", page_bytes)
        patch.setattr(snapshot_module, "OVERLAY_BYTES", overlay_bytes)
        patch.setattr(snapshot_module, "ALONE_BYTES", alone_bytes)
        refs = data.draw(refs_of(kind.size))
        blocks = MemoryBlocks(workers)
        made = new_snapshot(refs, pool=POOL, hash_kind=kind)
        assert made.count == len(refs)
        truth = {ref.name: ref for ref in refs}
        snapshot = (
            opened(blocks, made) if made.root is not None else RefSnapshot.empty(blocks, kind)
        )
        kept = Kept(1 << 20)
        for _ in range(data.draw(st.integers(1, 4))):
            left = [truth[name] for name in sorted(truth)]
            assert list(snapshot.range(b"", END)) == left
            assert snapshot.count == len(left)
            low, high = sorted([data.draw(NAMES), data.draw(NAMES)])
            loose = data.draw(refs_of(kind.size))
            over = truth | {ref.name: ref for ref in loose}
            for changes, shown in (([], truth), (loose, over)):
                inside = [shown[name] for name in sorted(shown) if low <= name < high]
                assert list(snapshot.range(low, high, _between(changes, kind))) == inside
                for _ in range(2):  # the second time from what is kept, where there is any
                    assert _rendered(snapshot, low, high, changes, kept) == _lines(inside)
            for name in [*truth, low, high]:
                assert snapshot.get(name) == truth.get(name)
            asked = sorted({*over, low, high, *(name[:-1] for name in over)} - {b""})
            found = snapshot.firsts_of(
                [(name, name + b"\0") for name in asked], _between(loose, kind)
            )
            assert found == [over.get(name) for name in asked]
            ranges = list(pairwise(asked))
            assert snapshot.firsts_of(ranges, _between(loose, kind)) == [
                next((over[name] for name in sorted(over) if first <= name < last), None)
                for first, last in ranges
            ]
            dropped = data.draw(st.sets(st.sampled_from(sorted(truth) or [b"x"]), max_size=20))
            merged = {ref.name: ref for ref in loose} | {name: Ref(name) for name in dropped}
            truth = {name: ref for name, ref in (truth | merged).items() if ref.stands}
            ordered = [merged[name] for name in sorted(merged)]
            made = fold(snapshot, ordered, count=len(truth))
            assert made.count == len(truth)
            if made.root is None:
                assert not truth
                return
            snapshot = opened(blocks, made)


def _between(changes: list[Ref], kind: HashKind) -> Callable[[bytes, bytes], bytes | None]:
    return lambda low, high: changes_of_refs(
        (ref for ref in changes if low <= ref.name < high), kind
    )


def _rendered(
    snapshot: RefSnapshot, low: bytes, high: bytes, changes: list[Ref], kept: Kept
) -> list[bytes | Ref]:
    """Return what is rendered, asked for anew behind each piece."""
    out: list[bytes | Ref] = [b""]
    start: bytes | None = low
    while start is not None and start < high:
        loose = _between(changes, snapshot.hash_kind)
        some = next(snapshot.render(start, high, loose, v0=False, peel=True, kept=kept), None)
        assert some is not None
        assert isinstance(out[-1], bytes)
        out[-1] += some.lines
        if some.symbolic is not None:
            out += [some.symbolic, b""]
        start = some.next
    return out


def _lines(refs: list[Ref]) -> list[bytes | Ref]:
    out: list[bytes | Ref] = [b""]
    for ref in refs:
        if ref.symbolic is not None:
            out += [ref, b""]
        else:
            assert isinstance(out[-1], bytes)
            out[-1] += lines_of([ref], v0=False, peel=True)
    return out


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(HashKind), page_bytes=st.sampled_from([300, 1 << 18]))
def test_pages_are_as_the_format_says(data: st.DataObject, kind: HashKind, page_bytes: int) -> None:
    refs = data.draw(refs_of(kind.size))
    writer = PageWriter(kind.size, page_bytes)
    for ref in refs:
        writer.add(ref.name, encode_body(ref))
    parsed: list[Ref] = []
    for page, count, first in writer.pages():
        some = parse_page(page, kind.size)
        assert (len(some), some[0].name) == (count, first)
        assert len(page) + HEADER_SIZE <= page_bytes or count == 1
        direct = [ref for ref in some if ref.symbolic is None]
        drawn = lines_of(direct, v0=True, peel=True)
        if direct == some:
            assert render(page, None, kind.size, b"", END, v0=True, peel=True)[0] == drawn
        parsed += some
    assert parsed == refs


def test_a_lookup_reads_one_page_and_a_prefix_the_pages_it_spans(workers: Workers) -> None:
    blocks = Counting(workers)
    refs = many(60_000)
    snapshot = opened(blocks, new_snapshot(refs, pool=POOL, hash_kind=HashKind.SHA1))
    assert len(snapshot.pages) > 5
    blocks.read.clear()
    assert snapshot.get(b"refs/pull/31234/head") == Ref(b"refs/pull/31234/head", oid(31_235))
    assert snapshot.get(b"refs/pull/99999999/head") is None
    assert len(blocks.read) == 2
    blocks.read.clear()
    prefix = b"refs/pull/4123"
    found = list(snapshot.range(prefix, b"refs/pull/4124"))
    assert found == [ref for ref in refs if ref.name.startswith(prefix)]
    assert len(set(blocks.read)) <= 2


def test_a_change_writes_the_root_or_the_pages_that_change(workers: Workers) -> None:
    blocks = MemoryBlocks(workers)
    refs = many(60_000)
    snapshot = opened(blocks, new_snapshot(refs, pool=POOL, hash_kind=HashKind.SHA1))
    change = Ref(b"refs/pull/31234/head", oid(7))
    made = fold(snapshot, [change, Ref(b"refs/zzz", oid(9))], count=60_001)
    assert [len(data) < 2_000 for _, data in made.blocks] == [True]
    after = opened(blocks, made)
    assert after.pages == snapshot.pages
    assert after.get(change.name) == change
    many_changes = [Ref(ref.name, oid(9)) for ref in refs if ref.name.startswith(b"refs/pull/41")]
    assert len(many_changes) > 1_000
    folded = fold(after, many_changes, count=60_001)
    assert folded.count == 60_001
    later = opened(blocks, folded)
    assert later.overlay is not None
    more = [Ref(ref.name, oid(8)) for ref in refs if ref.name.startswith(b"refs/pull/4")]
    last = opened(blocks, fold(later, more, count=60_001))
    assert last.overlay is None
    assert len({page.id for page in last.pages} & {page.id for page in snapshot.pages}) >= 3
    assert last.get(change.name) == change
    assert last.get(b"refs/pull/4/head") == Ref(b"refs/pull/4/head", oid(8))
    assert last.get(b"refs/zzz") == Ref(b"refs/zzz", oid(9))
    assert snapshot.get(change.name) == Ref(change.name, oid(31_235))


def test_a_few_refs_lie_in_the_root_alone(workers: Workers) -> None:
    blocks = MemoryBlocks(workers)
    empty = RefSnapshot.empty(blocks, HashKind.SHA1)
    made = fold(empty, [*many(50), Ref(b"refs/z")], count=50)
    assert len(made.blocks) == 1
    snapshot = opened(blocks, made)
    assert snapshot.pages == ()
    assert list(snapshot.range(b"", END)) == many(50)
    assert snapshot.get(b"refs/z") is None


def test_a_root_of_the_first_form_is_read(workers: Workers) -> None:
    blocks = MemoryBlocks(workers)
    made = new_snapshot(many(20_000), pool=POOL, hash_kind=HashKind.SHA1)
    root = dict(made.blocks)[made.root or BlockId(b"")]
    payload = b"SGRR" + root[HEADER_SIZE + 4 : HEADER_SIZE + 16] + root[HEADER_SIZE + 20 :]
    head = parse_header(root)
    old = new_header(head.kind, head.hash_kind, POOL, HEADER_SIZE + len(payload)) + payload
    blocks.put_many_sync([*made.blocks, (block_id(old), old)])
    snapshot = RefSnapshot.open(blocks, block_id(old))
    assert list(snapshot.range(b"", END)) == many(20_000)
    assert snapshot.get(many(20_000)[77].name) == many(20_000)[77]


def test_names_share_prefixes(workers: Workers) -> None:
    made = new_snapshot(many(60_000), pool=POOL, hash_kind=HashKind.SHA1)
    assert sum(len(data) for _, data in made.blocks) < 32 * 60_000


def test_a_missing_page_or_root_is_data_loss_and_not_a_missing_ref(workers: Workers) -> None:
    blocks = MemoryBlocks(workers)
    made = new_snapshot(many(10), pool=POOL, hash_kind=HashKind.SHA1)
    snapshot = opened(blocks, made)
    blocks.delete_many_sync([snapshot.pages[0].id])
    with pytest.raises(DataLoss):
        snapshot.get(b"refs/pull/1/head")
    assert made.root is not None
    blocks.delete_many_sync([made.root])
    with pytest.raises(DataLoss):
        RefSnapshot.open(blocks, made.root)


def test_damaged_pages_and_roots_give_one_typed_error_or_refs(workers: Workers) -> None:
    chance = random.Random(1)
    refs = [
        *many(100),
        Ref(b"refs/sym", symbolic=b"refs/x"),
        Ref(b"refs/t", oid(1), None, oid(2)),
    ]
    page = changes_of_refs(sorted(refs, key=lambda ref: ref.name), HashKind.SHA1)
    assert page is not None
    whole = page_block(page, POOL, HashKind.SHA1)
    refused = 0
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(HEADER_SIZE, len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(HEADER_SIZE, len(data)) :]
            data[8:16] = len(data).to_bytes(8, "little")
        results = []
        for job in (_taken, _drawn, _merged):
            try:
                results.append(job(page_of(memoryview(bytes(data)), len(refs))))
            except BlockCorrupt:
                results.append(-1)
        assert (results[0] == -1) == (results[2] == -1)
        refused += results[0] == -1
    assert refused > 1_000
    made = new_snapshot(many(30_000), pool=POOL, hash_kind=HashKind.SHA1)
    root = dict(made.blocks)[made.root or BlockId(b"")]
    for _ in range(500):
        payload = bytearray(root[HEADER_SIZE:])
        payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
        del payload[len(payload) - chance.randrange(2) :]
        head = parse_header(root)
        length = HEADER_SIZE + len(payload)
        rotten = new_header(head.kind, head.hash_kind, POOL, length) + payload
        blocks = MemoryBlocks(workers)
        blocks.put_many_sync([(block_id(rotten), rotten)])
        try:
            snapshot = RefSnapshot.open(blocks, block_id(rotten))
        except DataLoss:
            continue
        with pytest.raises(DataLoss):  # no page is there
            list(snapshot.range(b"", END))


def _taken(page: memoryview) -> int:
    return len(take(page, None, 20, b"", END, 1_000, Ref)[0])


def _drawn(page: memoryview) -> int:
    return len(render(page, page, 20, b"", END, v0=True, peel=True)[0])


def _merged(page: memoryview) -> int:
    writer = PageWriter(20, 1 << 20)
    writer.merge(page, None, b"", END)
    return sum(count for _, count, _ in writer.pages())


@pytest.mark.slow
def test_300_000_refs_are_written_found_and_listed(workers: Workers) -> None:
    blocks = Counting(workers)
    refs = many(300_000)
    snapshot = opened(blocks, new_snapshot(refs, pool=POOL, hash_kind=HashKind.SHA1))
    assert list(snapshot.range(b"", END)) == refs
    blocks.read.clear()
    assert [ref.name for ref in snapshot.range(b"refs/pull/29", b"refs/pull/290")] == [
        b"refs/pull/29/head"
    ]
    assert len(set(blocks.read)) == 1
    assert len(blocks.read) < 3


def test_a_ref_longer_than_a_shared_prefix_can_say(workers: Workers) -> None:
    names = sorted(b"refs/" + b"x" * 470 + os.urandom(2).hex().encode() for _ in range(40))
    refs = [Ref(name, oid(n + 1)) for n, name in enumerate(dict.fromkeys(names))]
    snapshot = opened(MemoryBlocks(workers), new_snapshot(refs, pool=POOL, hash_kind=HashKind.SHA1))
    assert [snapshot.get(ref.name) for ref in refs] == refs
