"""What workers measure beside requests. docs/metrics.md lists every metric."""

from __future__ import annotations

import functools

from prometheus_client import Counter, Gauge, Histogram

from shardgit.errors import Conflict
from shardgit.telemetry import BUCKETS, REGISTRY

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
LOOP_LAG = Histogram(
    "shardgit_event_loop_lag_seconds",
    "How late a worker's event loop comes to what is due.",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
    registry=REGISTRY,
)
HTTP_CONNECTIONS_REFUSED = Counter(
    "shardgit_http_connections_refused_total",
    "HTTP connections that were turned away because there were too many.",
    registry=REGISTRY,
)
REQUESTS_REFUSED = Counter(
    "shardgit_requests_refused_total",
    "Requests that were not let in, by what there was too much of.",
    ["reason"],
    registry=REGISTRY,
)
SETTLES = Counter(
    "shardgit_settles_total",
    "Settles of pools, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
HOOKS = Counter(
    "shardgit_hooks_total",
    "Hooks that were asked, by event and outcome.",
    ["event", "outcome"],
    registry=REGISTRY,
)
HOOK_SECONDS = Histogram(
    "shardgit_hook_seconds",
    "Time of hooks.",
    ["event"],
    buckets=BUCKETS,
    registry=REGISTRY,
)
MAINTENANCE = Counter(
    "shardgit_maintenance_total",
    "Jobs of the maintenance that had something to do, by outcome.",
    ["task", "outcome"],
    registry=REGISTRY,
)
MAINTENANCE_SECONDS = Counter(
    "shardgit_maintenance_seconds_total",
    "Time that jobs of the maintenance took.",
    ["task"],
    registry=REGISTRY,
)
GC_OBJECTS = Counter(
    "shardgit_gc_dropped_objects_total",
    "Unreachable objects that the maintenance's gc dropped.",
    registry=REGISTRY,
)
GC_BYTES = Counter(
    "shardgit_gc_freed_bytes_total",
    "Bytes of the blocks that the maintenance's gc deleted.",
    registry=REGISTRY,
)
GC_WAITING = Gauge(
    "shardgit_gc_waiting_blocks",
    "Blocks that the last gc left because requests, or a backup, may still read them.",
    multiprocess_mode="livemostrecent",
    registry=REGISTRY,
)

BLOCK_FALLBACKS = Counter(
    "shardgit_block_fallbacks_total",
    "Reads of blocks that a replica had damaged or not at all, by what became of them.",
    ["outcome"],
    registry=REGISTRY,
)
BLOCK_REPAIRS = Counter(
    "shardgit_block_repairs_total",
    "Copies of blocks that were to be put right, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
OBJECT_STORE_REQUESTS = Counter(
    "shardgit_object_store_requests_total",
    "Requests for blocks to the object store, as this process saw them end.",
    ["operation", "outcome"],
    registry=REGISTRY,
)
OBJECT_STORE_SECONDS = Histogram(
    "shardgit_object_store_seconds",
    "Time of requests for blocks to the object store, with what was sent again.",
    ["operation"],
    buckets=BUCKETS,
    registry=REGISTRY,
)
OBJECT_STORE_BYTES = Counter(
    "shardgit_object_store_bytes_total",
    "Bytes of blocks that were put into the object store and got from it.",
    ["operation"],
    registry=REGISTRY,
)
TIER_READS = Counter(
    "shardgit_tier_reads_total",
    "Reads of blocks from the node's tier, by what became of them.",
    ["outcome"],
    registry=REGISTRY,
)
TIER_WRITES = Counter(
    "shardgit_tier_writes_total",
    "Blocks that were to go into the node's tier, by part and outcome.",
    ["part", "outcome"],
    registry=REGISTRY,
)
TIER_DROPS = Counter(
    "shardgit_tier_drops_total",
    "What the node's tier has dropped, by reason: generations, and single damaged blocks.",
    ["reason"],
    registry=REGISTRY,
)
BLOCK_FETCHES = Counter(
    "shardgit_block_fetches_total",
    "Blocks that were not on the node's disks, by where they came from.",
    ["source"],
    registry=REGISTRY,
)
BLOCK_WARMS = Counter(
    "shardgit_block_warms_total",
    "Blocks that were put and were to go into tiers, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
JOURNAL_TRANSACTIONS = Counter(
    "shardgit_journal_transactions_total",
    "Transactions of etcd for commits of this process, by what came of them.",
    ["outcome"],
    registry=REGISTRY,
)
JOURNAL_BUNDLES = Counter(
    "shardgit_journal_bundles_total",
    "Bundles with large values of commits that were put, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
JOURNAL_STALE = Counter(
    "shardgit_journal_stale_reads_total",
    "Reads that went on with what the node had because etcd did not answer in time.",
    registry=REGISTRY,
)
JOURNAL_BEHIND = Counter(
    "shardgit_journal_commits_behind_total",
    "Commits that were told before this node's replica showed them, which took too long.",
    registry=REGISTRY,
)
REPLICA_LOADS = Counter(
    "shardgit_journal_replica_loads_total",
    "Times that the node's replica of the journal was made anew from etcd.",
    registry=REGISTRY,
)
SCRUB_BYTES = Counter(
    "shardgit_scrub_bytes_total", "Bytes of blocks that shard verify has hashed.", registry=REGISTRY
)
SCRUB_FINDINGS = Counter(
    "shardgit_scrub_findings_total",
    "What shard verify has found, by kind.",
    ["kind"],
    registry=REGISTRY,
)
SCRUB_FINISHED = Gauge(
    "shardgit_scrub_finished_timestamp_seconds",
    "When a shard verify of the whole store has last ended, in seconds since 1970.",
    multiprocess_mode="max",
    registry=REGISTRY,
)
BACKUP_TAKEN = Gauge(
    "shardgit_backup_taken_timestamp_seconds",
    "The moment that the newest backup of the store shows, in seconds since 1970.",
    multiprocess_mode="max",
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
