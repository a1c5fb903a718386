"""What long operations share: pace, stopping, one at a time, their rows; and how an edge runs them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from shardgit import faultpoints
from shardgit.blocks.block import HEADER_SIZE, BlockKind, block_id, new_header
from shardgit.errors import JournalCorrupt, Refused, Stopped, StoreFormatUnknown, Unavailable
from shardgit.journal.interface import Put
from shardgit.journal.operations import operation_key, put_operation, read_operation
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind, PoolId
from shardgit.operate.operation import (
    BUSY_FLOOR_S,
    PAUSE_BYTES,
    PAUSE_MAX_S,
    PAUSE_MIN_S,
    PROBE_EVERY_S,
    PROBES_KEPT,
    Control,
    Throttle,
    is_running,
    running,
    silent_control,
    step_back,
    store_probe,
)
from shardgit.progress import Progress
from shardgit.rpc.operations import stream_operation
from shardgit.v1 import shard_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "store")
    with open_store(tmp_path / "store", threads=1) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class Place:
    at: int
    names: tuple[str, ...] = ()


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_kept_over_time_whatever_the_pieces() -> None:
    for piece in (1_000, 70_000, 3_000_000):
        clock = Time()
        throttle = Throttle(1_000_000.0, now=clock)
        for _ in range(50):
            clock.now += throttle.wait_s(piece)
        assert clock.now - 100.0 == pytest.approx(50 * piece / 1e6, rel=0.01, abs=0.3)


def test_after_a_pause_a_rate_forgives_no_more_than_its_burst() -> None:
    clock = Time()
    throttle = Throttle(1_000_000.0, now=clock)
    clock.now += 3_600
    clock.now += throttle.wait_s(5_000_000)
    assert clock.now - 3_700.0 == pytest.approx(5.0, abs=0.3)


def test_a_slow_store_makes_pauses_grow_to_a_bound_and_a_calm_one_ends_them() -> None:
    clock = Time()
    took = 0.001
    throttle = Throttle(probe=lambda: took, now=clock)

    def probes(count: int) -> float:
        wait = 0.0
        for _ in range(count):
            clock.now += PROBE_EVERY_S
            wait = throttle.wait_s(PAUSE_BYTES)
        return wait

    assert probes(30) == 0
    took = 0.02
    assert probes(1) == PAUSE_MIN_S
    assert probes(10) == PAUSE_MAX_S
    assert throttle.wait_s(100) == 0  # little work, little pause
    took = 0.001
    assert probes(10) == 0
    took = 0.02
    assert probes(PROBES_KEPT) == 0  # what lasts is the new calm: slowed, never starved
    took = 0.001 + BUSY_FLOOR_S
    assert probes(1) == 0


def test_a_stopped_operation_stops_at_its_next_step_also_out_of_a_long_pause() -> None:
    control = Control(throttle=Throttle(1.0))
    threading.Timer(0.1, control.stop).start()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        control.pace(1_000_000)
    assert time.monotonic() - begun < 30
    assert control.stopping
    with pytest.raises(Stopped):
        control.pace(0)


def test_progress_is_told_a_few_times_and_at_each_stages_end() -> None:
    told: list[Progress] = []
    control = Control(report=told.append)
    for stage in ("one", "two"):
        for done in range(10_001):
            control.report(Progress(stage, done, 10_000, "blocks"))
    assert len(told) < 1_000
    assert [(one.stage, one.done) for one in told if one.done in (0, 10_000)] == [
        ("one", 0),
        ("one", 10_000),
        ("two", 0),
        ("two", 10_000),
    ]


def test_one_operation_of_a_kind_runs_at_a_time(store: Store) -> None:
    assert not is_running(store, "one")
    with running(store, "one"):
        assert is_running(store, "one")
        with pytest.raises(Refused, match="running already"), running(store, "one"):
            pass
        with running(store, "two"):
            pass
    with running(store, "one"):
        pass


def test_a_record_comes_back_and_bytes_that_are_none_are_one_typed_error(store: Store) -> None:
    with store.journal.snapshot() as snapshot:
        none = read_operation(snapshot, "scrub", Place)
    assert (none.record, none.revision) == (None, 0)
    record = Place(7, ("a", "b"))
    store.journal.commit_sync([none.unchanged()], [put_operation("scrub", record)])
    assert not store.try_commit([none.unchanged()], [put_operation("scrub", record)])
    with store.journal.snapshot() as snapshot:
        assert read_operation(snapshot, "scrub", Place).record == record
    for value, error in (
        (b"", JournalCorrupt),
        (b"\x01{", JournalCorrupt),
        (b"\x01" + b"[" * 100_000, JournalCorrupt),
        (b'\x01{"at": "x"}', JournalCorrupt),
        (b"\x02{}", StoreFormatUnknown),
    ):
        store.journal.commit_sync([], [Put(operation_key("scrub"), value)])
        with store.journal.snapshot() as snapshot, pytest.raises(error):
            read_operation(snapshot, "scrub", Place)


def test_the_probe_takes_a_little_time(store: Store) -> None:
    assert 0 < store_probe(store)() < 10


async def test_an_operation_streams_its_progress_then_its_result(store: Store) -> None:
    def job(control: Control) -> int:
        for done in range(3):
            control.report(Progress(f"stage {done}", done, 2, "blocks"))
        return 42

    seen = [one async for one in stream_operation(store, shard_pb2.Pace(), job)]
    assert [one.stage for one in seen[:-1] if not isinstance(one, int)] == [
        "stage 0",
        "stage 1",
        "stage 2",
    ]
    assert seen[-1] == 42


async def test_what_an_operation_raises_is_raised_to_its_caller(store: Store) -> None:
    def job(_: Control) -> int:
        raise Refused("no")

    with pytest.raises(Refused, match="no"):
        async for _ in stream_operation(store, shard_pb2.Pace(), job):
            pass


async def test_an_operation_that_cannot_begin_is_raised_to_its_caller(store: Store) -> None:
    """Its caller waited for ever, and no cancelling helped."""
    store.journal.close()
    with pytest.raises(Unavailable):
        async with asyncio.timeout(10):
            async for _ in stream_operation(store, shard_pb2.Pace(), lambda _: 1):
                pass


async def test_a_caller_that_goes_away_stops_its_operation(store: Store) -> None:
    ended = threading.Event()

    def job(control: Control) -> int:
        try:
            control.report(Progress("waiting", 0, None, "blocks"))
            control.sleep(600)
        finally:
            ended.set()
        return 0

    async def call() -> None:
        async for _ in stream_operation(store, shard_pb2.Pace(), job):
            pass

    task = asyncio.create_task(call())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert silent_control().throttle is None


def test_threads_that_serve_keep_their_priority_when_an_operation_is_first_to_need_them(
    store: Store,
) -> None:
    """A worker that began anew under a rebalance had all its pushes committed by a thread of low priority."""

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    found: list[int] = []

    def operation() -> None:
        step_back(store)
        found.append(priority())
        with store.journal.listening(lambda: found.append(priority())):
            store.journal.commit_sync([], [Put(b"Zone", b"")])
            store.journal.commit_sync([], [Put(b"Ztwo", b"")])  # behind what the first one told
        found.extend(store.workers.map(lambda _: priority(), range(3)))
        found.extend(store.routed._writers.map(lambda _: priority(), range(3)))
        told = threading.Event()

        def behind() -> None:
            found.append(priority())
            told.set()

        store.workers.later("told", behind)
        told.wait()
        for shard in store.routed.shards.values():
            store.routed.write_to(shard, lambda _: found.append(priority()))
        data = (
            new_header(BlockKind.PART, HashKind.SHA1, PoolId(bytes(16)), HEADER_SIZE + 9)
            + b"one shard"
        )
        block = (block_id(data), data)
        with faultpoints.listening(lambda _: found.append(priority())):
            store.blocks.put_many_sync([block])
            store.blocks.delete_many_sync([block[0]])

    thread = threading.Thread(target=operation)
    thread.start()
    thread.join()
    assert len(found) >= 11
    assert set(found[1:]) == {before}
