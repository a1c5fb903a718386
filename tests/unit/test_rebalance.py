"""Moves between shards: what moves, what stays readable, what a receipt tells, going back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from threading import Lock
from typing import TYPE_CHECKING

import pytest
from moving import check_whole, full_store, opened, parts, placed

from shardgit import faultpoints
from shardgit.console.gauges import REGISTRY, tell_store
from shardgit.desk.surveying import survey
from shardgit.errors import DataLoss, InvalidArgument, Refused, ShardMissing, Stopped
from shardgit.journal.interface import Put
from shardgit.journal.records import RING_KEY
from shardgit.journal.uploads import UploadRecord, upload_key
from shardgit.oid import HashKind, RepositoryId
from shardgit.operate import strays
from shardgit.operate.membership import add_shard, remove_shard, set_weight
from shardgit.operate.operation import Control, running, silent_control
from shardgit.operate.planning import plan_ring
from shardgit.operate.rebalance import KIND, abort, rebalance, status
from shardgit.operate.receipt import check_receipt, decode_receipt, encode_receipt, receipt_of
from shardgit.operate.strays import sweep
from shardgit.ring.ring import Phase, Ring

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from moving import Blocks

    from shardgit.operate.rebalance import Rebalance
    from shardgit.progress import Progress
    from shardgit.service.store import Store

CALM = silent_control()


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    return parts(300)


def move(store: Store) -> Rebalance:
    return rebalance(store, control=CALM, keep_s=0)


def told_moving(store: Store) -> float | None:
    """Return the partitions that /metrics says are on their way."""
    tell_store(survey(store))
    return REGISTRY.get_sample_value("shardgit_ring_moving_partitions")


def stopped_at(point: str, work: Callable[[Control], object], *, count: int = 1) -> None:
    """Run an operation that is told to stop at a named point."""
    control = Control()
    left = [count]

    def hook(name: str) -> None:
        if name == point:
            left[0] -= 1
            if left[0] == 0:
                control.stop()

    with faultpoints.listening(hook), pytest.raises(Stopped):
        work(control)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_shard_joins_and_another_leaves(tmp_path: Path, blocks: Blocks, replicas: int) -> None:
    folder = full_store(tmp_path / "s", blocks, replicas=replicas)
    with opened(folder) as store:
        check_whole(store, blocks)
        joined = add_shard(store, zone=7)
        assert (joined.id, joined.zone, joined.weight) == (3, 7, 1.0)
        assert placed(store)[3] == set()
        done = move(store)
        assert (done.state, store.routed.ring.phase) == ("done", Phase.SETTLED)
        assert done.epochs == tuple(range(done.epochs[0], done.epochs[0] + 4))
        check_whole(store, blocks)
        assert len(placed(store)[3]) > len(blocks) * replicas / 4 * 0.8
        set_weight(store, 0, 0.0)
        with pytest.raises(Refused, match="drain it"):
            remove_shard(store, 0)
        move(store)
        check_whole(store, blocks)
        remove_shard(store, 0)
        check_whole(store, blocks)
        assert sorted(store.routed.shards) == [1, 2, 3]
        assert list((folder / "shards" / "000").iterdir()) == []
    with opened(folder) as store:
        check_whole(store, blocks)


def test_no_more_moves_than_must_and_loads_follow_weights(tmp_path: Path) -> None:
    blocks = parts(3_000, most=3_000)
    folder = full_store(tmp_path / "s", blocks, shards=4)
    with opened(folder) as store:
        add_shard(store)
        done = move(store)
        assert 0 < done.bytes <= (1 / 5 + 0.02) * done.stored_bytes
        store.routed.refresh()
        for weights in ({0: 2.0, 1: 0.5}, {4: 0.0}):
            for number, weight in weights.items():
                set_weight(store, number, weight)
            move(store)
            live = {s.number: s.weight for s in store.routed.ring.shards}
            sizes = dict.fromkeys(live, 0)
            for number, shard in store.routed.shards.items():
                sizes[number] = sum(size for _, size in shard.scan_sync())
            total, weight = sum(sizes.values()), sum(live.values())
            for number, size in sizes.items():
                assert abs(size - total * live[number] / weight) <= 0.05 * total / len(live)
        check_whole(store, blocks)


def test_nothing_moves_where_nothing_changed(tmp_path: Path, blocks: Blocks) -> None:
    with opened(full_store(tmp_path / "s", blocks)) as store:
        move(store)
        before = placed(store)
        done = move(store)
        assert (done.state, done.blocks, done.bytes) == ("done", 0, 0)
        assert placed(store) == before
        assert receipt_of(store).partitions == ()


def test_what_is_put_under_an_old_ring_is_put_again_under_the_new_one(tmp_path: Path) -> None:
    blocks = parts(40)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        add_shard(store)
        after = plan_ring(store, control=CALM).after
        copying = store.routed.ring.towards(after.table)
        rings = iter([copying, copying.moved(), copying.moved().settled()])

        turn = Lock()

        def hook(name: str) -> None:
            """Let another process change the ring at the last moment."""
            if name == "shard.after_put":
                with turn:  # shards are written side by side
                    if (ring := next(rings, None)) is not None:
                        store.journal.commit_sync([], [Put(RING_KEY, ring.encode())])

        fresh = parts(12, seed=2)
        with faultpoints.listening(hook):
            store.blocks.put_many_sync(list(fresh.items()))
        assert store.routed.ring.phase is Phase.SETTLED
        for block, data in fresh.items():
            (home,) = after.shards_of(int.from_bytes(block[:2], "big"))
            assert store.routed.shards[home].read_sync(block) == data
        moved = [b for b in blocks if store.blocks.get_many_sync([b]) == [None]]
        assert moved  # nobody has copied them, as the copies of the test's own puts show
        sweep(store, CALM)
        check_whole(store, blocks | fresh)


def test_a_look_beside_a_commit_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(full_store(tmp_path / "s", parts(10))) as store:
        now = store.journal.revision()
        with monkeypatch.context() as early:
            # LMDB tells the number of a commit under way before snapshots show what it wrote.
            early.setattr(store.journal, "revision", lambda: now + 1)
            assert not store.routed.refresh()
        ring = replace(store.routed.ring, epoch=store.routed.ring.epoch + 1)
        assert store.journal.commit_sync([], [Put(RING_KEY, ring.encode())]) == now + 1
        assert store.routed.refresh()
        assert store.routed.ring.epoch == ring.epoch


PUTS = """
import sys
from pathlib import Path
from moving import opened, parts

