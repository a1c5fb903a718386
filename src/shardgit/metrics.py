"""What workers measure of their store: durable writes, commits, caches, queues. docs/metrics.md lists every metric."""

from __future__ import annotations

import functools

from prometheus_client import Counter, Gauge, Histogram

from shardgit.errors import Conflict
from shardgit.telemetry import REGISTRY

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # of disks and of etcd

FSYNC_SECONDS = Histogram(
    "shardgit_fsync_seconds",
    "Time until a transaction of LMDB was written and on the disk, by whose it was.",
    ["part"],
    buckets=_FAST,
    registry=REGISTRY,
)
JOURNAL_COMMITS = Counter(
    "shardgit_journal_commits_total",
    "Commits of this process to the journal, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
JOURNAL_COMMIT_SECONDS = Histogram(
    "shardgit_journal_commit_seconds",
    "Time from when a commit was asked for until its caller was told.",
    buckets=_FAST,
    registry=REGISTRY,
)
JOURNAL_GROUP = Histogram(
    "shardgit_journal_group_commits",
    "Commits that shared a transaction of LMDB, or a bundle.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=REGISTRY,
)
CACHE_READS = Counter(
    "shardgit_cache_reads_total",
    "Looks into caches, by outcome.",
    ["cache", "outcome"],
    registry=REGISTRY,
)
CACHE_BYTES = Gauge(
    "shardgit_cache_bytes",
    "Bytes that caches hold.",
    ["cache"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
QUEUE_JOBS = Gauge(
    "shardgit_queue_jobs",
    "Jobs that wait in queues.",
    ["queue"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
QUEUE_WAIT = Gauge(
    "shardgit_queue_wait_seconds",
    "For how long the owner whose turn is next has waited for a thread of a worker.",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
THREADS = Gauge(
    "shardgit_threads",
    "Threads of workers, by whether they have a job.",
    ["state"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)


def fsync_of(part: str) -> Histogram:
    """Return what takes the time of commits to a part."""
    return FSYNC_SECONDS.labels(part)


def commit_told(outcome: str, seconds: float) -> None:
    """Count a commit whose caller was told what came of it after that time."""
    _commits(outcome).inc()
    JOURNAL_COMMIT_SECONDS.observe(seconds)


def outcome_of(outcome: int | BaseException) -> str:
    """Return the name of a commit's outcome: committed, lost to another one, or failed."""
    if isinstance(outcome, int):
        return "committed"
    return "lost" if isinstance(outcome, Conflict) else "failed"


@functools.cache
def _commits(outcome: str) -> Counter:
    return JOURNAL_COMMITS.labels(outcome)
