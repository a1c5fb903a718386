"""cluster verify finds what is not whole where it is durable, cluster repair mends it; receipts can be checked."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cluster.opening import Cluster
from reference.gits import git, make_history
from waiting import WAIT_S, until

from shardgit.blocks.block import BlockKind, parse_header, partition_of
from shardgit.errors import BackupCorrupt, BlockCorrupt, InvalidArgument, Refused, Unavailable
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.etcd_rows import Reference, decode_value, encode_value
from shardgit.journal.interface import Put
from shardgit.journal.records import PoolRecord
from shardgit.journal.rows import frame_row
from shardgit.node import create_store, open_store
from shardgit.oid import PoolId
from shardgit.operate import cluster_check
from shardgit.operate.block_sources import BlockFolder
from shardgit.operate.cluster_check import check_cluster
from shardgit.operate.findings import FindingKind
from shardgit.operate.gc import GcOptions, gc
from shardgit.operate.named import named_blocks
from shardgit.operate.nodes import blocks_of, move_nodes
from shardgit.operate.nodes_receipt import check_nodes_receipt, decode_nodes_receipt, receipt_of
from shardgit.operate.operation import silent_control
from shardgit.operate.receipt import encode_receipt, seal_of
from shardgit.operate.settle import settle
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from etcds import Etcds

    from shardgit.journal.interface import Row
    from shardgit.oid import BlockId
    from shardgit.operate.cluster_check import ClusterChecked
    from shardgit.service.store import Store

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(etcds: Etcds, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, etcds)
    with made.opened:
        yield made


@pytest.fixture
def store(cluster: Cluster) -> Store:
    """A node's store with one repository, its blocks on the node's disk too."""
    store = cluster.node("one").store
    work = make_history(cluster.folder / "demo", commits=30)
    some = random.Random(1)
    for number in range(6):  # so that segments are blocks of their own
        (work / f"noise{number}").write_bytes(some.randbytes(400_000))
    git(work, "add", ".")
    git(work, "commit", "-qm", "noise")
    import_repository(store, "demo", str(work))
    ids = named(store)
    until(lambda: all(blocks_of(store).tier.has_many(ids)))
    return store


def named(store: Store) -> list[BlockId]:
    return sorted(named_blocks(store, control=silent_control()).blocks)


def file_of(cluster: Cluster, block: BlockId) -> Path:
    return cluster.folder / "blocks" / "blocks" / block.hex()[:2] / block.hex()


def checked(store: Store, **words: object) -> ClusterChecked:
    """Check; a node hears a moment late that another is done with it."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            return check_cluster(store, control=silent_control(), **words)  # type: ignore[arg-type]
        except Refused as error:
            if "running already" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


def one_of(cluster: Cluster, store: Store, kind: BlockKind) -> BlockId:
    """Return a block of a kind."""
    return next(
        block
        for block in named(store)
        if parse_header(file_of(cluster, block).read_bytes()).kind is kind
    )


def forget(store: Store, block: BlockId) -> None:
    """Take a block from the node's disk."""
    blocks_of(store).tier.delete_many([block])


def test_a_whole_cluster_is_clean_and_counted(cluster: Cluster, store: Store) -> None:
    done = checked(store)
    assert done.clean
    assert done.blocks == len(named(store)) > 0
    assert done.read_bytes == sum(file_of(cluster, one).stat().st_size for one in named(store))
    assert done.rows > 3
    assert not done.replica_renewed
    quick = checked(store, listed=True)
    assert quick.clean
    assert (quick.rows, quick.blocks, quick.read_bytes) == (done.rows, done.blocks, 0)


@pytest.mark.parametrize("listed", [False, True])
def test_what_the_object_store_lost_comes_back_from_a_disk(
    cluster: Cluster, store: Store, listed: bool
) -> None:
    lost = named(store)[::2]
    for block in lost:
        file_of(cluster, block).unlink()
    found = checked(store, listed=listed)
    assert found.counts == {FindingKind.COPY: len(lost)}
    assert {one.block for one in found.findings} == {block.hex() for block in lost}
    assert all("on the disk of one" in one.what for one in found.findings)
    assert all(one.repositories == ("demo",) for one in found.findings)
    done = checked(store, mend=True, listed=listed)
    assert done.clean
    assert len(done.mended) == len(lost)
    assert checked(store).clean