with opened(Path(sys.argv[1])) as store:
    print("open", flush=True)
    sys.stdin.readline()
    fresh = parts(60, seed=5)
    store.blocks.put_many_sync(list(fresh.items()))
    assert store.blocks.get_many_sync(list(fresh)) == list(fresh.values())
    store.blocks.look_around()
"""


def test_a_process_that_slept_takes_the_next_shard_of_a_number_for_another(tmp_path: Path) -> None:
    blocks, fresh = parts(40), parts(60, seed=5)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        set_weight(store, 2, 0.0)
        move(store)
        with subprocess.Popen(
            [sys.executable, "-c", PUTS, str(tmp_path / "s")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            remove_shard(store, 2)
            assert add_shard(store, tmp_path / "elsewhere").id == 2
            move(store)
            other.communicate("go\n", timeout=60)
        assert other.returncode == 0
        for block, data in fresh.items():
            (home,) = store.routed.ring.shards_of(int.from_bytes(block[:2], "big"))
            assert store.routed.shards[home].read_sync(block) == data
        sweep(store, CALM)  # what went by the old ring first
        check_whole(store, blocks | fresh)


def test_a_reader_with_an_old_ring_finds_what_has_moved(tmp_path: Path, blocks: Blocks) -> None:
    with opened(full_store(tmp_path / "s", blocks)) as store:
        stale = store.routed._routes
        set_weight(store, 0, 0.0)
        move(store)
        fresh = store.routed._routes
        store.routed._routes = stale
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
        assert store.routed.ring == fresh.ring
        store.routed._routes = stale
        assert store.blocks.has_many_sync(list(blocks)) == [True] * len(blocks)
        assert store.routed.ring == fresh.ring
        remove_shard(store, 0)
        store.routed._routes = stale
        assert store.blocks.get_many_sync(list(blocks)) == list(blocks.values())
        store.routed._routes = stale
        extra = parts(5, seed=3)
        store.blocks.put_many_sync(list(extra.items()))
        assert store.blocks.get_many_sync(list(extra)) == list(extra.values())


def test_what_is_deleted_while_it_moves_stays_deleted(tmp_path: Path, blocks: Blocks) -> None:
    with opened(full_store(tmp_path / "s", blocks)) as store:
        set_weight(store, 0, 0.0)
        gone = sorted(blocks)[::3]
        done = [False]

        def hook(name: str) -> None:
            if name == "shard.after_put" and not done[0]:
                done[0] = True
                store.blocks.delete_many_sync(gone)

        with faultpoints.listening(hook):
            move(store)
        check_whole(store, {b: data for b, data in blocks.items() if b not in gone})
        assert check_receipt(store, receipt_of(store), control=CALM).ok


def test_a_stopped_rebalance_goes_on_behind_its_last_checkpoint(
    tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgit.operate.rebalance.GROUP_ENTRIES", 20)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        set_weight(store, 1, 0.0)
        stopped_at(
            "rebalance.after_checkpoint",
            lambda control: rebalance(store, control=control, keep_s=0),
            count=3,
        )
        left = status(store)
        assert left is not None
        assert (left.state, left.groups) == ("copying", 3)
        assert 60 <= left.blocks < 100
        ring = store.routed.ring
        assert told_moving(store) == ring.partitions_of(1) > 0  # the others stay where they are
        extra = parts(30, seed=4)
        store.blocks.put_many_sync(list(extra.items()))
        with pytest.raises(Refused, match="under way"):
            add_shard(store)
        with pytest.raises(Refused, match="no receipt"):
            receipt_of(store)
        copied = [0]

        def hook(name: str) -> None:
            copied[0] += name == "rebalance.after_checkpoint"

        with faultpoints.listening(hook):
            done = move(store)
        assert (done.id, done.state) == (left.id, "done")
        assert done.groups == 3 + copied[0]
        assert told_moving(store) == 0
        check_whole(store, blocks | extra)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("point", ["rebalance.after_checkpoint", "rebalance.after_move"])
def test_an_abort_goes_back_to_the_shards_as_they_were(
    tmp_path: Path,
    blocks: Blocks,
    point: str,
    replicas: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shardgit.operate.rebalance.GROUP_ENTRIES", 20)
    with opened(full_store(tmp_path / "s", blocks, replicas=replicas)) as store:
        with pytest.raises(Refused, match="no rebalance"):
            abort(store, control=CALM)
        add_shard(store, zone=9)
        table = store.routed.ring.table
        stopped_at(point, lambda control: rebalance(store, control=control, keep_s=600))
        ring = store.routed.ring
        pairs = zip(zip(*ring.table, strict=True), zip(*ring.other, strict=True), strict=True)
        changes = sum(len(set(far) - set(home)) for home, far in pairs)
        assert told_moving(store) == changes
        assert 0 < changes < replicas * len(table[0])
        extra = parts(30, seed=5)
        store.blocks.put_many_sync(list(extra.items()))
        gone = abort(store, control=CALM, keep_s=0)
        assert (gone.state, gone.back) == ("aborted", point == "rebalance.after_move")
        assert told_moving(store) == 0
        assert (store.routed.ring.table, store.routed.ring.phase) == (table, Phase.SETTLED)
        check_whole(store, blocks | extra)
        assert placed(store)[3] == set()
        assert move(store).state == "done"  # and forth again
        check_whole(store, blocks | extra)
        with pytest.raises(Refused, match="no rebalance"):
            abort(store, control=CALM)


def test_progress_is_told_as_a_whole_and_for_each_shard_that_grows(
    tmp_path: Path, blocks: Blocks
) -> None:
    told: list[Progress] = []
    with opened(full_store(tmp_path / "s", blocks)) as store:
        add_shard(store)
        set_weight(store, 0, 2.0)
        done = rebalance(store, control=Control(report=told.append), keep_s=0)
        moved = receipt_of(store).partitions
    last = {one.stage: one for one in told}
    assert next(iter(last)) == "measuring"
    assert last["copying"].done == last["copying"].total == done.bytes == done.total_bytes
    grown = {one.id: one.bytes_after - one.bytes_before for one in done.shards}
    for shard in (number for number, size in grown.items() if size > 0):
        size = sum(one.bytes for one in moved if one.target == shard)
        assert last[f"to shard {shard}"].done == size
    assert not any(f"to shard {number}" in last for number, size in grown.items() if size <= 0)


def test_one_rebalance_runs_at_a_time(tmp_path: Path, blocks: Blocks) -> None:
    with opened(full_store(tmp_path / "s", blocks)) as store:
        with running(store, KIND):
            for work in (
                lambda: move(store),
                lambda: add_shard(store),
                lambda: set_weight(store, 0, 2.0),
                lambda: remove_shard(store, 0),
            ):
                with pytest.raises(Refused, match="running already"):
                    work()
        move(store)


def test_a_damaged_block_is_not_moved_and_keeps_the_rebalance_open(
    tmp_path: Path, blocks: Blocks
) -> None:
    with opened(full_store(tmp_path / "s", blocks)) as store:
        set_weight(store, 0, 0.0)
        victim = min(placed(store)[0])
        damage(store, 0, victim)
        with pytest.raises(DataLoss, match="repair"):
            move(store)
        with pytest.raises(DataLoss, match="repair"):
            move(store)
        now = status(store)
        assert now is not None
        assert now.damaged == (victim.hex(),)
        store.blocks.put_many_sync([(victim, blocks[victim])])  # repaired
        done = move(store)
        assert (done.state, done.damaged) == ("done", ())
        check_whole(store, blocks)
        assert check_receipt(store, receipt_of(store), control=CALM).ok


def test_more_damage_than_the_row_holds_is_not_forgotten(
    tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgit.operate.rebalance.DAMAGED_MAX", 3)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        set_weight(store, 0, 0.0)
        victims = sorted(placed(store)[0])[:10]
        for victim in victims:
            damage(store, 0, victim)
        for _ in range(3):
            with pytest.raises(DataLoss, match="repair"):
                move(store)
        now = status(store)
        assert now is not None
        assert now.state == "copying"
        store.blocks.put_many_sync([(victim, blocks[victim]) for victim in victims])
        assert move(store).state == "done"
        check_whole(store, blocks)
        assert check_receipt(store, receipt_of(store), control=CALM).ok


def test_a_damaged_replica_is_copied_from_another(tmp_path: Path, blocks: Blocks) -> None:
    with opened(full_store(tmp_path / "s", blocks, replicas=2)) as store:
        add_shard(store, zone=9)
        set_weight(store, 0, 0.0)
        for victim in sorted(placed(store)[0])[:20]:
            damage(store, 0, victim)
        assert move(store).state == "done"
        check_whole(store, blocks)


def damage(store: Store, shard: int, block: bytes) -> None:
    with store.routed.shards[shard]._environment.write() as transaction:
        data = bytearray(transaction.get(block) or b"")
        data[-1] ^= 1
        transaction.put(block, bytes(data))


def test_a_receipt_is_checked_against_the_store(tmp_path: Path, blocks: Blocks) -> None:
    with opened(full_store(tmp_path / "s", blocks)) as store:
        add_shard(store)
        move(store)
        receipt = decode_receipt(encode_receipt(receipt_of(store)))
        assert sum(one.blocks for one in receipt.partitions) == receipt.blocks > 0
        assert all(one.before == one.after for one in receipt.partitions)
        before = {one.id: one.bytes_before for one in receipt.shards}
        after = {one.id: one.bytes_after for one in receipt.shards}
        assert sum(before.values()) == sum(after.values()) == receipt.stored_bytes
        assert after[3] == sum(one.bytes for one in receipt.partitions if one.target == 3)
        good = check_receipt(store, receipt, control=CALM)
        assert (good.ok, good.unchanged, good.blocks) == (
            True,
            len(receipt.partitions),
            receipt.blocks,
        )
        one, two, *_ = sorted(placed(store)[3])
        damage(store, 3, one)
        bad = check_receipt(store, receipt, control=CALM)
        assert (bad.ok, bad.problems) == (False, 1)
        assert one.hex() in bad.bad[0]
        store.blocks.put_many_sync([(one, blocks[one])])
        store.blocks.delete_many_sync([two])  # nobody names it
        gone = check_receipt(store, receipt, control=CALM)
        assert (gone.ok, gone.gone, gone.unchanged) == (True, 1, len(receipt.partitions) - 1)
        upload = UploadRecord(HashKind.SHA1, 1_700_000_000_000, blocks=(two,))
        store.journal.commit_sync([], [Put(upload_key(RepositoryId(1), 1), upload.encode())])
        lost = check_receipt(store, receipt, control=CALM)
        assert (lost.ok, lost.gone, lost.problems) == (False, 0, 1)


def test_a_receipt_that_was_changed_or_is_none_is_refused(tmp_path: Path, blocks: Blocks) -> None:
    with opened(full_store(tmp_path / "s", blocks)) as store:
        add_shard(store)
        move(store)
        receipt = receipt_of(store)
    raw = asdict(receipt)
    raw["partitions"][0]["before"] = "0" * 64
    for data in (
        b"",
        b"[]",
        b"{" * 100_000,
        encode_receipt(receipt)[:-9],
        json.dumps(raw).encode(),
        encode_receipt(replace(receipt, bytes=receipt.bytes + 1)),
        encode_receipt(replace(receipt, format="other")),
    ):
        with pytest.raises(InvalidArgument):
            decode_receipt(data)
    with (
        opened(full_store(tmp_path / "other", parts(3))) as other,
        pytest.raises(Refused, match="another store"),
    ):
        check_receipt(other, receipt, control=CALM)


def test_strays_are_swept_and_what_they_alone_hold_is_put_home(tmp_path: Path) -> None:
    blocks = parts(60)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        by_shard = placed(store)
        lost = min(by_shard[0])
        store.routed.shards[1].put_many_sync([(b, blocks[b]) for b in by_shard[0]])
        store.routed.shards[0].delete_many_sync([lost])
        damaged = max(by_shard[0])
        with store.routed.shards[0]._environment.write() as transaction:
            transaction.put(damaged, blocks[damaged][:-1] + b"?")
        assert sweep(store, CALM) == len(by_shard[0])
        check_whole(store, blocks)


@pytest.mark.parametrize("is_met", [False, True])
def test_a_sweep_keeps_the_pace_of_what_it_reads(
    tmp_path: Path, is_met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = parts(60)
    control, paced = Control(), list[int]()
    monkeypatch.setattr(control, "pace", paced.append)
    monkeypatch.setattr(strays, "BATCH", 4)
    with opened(full_store(tmp_path / "s", blocks)) as store:
        here = placed(store)[0]
        store.routed.shards[1].put_many_sync([(block, blocks[block]) for block in here])
        if is_met:
            store.blocks.get_many_sync(list(here))  # whole: this process need not read them again
        assert sweep(store, control) == len(here)
    dropping = len(here) // 4 * 4 * strays.DELETED_BYTES
    reading = sum(len(blocks[block]) for block in here)
    assert sum(paced) == dropping if is_met else sum(paced) > dropping + 0.5 * reading


def test_changes_that_make_no_ring_are_refused(tmp_path: Path) -> None:
    with opened(full_store(tmp_path / "s", parts(5), shards=2, replicas=2)) as store:
        ring = store.routed.ring
        with pytest.raises(InvalidArgument, match="fewer shards"):
            set_weight(store, 0, 0.0)
        for weight in (-1.0, float("nan"), float("inf"), 1e-20):
            with pytest.raises(InvalidArgument):
                set_weight(store, 0, weight)
        with pytest.raises(ShardMissing):
            set_weight(store, 9, 1.0)
        with pytest.raises(ShardMissing):
            remove_shard(store, 9)
        taken = tmp_path / "taken"
        taken.mkdir()
        (taken / "file").write_text("")
        for path in (taken, tmp_path / "s" / "journal" / "x", tmp_path / "s" / "shards" / "000"):
            with pytest.raises((Refused, InvalidArgument)):
                add_shard(store, path)
        assert store.routed.ring == ring
        (taken / "file").unlink()
        assert add_shard(store, taken, weight=0.5, zone=4).id == 2


def test_a_ring_between_two_tables_comes_back(tmp_path: Path) -> None:
    with opened(full_store(tmp_path / "s", parts(5), replicas=2)) as store:
        add_shard(store, zone=5)
        plan = plan_ring(store, control=CALM)
    copying = plan.before.towards(plan.after.table)
    for ring in (copying, copying.moved(), copying.moved().settled()):
        assert Ring.decode(ring.encode()) == ring
    moved = copying.moved()
    for move_ in plan.moves:
        at = move_.partition
        assert move_.target in copying.writes_of(at)
        assert move_.target not in copying.shards_of(at)
        assert set(copying.reads_of(at)) == set(moved.reads_of(at))
        assert moved.writes_of(at) == plan.after.shards_of(at)
