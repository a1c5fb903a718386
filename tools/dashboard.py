"""Make deploy/grafana/shardgit.json, the dashboard, of the panels below.

python tools/dashboard.py [--check]      --check: is the file what it should be?
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "deploy" / "grafana" / "shardgit.json"
WIDTH, HEIGHT = 24, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
ON = 'instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph: queries by legend, the unit of its values, and what it says in a sentence."""

    title: str
    about: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"


ROWS: dict[str, list[Panel]] = {
    "Requests": [
        Panel(
            "Requests",
            "Requests a second by edge and method.",
            "reqps",
            {
                "{{edge}} {{method}}": "sum by (edge, method)"
                f" (rate(shardgit_requests_total{{{ON}}}[$__rate_interval]))"
            },
        ),
        Panel(
            "Errors",
            "Requests a second that did not end well, by code. NOT_FOUND and UNAUTHENTICATED are clients' ways.",
            "reqps",
            {
                "{{code}}": "sum by (code)"
                f' (rate(shardgit_requests_total{{{ON}, code!~"OK|CANCELLED"}}[$__rate_interval]))'
            },
        ),
        Panel(
            "Time of requests",
            "Half and 99 of 100 requests take less, to the last byte, which the client's line decides.",
            "s",
            {
                f"p{int(q * 100)} {{{{method}}}}": f"histogram_quantile({q}, sum by (method, le)"
                f" (rate(shardgit_request_seconds_bucket{{{ON}}}[$__rate_interval])))"
                for q in (0.5, 0.99)
            },
        ),
        Panel(
            "What the time goes into",
            "Seconds a second: waiting for a thread, work, commits, etcd, the client.",
            "short",
            {
                "{{into}}": "sum by (into)"
                f" (rate(shardgit_request_spent_seconds_total{{{ON}}}[$__rate_interval]))"
            },
        ),
        Panel(
            "Under way",
            "Requests that are being answered.",
            "short",
            {"{{instance}} {{edge}}": f"shardgit_requests_active{{{ON}}}"},
        ),
        Panel(
            "Refused",
            "Requests and connections that were not let in, a second.",
            "reqps",
            {
                "{{reason}}": "sum by (reason)"
                f" (rate(shardgit_requests_refused_total{{{ON}}}[$__rate_interval]))",
                "connections": f"sum(rate(shardgit_http_connections_refused_total{{{ON}}}[$__rate_interval]))",
            },
        ),
    ],
    "Repositories": [
        Panel(
            "Most work",
            "Seconds of work in the last half minute, of the repositories with most of it.",
            "s",
            {
                "{{repository}}": f"topk(10, sum by (repository) (shardgit_hot_repository_work_seconds{{{ON}}}))"
            },
        ),
        Panel(
            "Their requests",
            "Requests in the last half minute at these.",
            "short",
            {
                "{{repository}}": f"topk(10, sum by (repository) (shardgit_hot_repository_requests{{{ON}}}))"
            },
        ),
        Panel(
            "Hooks",
            "Hooks a second by event and outcome, and how long 99 of 100 take at the most.",
            "short",
            {
                "{{event}} {{outcome}}": "sum by (event, outcome)"
                f" (rate(shardgit_hooks_total{{{ON}}}[$__rate_interval]))",
                "p99 s {{event}}": "histogram_quantile(0.99, sum by (event, le)"
                f" (rate(shardgit_hook_seconds_bucket{{{ON}}}[$__rate_interval])))",
            },
        ),
    ],
    "Workers": [
        Panel(
            "Workers",
            "Workers that serve, and those that died and were started again.",
            "short",
            {
                "{{instance}}": f"shardgit_workers{{{ON}}}",
                "restarts {{instance}}": f"increase(shardgit_worker_restarts_total{{{ON}}}[1h])",
            },
        ),
        Panel(
            "Event loop lag",
            "How late 99 of 100 turns of the event loop come at the most.",
            "s",
            {
                "{{instance}}": "histogram_quantile(0.99, sum by (instance, le)"
                f" (rate(shardgit_event_loop_lag_seconds_bucket{{{ON}}}[$__rate_interval])))"
            },
        ),
        Panel(
            "Threads",
            "Threads that have a job and that have none, and jobs that wait by queue.",
            "short",
            {
                "{{state}}": f"sum by (state) (shardgit_threads{{{ON}}})",
                "waiting: {{queue}}": f"sum by (queue) (shardgit_queue_jobs{{{ON}}})",
            },
        ),
        Panel(
            "Wait for a thread",
            "How long the owner whose turn is next has waited.",
            "s",
            {"{{instance}}": f"shardgit_queue_wait_seconds{{{ON}}}"},
        ),
        Panel(
            "Caches",
            "Looks that found something, of all.",
            "percentunit",
            {
                "{{cache}}": "sum by (cache)"
                f' (rate(shardgit_cache_reads_total{{{ON}, outcome="hit"}}[$__rate_interval]))'
                " / sum by (cache)"
                f" (rate(shardgit_cache_reads_total{{{ON}}}[$__rate_interval]))"
            },
        ),
        Panel(
            "Caches, bytes",
            "What they hold.",
            "bytes",
            {"{{cache}}": f"sum by (cache) (shardgit_cache_bytes{{{ON}}})"},
        ),
        Panel(
            "Version",
            "What runs where.",
            "short",
            {"{{instance}} {{version}}": f"shardgit_build_info{{{ON}}}"},
            kind="stat",
        ),
    ],
    "Store": [
        Panel(
            "Journal",
            "Commits a second by outcome, and how many share an fsync on average.",
            "short",
            {
                "{{outcome}}": "sum by (outcome)"
                f" (rate(shardgit_journal_commits_total{{{ON}}}[$__rate_interval]))",
                "together": f"sum(rate(shardgit_journal_group_commits_sum{{{ON}}}[$__rate_interval]))"
                f" / sum(rate(shardgit_journal_group_commits_count{{{ON}}}[$__rate_interval]))",
            },
        ),
        Panel(
            "Time of commits",
            "Half and 99 of 100 commits are told in less; 99 of 100 fsyncs take less.",
            "s",
            {
                f"p{int(q * 100)}": f"histogram_quantile({q}, sum by (le)"
                f" (rate(shardgit_journal_commit_seconds_bucket{{{ON}}}[$__rate_interval])))"
                for q in (0.5, 0.99)
            }
            | {
                "fsync p99 {{part}}": "histogram_quantile(0.99, sum by (part, le)"
                f" (rate(shardgit_fsync_seconds_bucket{{{ON}}}[$__rate_interval])))"
            },
        ),
        Panel(
            "Settles and maintenance",
            "Jobs in five minutes, by outcome.",
            "short",
            {
                "settle {{outcome}}": f"sum by (outcome) (increase(shardgit_settles_total{{{ON}}}[5m]))",
                "{{task}} {{outcome}}": "sum by (task, outcome)"
                f" (increase(shardgit_maintenance_total{{{ON}}}[5m]))",
                "{{task}} s/s": "sum by (task)"
                f" (rate(shardgit_maintenance_seconds_total{{{ON}}}[$__rate_interval]))",
            },
        ),
        Panel(
            "Shards, bytes",
            "Live bytes, and those of the files.",
            "bytes",
            {
                "{{shard}}": f"shardgit_shard_live_bytes{{{ON}}}",
                "{{shard}} file": f"shardgit_shard_file_bytes{{{ON}}}",
                "journal {{kind}}": f"shardgit_journal_bytes{{{ON}}}",
            },
        ),
        Panel(
            "Shards, room",
            "Bytes free on the disks.",
            "bytes",
            {"{{shard}}": f"shardgit_shard_free_bytes{{{ON}}}"},
        ),
        Panel(
            "Ring",
            "Shards by state, partitions and blocks of each, partitions that move, and the epoch.",
            "short",
            {
                "{{state}}": f"sum by (state) (shardgit_shards{{{ON}}})",
                "partitions {{shard}}": f"shardgit_shard_partitions{{{ON}}}",
                "blocks {{shard}}": f"shardgit_shard_blocks{{{ON}}}",
                "moving": f"max(shardgit_ring_moving_partitions{{{ON}}})",
                "epoch": f"max(shardgit_ring_epoch{{{ON}}})",
            },
        ),
        Panel(
            "Operations",
            "What is under way.",
            "short",
            {"{{kind}}": f"sum by (kind) (shardgit_operations_active{{{ON}}})"},
        ),
        Panel(
            "Garbage",
            "What gc dropped and freed, and what it waits for.",
            "short",
            {
                "objects/s": f"sum(rate(shardgit_gc_dropped_objects_total{{{ON}}}[$__rate_interval]))",
                "bytes/s": f"sum(rate(shardgit_gc_freed_bytes_total{{{ON}}}[$__rate_interval]))",
                "waiting blocks": f"sum(shardgit_gc_waiting_blocks{{{ON}}})",
            },
        ),
        Panel(
            "Damage",
            "Reads that fell back to another replica, repairs, and what verification found. All of these are zero.",
            "short",
            {
                "fallback {{outcome}}": f"sum by (outcome) (increase(shardgit_block_fallbacks_total{{{ON}}}[1h]))",
                "repair {{outcome}}": f"sum by (outcome) (increase(shardgit_block_repairs_total{{{ON}}}[1h]))",
                "found {{kind}}": f"sum by (kind) (increase(shardgit_scrub_findings_total{{{ON}}}[1h]))",
            },
        ),
        Panel(
            "Age of backup and scrub",
            "Since the newest backup's moment, and since every byte was last looked at.",
            "s",
            {
                "backup {{instance}}": f"time() - (shardgit_backup_taken_timestamp_seconds{{{ON}}} > 0)",
                "scrub {{instance}}": f"time() - (shardgit_scrub_finished_timestamp_seconds{{{ON}}} > 0)",
            },
        ),
        Panel(
            "Scrub",
            "Bytes a second that verification hashes.",
            "Bps",
            {"{{instance}}": f"rate(shardgit_scrub_bytes_total{{{ON}}}[$__rate_interval])"},
        ),
    ],
    "Cluster": [
        Panel(
            "Commits",
            "Transactions of etcd a second by outcome, bundles of pushes, and commits that were told early.",
            "short",
            {
                "{{outcome}}": "sum by (outcome)"
                f" (rate(shardgit_journal_transactions_total{{{ON}}}[$__rate_interval]))",
                "bundles {{outcome}}": "sum by (outcome)"
                f" (rate(shardgit_journal_bundles_total{{{ON}}}[$__rate_interval]))",
                "behind": f"sum(rate(shardgit_journal_commits_behind_total{{{ON}}}[$__rate_interval]))",
            },
        ),
        Panel(
            "etcd",
            "Reads that went on without etcd, and replicas that were made anew.",
            "short",
            {
                "stale reads/s": f"sum(rate(shardgit_journal_stale_reads_total{{{ON}}}[$__rate_interval]))",
                "replica loads": f"sum(increase(shardgit_journal_replica_loads_total{{{ON}}}[5m]))",
            },
        ),
        Panel(
            "Object store",
            "Requests a second by operation and outcome.",
            "reqps",
            {
                "{{operation}} {{outcome}}": "sum by (operation, outcome)"
                f" (rate(shardgit_object_store_requests_total{{{ON}}}[$__rate_interval]))"
            },
        ),
        Panel(
            "Object store, time",
            "99 of 100 requests take less, tries again included.",
            "s",
            {
                "p99 {{operation}}": "histogram_quantile(0.99, sum by (operation, le)"
                f" (rate(shardgit_object_store_seconds_bucket{{{ON}}}[$__rate_interval])))"
            },
        ),
        Panel(
            "Object store, bytes",
            "Bytes a second.",
            "Bps",
            {
                "{{operation}}": "sum by (operation)"
                f" (rate(shardgit_object_store_bytes_total{{{ON}}}[$__rate_interval]))"
            },
        ),
        Panel(
            "Where blocks come from",
            "Reads of the node's own copies, and fetches by source.",
            "reqps",
            {
                "tier {{outcome}}": f"sum by (outcome) (rate(shardgit_tier_reads_total{{{ON}}}[$__rate_interval]))",
                "fetch {{source}}": f"sum by (source) (rate(shardgit_block_fetches_total{{{ON}}}[$__rate_interval]))",
            },
        ),
        Panel(
            "What goes into the tier",
            "Writes, warms and drops a second.",
            "short",
            {
                "write {{part}} {{outcome}}": "sum by (part, outcome)"
                f" (rate(shardgit_tier_writes_total{{{ON}}}[$__rate_interval]))",
                "warm {{outcome}}": f"sum by (outcome) (rate(shardgit_block_warms_total{{{ON}}}[$__rate_interval]))",
                "drop {{reason}}": f"sum by (reason) (rate(shardgit_tier_drops_total{{{ON}}}[$__rate_interval]))",
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for name, row in ROWS.items():
        place = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        panels.append(
            {"type": "row", "title": name, "gridPos": place, "collapsed": False, "panels": []}
        )
        y += 1
        across = 3 if len(row) % 3 == 0 else 2
        for number, panel in enumerate(row):
            width = WIDTH // across
            at = {
                "h": HEIGHT,
                "w": width,
                "x": number % across * width,
                "y": y + number // across * HEIGHT,
            }
            panels.append(_shown(panel, at))
        y += -(-len(row) // across) * HEIGHT
    for number, one in enumerate(panels, 1):
        one["id"] = number
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "instance",
            "type": "query",
            "label": "Server",
            "datasource": DATASOURCE,
            "query": "label_values(shardgit_workers, instance)",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    return {
        "title": "shardgit",
        "uid": "shardgit",
        "tags": ["shardgit"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def _shown(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(65 + number), "expr": expr, "legendFormat": legend, "datasource": DATASOURCE}
        for number, (legend, expr) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def text() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if TARGET.read_text() == text() else f"{TARGET} is not what tools/dashboard.py makes"
        )
    TARGET.write_text(text())
