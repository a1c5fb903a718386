"""What the supervisor itself measures: workers, and the store as one of them sees it. docs/metrics.md lists all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from shardgit.report import Hot
    from shardgit.survey import Shard, Survey


class _Told(Gauge):
    """A gauge without labels that has no value until it is told one, and after it was cleared."""

    _is_told = False

    def set(self, value: float) -> None:
        """Tell a value."""
        super().set(value)
        self._is_told = True

    def clear(self) -> None:
        """Have no value."""
        self._is_told = False

    def collect(self) -> Iterable[Metric]:
        """Return the value, if there is one."""
        return super().collect() if self._is_told else []


REGISTRY = CollectorRegistry()
WORKERS = Gauge("shardgit_workers", "Workers that serve.", registry=REGISTRY)
WORKER_RESTARTS = Counter(
    "shardgit_worker_restarts_total",
    "Workers that died and were started again.",
    registry=REGISTRY,
)
BUILD_INFO = Gauge(
    "shardgit_build_info", "1, labelled with the version.", ["version"], registry=REGISTRY
)
HOT_REQUESTS = Gauge(
    "shardgit_hot_repository_requests",
    "Requests at the repositories with most work, of about the last half minute.",
    ["repository"],
    registry=REGISTRY,
)
HOT_WORK = Gauge(
    "shardgit_hot_repository_work_seconds",
    "Work for the repositories with most of it, of about the last half minute.",
    ["repository"],
    registry=REGISTRY,
)
SHARDS = Gauge(
    "shardgit_shards",
    "Shards of the store, or nodes of the cluster, by state.",
    ["state"],
    registry=REGISTRY,
)
SHARD_PARTITIONS = Gauge(
    "shardgit_shard_partitions",
    "Partitions that the ring gives a shard or node, replicas counted.",
    ["shard"],
    registry=REGISTRY,
)
SHARD_BLOCKS = Gauge(
    "shardgit_shard_blocks", "Blocks that a shard holds.", ["shard"], registry=REGISTRY
)
SHARD_BYTES = Gauge(
    "shardgit_shard_live_bytes",
    "Bytes of these, in whole pages.",
    ["shard"],
    registry=REGISTRY,
)
SHARD_FILE_BYTES = Gauge(
    "shardgit_shard_file_bytes",
    "Bytes of a shard's file, or of a node's copies of blocks.",
    ["shard"],
    registry=REGISTRY,
)
SHARD_FREE_BYTES = Gauge(
    "shardgit_shard_free_bytes", "Bytes free on its disk.", ["shard"], registry=REGISTRY
)
RING_EPOCH = _Told(
    "shardgit_ring_epoch", "The ring's epoch, one more with each change.", registry=REGISTRY
)
RING_MOVING = _Told(
    "shardgit_ring_moving_partitions",
    "Partitions whose blocks are on their way to another shard, replicas counted.",
    registry=REGISTRY,
)
JOURNAL_BYTES = Gauge(
    "shardgit_journal_bytes",
    "Bytes of the journal that are live, and of its file.",
    ["kind"],
    registry=REGISTRY,
)
OPERATIONS = Gauge(
    "shardgit_operations_active",
    "Operations under way on this machine, by kind.",
    ["kind"],
    registry=REGISTRY,
)


def tell_hot(rows: Iterable[Hot]) -> None:
    """Tell of the repositories with most work, and of no others."""
    for gauge in (HOT_REQUESTS, HOT_WORK):
        gauge.clear()
    for one in rows:
        HOT_REQUESTS.labels(one.repository).set(one.requests)
        HOT_WORK.labels(one.repository).set(one.work_s)


def tell_store(survey: Survey | None) -> None:
    """Tell of a store as it is; of nothing where no worker says how it is."""
    for gauge in (SHARDS, SHARD_PARTITIONS, SHARD_BLOCKS, SHARD_BYTES, SHARD_FILE_BYTES):
        gauge.clear()
    for gauge in (SHARD_FREE_BYTES, JOURNAL_BYTES, OPERATIONS, RING_EPOCH, RING_MOVING):
        gauge.clear()
    if survey is None:
        return
    for shard in survey.shards:
        _tell_shard(shard)
    RING_EPOCH.set(survey.epoch)
    RING_MOVING.set(survey.moving)
    for kind, size in survey.journal_bytes.items():
        JOURNAL_BYTES.labels(kind).set(size)
    for operation in survey.operations:
        OPERATIONS.labels(operation.kind).inc()


def _tell_shard(shard: Shard) -> None:
    SHARDS.labels(shard.state).inc()
    SHARD_PARTITIONS.labels(shard.name).set(shard.partitions)
    facts = (
        (SHARD_BLOCKS, shard.blocks),
        (SHARD_BYTES, shard.bytes),
        (SHARD_FILE_BYTES, shard.file_bytes),
        (SHARD_FREE_BYTES, shard.free_bytes),
    )
    for gauge, value in facts:
        if value is not None:
            gauge.labels(shard.name).set(value)
