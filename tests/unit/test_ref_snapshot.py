"""Ref snapshots: what goes in comes out, and only the pages needed are read."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgit.blocks.block import HEADER_SIZE, block_id, new_header, parse_header
from shardgit.blocks.memory import MemoryBlocks
from shardgit.errors import DataLoss
from shardgit.oid import BlockId, HashKind, ObjectId, PoolId
from shardgit.refs import page as page_module
from shardgit.refs.page import PageWriter, take
from shardgit.refs.ref import Ref
from shardgit.refs.snapshot import NewSnapshot, RefSnapshot, fold, new_snapshot
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
)
def test_a_snapshot_holds_what_went_in_and_folds_like_a_dict(
    data: st.DataObject, kind: HashKind, page_bytes: int, workers: Workers
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "PAGE_BYTES", page_bytes)
        patch.setattr("shardgit.refs.snapshot.PAGE_BYTES", page_bytes)
        refs = data.draw(refs_of(kind.size))
        blocks = MemoryBlocks(workers)
        made = new_snapshot(refs, pool=POOL, hash_kind=kind)
        assert made.count == len(refs)
        if not refs:
            assert made == NewSnapshot(None, [], 0)
            return
        snapshot = opened(blocks, made)
        truth = {ref.name: ref for ref in refs}
        assert list(snapshot.range(b"", b"\xff" * 400)) == refs
        low, high = sorted([data.draw(NAMES), data.draw(NAMES)])
        assert list(snapshot.range(low, high)) == [ref for ref in refs if low <= ref.name < high]
        for name in [*truth, low, high]:
            assert snapshot.get(name) == truth.get(name)
        changes = data.draw(refs_of(kind.size))
        dropped = data.draw(st.sets(st.sampled_from(sorted(truth)), max_size=20))
        merged = {ref.name: ref for ref in changes} | {name: Ref(name) for name in dropped}
        ordered = [merged[name] for name in sorted(merged)]
        folded = fold(snapshot, ordered, pool=POOL)
        truth |= merged
        left = [truth[name] for name in sorted(truth) if truth[name].stands]
        assert folded.count == len(left)
        if left:
            assert list(opened(blocks, folded).range(b"", b"\xff" * 400)) == left
        else:
            assert folded.root is None


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


def test_a_fold_writes_only_the_pages_that_change(workers: Workers) -> None:
    blocks = MemoryBlocks(workers)
    refs = many(60_000)
    snapshot = opened(blocks, new_snapshot(refs, pool=POOL, hash_kind=HashKind.SHA1))
    change = Ref(b"refs/pull/31234/head", oid(7))
    folded = fold(snapshot, [change, Ref(b"refs/zzz", oid(9))], pool=POOL)
    assert len(folded.blocks) <= 4  # two pages (one of them may split) and the root
    after = opened(blocks, folded)
    assert len({page.id for page in after.pages} & {page.id for page in snapshot.pages}) > 3
    assert after.get(change.name) == change
    assert folded.count == len(refs) + 1
    assert snapshot.get(change.name) == Ref(change.name, oid(31_235))


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
    writer = PageWriter()
    for ref in [
        *many(100),
        Ref(b"refs/sym", symbolic=b"refs/x"),
        Ref(b"refs/t", oid(1), None, oid(2)),
    ]:
        writer.add(ref)
    whole = writer.block(POOL, HashKind.SHA1)
    refused = 0
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(HEADER_SIZE, len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(HEADER_SIZE, len(data)) :]
            data[8:16] = len(data).to_bytes(8, "little")
        try:
            take(memoryview(bytes(data)), b"", b"\xff", 1_000)
        except DataLoss:
            refused += 1
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
            snapshot.page(0)


@pytest.mark.slow
def test_300_000_refs_are_written_found_and_listed(workers: Workers) -> None:
    blocks = Counting(workers)
    refs = many(300_000)
    snapshot = opened(blocks, new_snapshot(refs, pool=POOL, hash_kind=HashKind.SHA1))
    assert list(snapshot.range(b"", b"\xff")) == refs
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