def test_damaged_bytes_are_found_and_put_right(cluster: Cluster, store: Store) -> None:
    block = one_of(cluster, store, BlockKind.SEGMENT)
    data = bytearray(file_of(cluster, block).read_bytes())
    data[len(data) // 2] ^= 1
    file_of(cluster, block).write_bytes(data)
    assert checked(store, listed=True).clean  # lists tell nothing of bytes
    assert checked(store).counts == {FindingKind.BLOCK: 1}
    assert checked(store, mend=True).clean
    assert checked(store).clean


def test_what_nobody_has_is_lost_until_a_source_has_it(cluster: Cluster, store: Store) -> None:
    before = cluster.pack_of(store, "demo")
    block = one_of(cluster, store, BlockKind.SEGMENT)
    aside = cluster.folder / "aside"
    aside.mkdir()
    file_of(cluster, block).rename(aside / "block")
    forget(store, block)
    found = checked(store, mend=True)
    assert found.counts == {FindingKind.LOST: 1}
    (finding,) = found.findings
    assert "nor on any node's disk" in finding.what
    assert finding.what.startswith("segment ")
    assert finding.repositories == ("demo",)
    assert "--from" in finding.mend
    done = checked(store, mend=True, sources=[BlockFolder(aside)])
    assert done.clean
    assert "--from" in done.mended[0]
    assert cluster.pack_of(store, "demo") == before


def test_a_lost_root_is_mended_first_and_then_what_it_leads_to(
    cluster: Cluster, store: Store
) -> None:
    aside = cluster.folder / "aside"
    aside.mkdir()
    for number, block in enumerate(named(store)):
        file_of(cluster, block).rename(aside / str(number))
        forget(store, block)
    assert not checked(store).clean
    done = checked(store, mend=True, sources=[BlockFolder(aside)])
    assert done.clean
    assert checked(store).clean
    assert len(named(store)) == len(done.mended)


def test_a_lost_index_is_made_anew(cluster: Cluster, store: Store) -> None:
    before = cluster.pack_of(store, "demo")
    block = one_of(cluster, store, BlockKind.INDEX)
    file_of(cluster, block).unlink()
    forget(store, block)
    assert checked(store).counts == {FindingKind.LOST: 1}
    done = checked(store, mend=True)
    assert done.clean
    assert "made anew" in done.mended[0]
    assert block not in named(store)
    assert cluster.pack_of(cluster.node("two").store, "demo") == before


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_replica_that_differs_comes_anew(
    cluster: Cluster, store: Store, is_readable: bool
) -> None:
    two = cluster.node("two")
    journal = cluster.journal(two)
    key = b"Qx"
    framed = frame_row(key, journal.revision(), encode_value(key, b"extra"))
    environment = journal._replica.environment(journal._replica.status.generation)
    with environment.write() as transaction:
        transaction.put(key, framed if is_readable else framed[:-1] + b"?")
    assert not checked(store).replica_renewed  # it is its own that a node looks at
    done = checked(two.store)
    assert done.replica_renewed
    assert done.clean
    assert journal._replica.status.generation == 2
    assert not checked(two.store).replica_renewed


def test_damaged_rows_and_lost_values_are_told(cluster: Cluster, store: Store) -> None:
    journal = cluster.journal(cluster.nodes["one"])
    put_objects(store, "demo", [(3, b"a blob")])
    with store.journal.snapshot() as opened:
        key = next(iter(opened.range(b"S", b"T"))).key
    with journal.replica_snapshot() as snapshot:
        (stored,) = [row.value for row in snapshot.stored(key, key + b"\0")]
    reference = decode_value(key, stored)
    assert isinstance(reference, Reference)
    assert checked(store).clean
    journal.cache._bundles.delete([reference.bundle])
    found = checked(store)
    assert found.counts == {FindingKind.ROW: 1}
    assert found.findings[0].row == key.hex()
    assert "bundle" in found.findings[0].what
    assert found.findings[0].mend == "shardgit backup restore"
    store.journal.commit_sync([], [Put(b"Qx", b"row")])
    there = journal.keys.row(b"Qx")
    journal.etcd.txn(
        pb.TxnRequest(
            success=[pb.RequestOp(request_put=pb.PutRequest(key=there, value=b"\1damaged-row"))]
        )
    )
    store.journal.commit_sync([], [Put(b"Qy", b"row")])  # tells the head of it
    assert checked(store).counts == {FindingKind.ROW: 2}


def test_what_does_not_parse_is_told(cluster: Cluster, store: Store) -> None:
    segment = one_of(cluster, store, BlockKind.SEGMENT)
    with store.journal.snapshot() as snapshot:
        (row,) = snapshot.range(b"P", b"Q")
    record = PoolRecord.decode(PoolId(row.key[1:]), row.value)
    store.journal.commit_sync([], [Put(row.key, replace(record, manifest=segment).encode())])
    found = checked(store)
    assert found.counts == {FindingKind.BROKEN: 1}
    assert found.findings[0].row == row.key.hex()


def test_an_object_store_that_does_not_answer_is_no_clean_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise Unavailable("object store failed")

    monkeypatch.setattr(cluster_check, "AWAY_S", 0.0)
    monkeypatch.setattr(blocks_of(store).objects, "check_many", away)
    done = checked(store)
    assert not done.clean
    assert "object store failed" in done.stopped_by
    monkeypatch.undo()
    monkeypatch.setattr(blocks_of(store).objects, "read_sync", away)
    for block in named(store):
        forget(store, block)
    assert "object store failed" in checked(store).stopped_by


def test_what_was_found_is_told_when_the_object_store_goes_away(
    cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_check, "AWAY_S", 0.0)
    monkeypatch.setattr(cluster_check, "BATCH_BLOCKS", 1)
    first, second, *_ = named(store)
    file_of(cluster, first).unlink()
    objects = blocks_of(store).objects
    check = objects.check_many

    def checking(ids: Sequence[BlockId]) -> list[int | BlockCorrupt | None]:
        if second in ids:
            raise Unavailable("object store failed")
        return check(ids)

    monkeypatch.setattr(objects, "check_many", checking)
    done = checked(store)
    assert "object store failed" in done.stopped_by
    assert done.findings[0].block == first.hex()


def test_lists_do_not_hide_what_cannot_be_read(cluster: Cluster, store: Store) -> None:
    two = cluster.node("two").store  # has nothing of it
    put_objects(store, "demo", [(3, b"a blob")])
    with cluster.journal(cluster.nodes["one"]).replica_snapshot() as snapshot:
        (row,) = snapshot.stored(b"S", b"T")
    reference = decode_value(row.key, row.value)
    assert isinstance(reference, Reference)
    assert checked(two, listed=True).clean
    bundles = cluster.journal(cluster.nodes["one"]).cache._bundles
    data = bundles.read(reference.bundle, 0, 1 << 20)
    assert data is not None
    third = cluster.node("three").store
    bundles.delete([reference.bundle])
    assert checked(third, listed=True).counts == {FindingKind.BROKEN: 1}
    bundles.put(reference.bundle, data)
    assert checked(third, listed=True).clean

    root = one_of(cluster, store, BlockKind.MANIFEST)
    whole = file_of(cluster, root).read_bytes()
    file_of(cluster, root).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    segment = one_of(cluster, store, BlockKind.SEGMENT)
    file_of(cluster, segment).unlink()
    for block in (root, segment):
        for node in cluster.nodes.values():
            forget(node.store, block)
    found = checked(third, listed=True)
    assert {one.block for one in found.findings} == {root.hex()}
    file_of(cluster, root).write_bytes(whole)
    assert segment.hex() in {one.block for one in checked(third, listed=True).findings}


def test_a_settle_between_two_pages_hides_nothing(
    cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_check, "PAGE_ROWS", 1)
    some = random.Random(2)
    before = set(named(store))
    put_objects(store, "demo", [(3, some.randbytes(3 << 20)) for _ in range(3)])
    lost = sorted(set(named(store)) - before)
    for block in lost:
        file_of(cluster, block).unlink()
    assert lost
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "demo")
    each = cluster_check._Check._each_row
    settled: list[int] = []

    def between(check: cluster_check._Check) -> Iterator[Row]:
        for row in each(check):
            yield row
            if row.key[:1] == b"S" and not settled:
                settled.append(settle(store, record.pool) is not None)

    monkeypatch.setattr(cluster_check._Check, "_each_row", between)
    told = {one.block for one in checked(store).findings}
    assert settled == [True]
    still = set(lost) & set(named(store))  # the settle has made others of some
    assert len(still) >= 3
    assert {block.hex() for block in still} <= told


