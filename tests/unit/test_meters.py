"""What is looked at every few seconds: caches, queues, threads."""

from __future__ import annotations

import asyncio
from threading import Event
from typing import TYPE_CHECKING

import pytest
from reference.gits import make_history

from shardgit import telemetry, worker
from shardgit.errors import Conflict
from shardgit.journal.interface import Compare, Put
from shardgit.node import create_store, open_store
from shardgit.protocol.upload_pack import LsRefs
from shardgit.service.fetch import FetchService
from shardgit.service.importing import import_repository
from shardgit.service.meters import Meters
from shardgit.workers import meanwhile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as made:
        import_repository(made, "demo", str(make_history(tmp_path / "origin", commits=12)))
        yield made


def value(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(name, labels) or 0.0


def looked(cache: str, outcome: str) -> float:
    return value("shardgit_cache_reads_total", cache=cache, outcome=outcome)


async def test_each_look_tells_what_came_since_the_last(store: Store) -> None:
    fetches = FetchService(store, version="0")
    meters = Meters(store, fetches)
    meters.look()
    before = {one: looked("advertisements", one) for one in ("hit", "miss")}
    for _ in range(3):
        assert [piece async for piece in fetches.ls_refs("demo", LsRefs())]
    for _ in range(2):  # the second has nothing new to tell
        meters.look()
        assert looked("advertisements", "miss") - before["miss"] == 1
        assert looked("advertisements", "hit") - before["hit"] == 2
    assert value("shardgit_cache_bytes", cache="advertisements") == fetches.answers.used_bytes > 0


async def test_jobs_that_wait_and_threads_that_work_are_seen(store: Store) -> None:
    meters = Meters(store, FetchService(store, version="0"))
    go = Event()
    threads = store.workers.threads
    jobs = [asyncio.ensure_future(store.workers.run(go.wait)) for _ in range(threads + 3)]
    store.workers.later("one", go.wait)
    store.workers.later("two", go.wait)
    while store.workers.busy < threads or store.workers.waiting()[1] > 1:
        await asyncio.sleep(0.01)
    meters.look()
    assert value("shardgit_threads", state="busy") == threads
    assert value("shardgit_queue_jobs", queue="threads") == 3
    assert value("shardgit_queue_jobs", queue="background") == 1
    assert value("shardgit_queue_wait_seconds") > 0
    go.set()
    await asyncio.gather(*jobs)
    while store.workers.busy:
        await asyncio.sleep(0.01)
    meters.look()
    assert value("shardgit_threads", state="idle") == threads
    assert value("shardgit_queue_jobs", queue="threads") == 0


async def test_a_look_that_fails_is_not_the_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MEASURE_EVERY_S", 0.01)
    meters, looks = Meters(store, FetchService(store, version="0")), []
    again = asyncio.Event()

    def fails() -> None:
        looks.append(1)
        if len(looks) > 1:
            again.set()
        raise OSError("no space")

    monkeypatch.setattr(meters, "look", fails)
    async with meanwhile(worker._measure(meters), "measure"), asyncio.timeout(30):
        await again.wait()


def test_commits_are_counted_by_what_came_of_them(store: Store) -> None:
    names = [
        ("shardgit_journal_commits_total", {"outcome": "committed"}),
        ("shardgit_journal_commits_total", {"outcome": "lost"}),
        ("shardgit_journal_group_commits_sum", {}),
        ("shardgit_fsync_seconds_count", {"part": "journal"}),
    ]
    before = [value(name, **labels) for name, labels in names]
    store.journal.commit_sync([], [Put(b"zz", b"1")])
    with pytest.raises(Conflict):
        store.journal.commit_sync([Compare(b"zz", 0)], [Put(b"zz", b"2")])
    store.journal.close()  # its thread counts behind the answer
    after = [value(name, **labels) for name, labels in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 2, 2]
