"""gc in a cluster: it waits for the processes of all nodes, and what is not waited for commits nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from cluster.opening import Cluster
from reference.gits import make_history

from shardgit import clock
from shardgit.cluster import holders
from shardgit.cluster.records import sessions_of
from shardgit.errors import Unavailable
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.interface import Put
from shardgit.operate.gc import GcOptions, gc
from shardgit.operate.operation import silent_control
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from etcds import Etcds

    from shardgit.operate.gc import GcResult
    from shardgit.service.store import Store

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(etcds: Etcds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(holders, "CLOCK_STEP_MS", 0)
    made = Cluster(tmp_path, etcds)
    with made.opened:
        yield made


def collected(store: Store, *, wait_s: float = 20.0) -> GcResult:
    options = GcOptions(grace_s=0, log_retention_s=0, orphan_age_s=0, wait_s=wait_s)
    return gc(store, options, control=silent_control())


def with_garbage(cluster: Cluster, store: Store) -> None:
    """Have one repository that stays, and the blocks of one that was deleted."""
    for name in ("stays", "goes"):
        origin = make_history(cluster.folder / name, commits=12)
        import_repository(store, name, str(origin))
    Repositories(store).delete("goes")
    clock.sleep(0.05)


def test_what_nothing_names_goes_and_all_nodes_read_the_rest(cluster: Cluster) -> None:
    one, two = cluster.node("one").store, cluster.node("two").store
    with_garbage(cluster, one)
    before = cluster.pack_of(one, "stays")
    blocks = sum(1 for _ in one.blocks.scan_sync())
    done = collected(two)
    if not done.blocks_deleted:  # objects go first, and what they lay in with the next
        done = collected(two)
    assert done.blocks_deleted > 0
    assert done.waiting_for == ()
    assert sum(1 for _ in one.blocks.scan_sync()) < blocks
    assert cluster.pack_of(two, "stays") == before
    assert collected(one).blocks_deleted == 0


def test_a_lease_on_another_node_is_waited_for(cluster: Cluster) -> None:
    one, two = cluster.node("one").store, cluster.node("two")
    with_garbage(cluster, one)
    two.store.journal.fresh_sync()
    with two.store.lease():
        done = collected(one, wait_s=0.0)
        assert done.blocks_deleted == 0
        assert done.blocks_young + done.blocks_waiting > 0
    done = collected(one)
    done = done if done.blocks_deleted else collected(one)
    assert done.blocks_deleted > 0


def test_who_is_not_heard_of_commits_nothing_that_it_began(cluster: Cluster) -> None:
    one, two = cluster.node("one"), cluster.node("two")
    two.store.journal.fresh_sync()
    lease = two.store.lease()
    with two.store.journal.snapshot() as snapshot:
        leased = [session for session, record in sessions_of(snapshot) if record.node == two.number]
    assert len(leased) == 1
    journal = cluster.journal(two)
    row = journal.etcd.range(pb.RangeRequest(key=journal.keys.row(b"Ys" + leased[0])))
    journal.etcd.lease_revoke(row.kvs[0].lease)
    one.store.journal.fresh_sync()
    with lease, pytest.raises(Unavailable, match="not heard of"):
        two.store.journal.commit_sync([], [Put(b"Zt", b"late")])
    with one.store.journal.snapshot() as snapshot:
        assert snapshot.get(b"Zt") is None
    # What begins behind a new session is as good as any.
    cluster.await_session(two)
    with two.store.lease():
        two.store.journal.commit_sync([], [Put(b"Zt", b"in time")])


def test_gc_waits_for_a_process_that_does_not_answer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cluster.node("one")
    monkeypatch.setattr(holders.ClusterHolders, "_answer", lambda *_: None)
    cluster.node("two")
    with_garbage(cluster, one.store)
    assert isinstance(one.store.holders, holders.ClusterHolders)
    one.store.holders.answer_s = 5.0
    with pytest.raises(Unavailable, match="do not say") as refused:
        collected(one.store)
    told = str(refused.value.facts["processes"])
    assert ("of node 1" in told, "of node 0" in told) == (True, False)


def test_blocks_of_a_clock_that_is_behind_are_young(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = cluster.node("one").store, cluster.node("two")
    behind = SimpleNamespace(
        now_ms=lambda: clock.now_ms() - 3 * 3_600_000,
        monotonic=clock.monotonic,
        sleep=clock.sleep,
    )
    monkeypatch.setattr(holders, "clock", behind)  # as processes answer
    with_garbage(cluster, one)
    assert collected(one).blocks_deleted == 0
    done = collected(one)
    assert done.blocks_deleted == 0
    assert done.blocks_young > 0
    monkeypatch.undo()
    monkeypatch.setattr(holders, "CLOCK_STEP_MS", 0)
    assert collected(two.store).blocks_deleted > 0