def test_a_source_that_is_damaged_is_passed_over(cluster: Cluster, store: Store) -> None:
    class Damaged:
        def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
            raise BackupCorrupt("pack of the backup is damaged", block=ids[0].hex())

    aside = cluster.folder / "aside"
    aside.mkdir()
    block = one_of(cluster, store, BlockKind.SEGMENT)
    file_of(cluster, block).rename(aside / "block")
    forget(store, block)
    assert checked(store, mend=True, sources=[Damaged()]).counts == {FindingKind.LOST: 1}
    assert checked(store, mend=True, sources=[Damaged(), BlockFolder(aside)]).clean


def test_a_node_that_does_not_answer_is_named(cluster: Cluster, store: Store) -> None:
    two = cluster.node("two")  # it serves no peers here
    move_nodes(store, {two.number: 1.0}, control=silent_control())
    block = one_of(cluster, store, BlockKind.SEGMENT)
    file_of(cluster, block).unlink()
    forget(store, block)
    found = checked(store)
    assert found.counts == {FindingKind.LOST: 1}
    assert "any node that answered; two did not" in found.findings[0].what


def test_what_gc_deletes_meanwhile_is_no_finding_and_stays_away(
    cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = one_of(cluster, store, BlockKind.SEGMENT)
    objects = blocks_of(store).objects
    check = objects.check_many

    def checking(ids: Sequence[BlockId]) -> list[int | BlockCorrupt | None]:
        if doomed in ids and file_of(cluster, doomed).exists():  # between the rows and the look
            Repositories(store).delete("demo")
            options = GcOptions(grace_s=0, log_retention_s=0, orphan_age_s=0, wait_s=20)
            for _ in range(2):
                gc(store, options, control=silent_control())
            file_of(cluster, doomed).unlink(missing_ok=True)
        return check(ids)

    monkeypatch.setattr(objects, "check_many", checking)
    done = checked(store, mend=True)
    assert done.clean
    assert done.mended == ()
    assert not file_of(cluster, doomed).exists()


def test_one_machine_is_refused(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store, pytest.raises(Refused):
        check_cluster(store, control=silent_control())


# -- receipts


def test_a_receipt_holds_until_what_it_lists_is_lost(cluster: Cluster, store: Store) -> None:
    two = cluster.node("two")
    done = move_nodes(store, {two.number: 1.0}, control=silent_control())
    receipt = decode_nodes_receipt(encode_receipt(receipt_of(store, done)))
    assert receipt.moved == done
    assert done.blocks > 0
    assert {one.target for one in receipt.partitions} == {two.number}
    check = check_nodes_receipt(two.store, receipt, control=silent_control())
    assert check.ok
    assert (check.partitions, check.blocks) == (len(receipt.partitions), done.blocks)
    assert check.unchanged == check.partitions

    with pytest.raises(InvalidArgument, match="changed"):
        decode_nodes_receipt(encode_receipt(replace(receipt, ended_ms=receipt.ended_ms + 1)))
    other = replace(receipt, store="00" * 16)
    with pytest.raises(Refused, match="another cluster"):
        check_nodes_receipt(
            store, replace(other, checksum=seal_of(other)), control=silent_control()
        )

    moved = [
        block
        for block in named(store)
        if any(block[:2] == one.partition.to_bytes(2, "big") for one in receipt.partitions)
    ]
    data = file_of(cluster, moved[0]).read_bytes()
    file_of(cluster, moved[0]).unlink()
    with pytest.MonkeyPatch.context() as patched:  # listed still, and not there
        listed = [*blocks_of(store).objects.scan_sync(), (moved[0], len(data))]
        patched.setattr(
            blocks_of(store).objects,
            "scan_sync",
            lambda low, high: iter(
                sorted(one for one in listed if low <= partition_of(one[0]) < high)
            ),
        )
        check = check_nodes_receipt(store, receipt, control=silent_control())
        assert not check.ok
        assert "lost" in check.bad[0]
    check = check_nodes_receipt(store, receipt, control=silent_control())
    assert not check.ok
    assert "lost" in check.bad[0]
    Repositories(store).delete("demo")
    checked(store, mend=True)
    check = check_nodes_receipt(store, receipt, control=silent_control())
    assert check.ok, check.bad
