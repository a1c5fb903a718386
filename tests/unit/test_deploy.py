"""What deploy/ has fits the server: alerts fire, panels and alerts ask for metrics that are there, runbooks exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from shardgit import metrics, telemetry
from shardgit.console import gauges

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "shardgit.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "shardgit.json"
PROMTOOL = shutil.which("promtool") or str(Path(sys.executable).parents[1] / "deploy" / "promtool")
OF_PROMETHEUS = {"up"}
_METRIC = re.compile(r"\b(shardgit_\w+|up)\b")
_LABELS = re.compile(r"(shardgit_\w+)\{([^}]*)\}")
_BY = re.compile(r"by \(([^)]*)\)")
NOT_OURS = {"instance", "job", "le"}


def exported() -> dict[str, set[str]]:
    """Return the names of series that a server exports, with their labels."""
    found: dict[str, set[str]] = {"up": set()}
    assert metrics.THREADS in telemetry.REGISTRY._collector_to_names  # its import put it there
    for registry in (telemetry.REGISTRY, gauges.REGISTRY):
        assert isinstance(registry, CollectorRegistry)
        for metric in list(registry._collector_to_names):
            labels = set(getattr(metric, "_labelnames", ()))
            kind, name = str(metric._type), str(metric._name)  # type: ignore[attr-defined]
            tails = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            for tail in tails.get(kind, [""]):
                found[name + tail] = labels
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Return the queries of all panels, with their panels' titles."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(one["title"], target["expr"]) for one in panels for target in one.get("targets", ())]


def check_query(query: str) -> None:
    """Check that a query asks for metrics and labels that a server exports."""
    known = exported()
    names = set(_METRIC.findall(query))
    assert names, query
    assert names <= known.keys(), f"{names - known.keys()} in {query}"
    for name, inside in _LABELS.findall(query):
        asked = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)", inside)) - NOT_OURS
        assert asked <= known[name], query
    for inside in _BY.findall(query):
        wanted = {word.strip() for word in inside.split(",")} - NOT_OURS
        assert any(wanted <= known[name] for name in names), query


def test_alerts_ask_for_what_is_exported_and_lead_to_a_runbook() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    entries = set(re.findall(r"^### (\w+)$", page, re.M))
    names = [one["alert"] for one in alerts()]
    assert len(set(names)) == len(names)
    assert set(names) == {name for name in entries if name.startswith("Shardgit")}
    for one in alerts():
        check_query(one["expr"])
        assert one["annotations"]["runbook"] == f"docs/operations.md#{one['alert'].lower()}"
        assert one["labels"]["severity"] in {"critical", "warning"}
        for label in re.findall(r"\$labels\.(\w+)", one["annotations"]["summary"]):
            by = _BY.findall(one["expr"])
            assert label in NOT_OURS or not by or any(label in each for each in by)


def test_runbooks_name_events_that_are_logged() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    page = page[page.index("\n## Alerts\n") : page.index("\n## Backups")]
    sources = "".join(path.read_text() for path in (ROOT / "src/shardgit").rglob("*.py"))
    for words in re.findall(
        r"log lines? ((?:`[a-z_]+`(?: and )?)+)|((?:`[a-z_]+` (?:and )?)+)lines", page
    ):
        for event in re.findall(r"`([a-z_]+)`", " ".join(words)):
            assert f'"{event}"' in sources, event


def test_panels_ask_for_what_is_exported_and_every_metric_has_one() -> None:
    shown: set[str] = set()
    for title, query in queries():
        check_query(query)
        assert 'instance=~"$instance"' in query, title
        shown |= set(_METRIC.findall(query))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()} - OF_PROMETHEUS
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}


def test_the_dashboard_is_what_its_maker_makes_and_its_panels_do_not_overlap() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", ROOT / "tools" / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module
    spec.loader.exec_module(module)
    assert DASHBOARD.read_text() == module.text()
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells, panel["title"]
        assert max(x for x, _ in mine) < 24
        cells |= mine


# ---- alerts that fire

RISES = "0+1x600"  # one a minute
STAYS = "7+0x600"
# What makes each alert fire, and what the same looks like when all is well: series and their values a minute.
FIRES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "ShardgitDown": ({'up{job="shardgit"}': "0x600"}, {'up{job="shardgit"}': "1x600"}),
    "ShardgitNoWorkers": ({"shardgit_workers": "0x600"}, {"shardgit_workers": "2x600"}),
    "ShardgitWorkersDie": (
        {"shardgit_worker_restarts_total": RISES},
        {"shardgit_worker_restarts_total": "0+0x30 1+0x500"},
    ),
    "ShardgitDataLoss": (
        {'shardgit_requests_total{edge="http",method="upload_pack",code="DATA_LOSS"}': RISES},
        {'shardgit_requests_total{edge="http",method="upload_pack",code="DATA_LOSS"}': STAYS},
    ),
    "ShardgitBlockFallbacks": (
        {'shardgit_block_fallbacks_total{outcome="damaged"}': RISES},
        {'shardgit_block_fallbacks_total{outcome="damaged"}': STAYS},
    ),
    "ShardgitScrubFindings": (
        {'shardgit_scrub_findings_total{kind="damaged_block"}': RISES},
        {'shardgit_scrub_findings_total{kind="damaged_block"}': STAYS},
    ),
    # Time begins at 1970 there: a moment in the past is below zero, so these are told apart by age alone.
    "ShardgitScrubOld": (
        {"shardgit_scrub_finished_timestamp_seconds": "1x700"},
        {"shardgit_scrub_finished_timestamp_seconds": "0+3600x700"},
    ),
    "ShardgitBackupOld": (
        {"shardgit_backup_taken_timestamp_seconds": "1x700"},
        {"shardgit_backup_taken_timestamp_seconds": "0+3600x700"},
    ),
    "ShardgitInternalErrors": (
        {'shardgit_requests_total{edge="http",method="other",code="INTERNAL"}': RISES},
        {'shardgit_requests_total{edge="http",method="other",code="INTERNAL"}': STAYS},
    ),
    "ShardgitUnavailable": (
        {
            'shardgit_requests_total{edge="http",method="other",code="UNAVAILABLE"}': "0+6x600",
            'shardgit_requests_total{edge="http",method="other",code="OK"}': "0+100x600",
        },
        {
            'shardgit_requests_total{edge="http",method="other",code="UNAVAILABLE"}': "0+4x600",
            'shardgit_requests_total{edge="http",method="other",code="OK"}': "0+100x600",
        },
    ),
    "ShardgitSlow": (
        {
            'shardgit_request_seconds_bucket{edge="http",method="info_refs",le="2"}': "0+90x600",
            'shardgit_request_seconds_bucket{edge="http",method="info_refs",le="10"}': "0+100x600",
            'shardgit_request_seconds_bucket{edge="http",method="info_refs",le="+Inf"}': "0+100x600",
        },
        {
            'shardgit_request_seconds_bucket{edge="http",method="info_refs",le="2"}': "0+100x600",
            'shardgit_request_seconds_bucket{edge="http",method="info_refs",le="10"}': "0+100x600",
            'shardgit_request_seconds_bucket{edge="http",method="info_refs",le="+Inf"}': "0+100x600",
        },
    ),
    "ShardgitDiskFills": (
        {'shardgit_shard_free_bytes{shard="shard 0"}': "60e9-100e6x600"},  # 6 GB an hour
        {'shardgit_shard_free_bytes{shard="shard 0"}': "60e9-1e6x600"},
    ),
    "ShardgitSlowFsync": (
        {
            'shardgit_fsync_seconds_bucket{part="journal",le="0.5"}': "0+80x600",
            'shardgit_fsync_seconds_bucket{part="journal",le="1"}': "0+100x600",
            'shardgit_fsync_seconds_bucket{part="journal",le="+Inf"}': "0+100x600",
        },
        {
            'shardgit_fsync_seconds_bucket{part="journal",le="0.5"}': "0+99x600",
            'shardgit_fsync_seconds_bucket{part="journal",le="1"}': "0+100x600",
            'shardgit_fsync_seconds_bucket{part="journal",le="+Inf"}': "0+100x600",
        },
    ),
    "ShardgitEventLoopLags": (
        {
            'shardgit_event_loop_lag_seconds_bucket{le="0.5"}': "0+90x600",
            'shardgit_event_loop_lag_seconds_bucket{le="2"}': "0+100x600",
            'shardgit_event_loop_lag_seconds_bucket{le="+Inf"}': "0+100x600",
        },
        {
            'shardgit_event_loop_lag_seconds_bucket{le="0.5"}': "0+100x600",
            'shardgit_event_loop_lag_seconds_bucket{le="2"}': "0+100x600",
            'shardgit_event_loop_lag_seconds_bucket{le="+Inf"}': "0+100x600",
        },
    ),
    "ShardgitRefuses": (
        {'shardgit_requests_refused_total{reason="cpu"}': "0+120x600"},
        {'shardgit_requests_refused_total{reason="cpu"}': "0+30x600"},
    ),
    "ShardgitConnectionsRefused": (
        {"shardgit_http_connections_refused_total": RISES},
        {"shardgit_http_connections_refused_total": STAYS},
    ),
    "ShardgitSettlesFail": (
        {'shardgit_settles_total{outcome="failed"}': RISES},
        {'shardgit_settles_total{outcome="done"}': RISES},
    ),
    "ShardgitMaintenanceFails": (
        {'shardgit_maintenance_total{task="gc",outcome="failed"}': RISES},
        {'shardgit_maintenance_total{task="gc",outcome="done"}': RISES},
    ),
    "ShardgitGcWaits": (
        {"shardgit_gc_waiting_blocks": "3x600"},
        {"shardgit_gc_waiting_blocks": "3x5 0x600"},
    ),
    "ShardgitHooksFail": (
        {'shardgit_hooks_total{event="update",outcome="failed"}': RISES},
        {'shardgit_hooks_total{event="update",outcome="refused"}': RISES},
    ),
    "ShardgitObjectStoreFails": (
        {'shardgit_object_store_requests_total{operation="put",outcome="unavailable"}': "0+60x600"},
        {'shardgit_object_store_requests_total{operation="put",outcome="ok"}': "0+600x600"},
    ),
    "ShardgitEtcdAway": (
        {"shardgit_journal_stale_reads_total": RISES},
        {"shardgit_journal_stale_reads_total": STAYS},
    ),
    "ShardgitReplicaLoads": (
        {"shardgit_journal_replica_loads_total": RISES},
        {"shardgit_journal_replica_loads_total": "1+0x600"},
    ),
    "ShardgitTierNoSpace": (
        {'shardgit_tier_drops_total{reason="no_space"}': RISES},
        {'shardgit_tier_drops_total{reason="oldest"}': RISES},
    ),
}
# Where values are an hour apart; else a minute, and it is looked after forty, or a hundred where rules look far back.
HOURLY = {"ShardgitScrubOld": "520h", "ShardgitBackupOld": "50h", "ShardgitGcWaits": "10h"}
FAR_BACK = re.compile(r"\b(30m|[0-9]+h)\b")


# Counters with labels appear with their first event: these fire for one, too.
APPEARING = {
    "ShardgitDataLoss",
    "ShardgitBlockFallbacks",
    "ShardgitScrubFindings",
    "ShardgitInternalErrors",
    "ShardgitSettlesFail",
    "ShardgitMaintenanceFails",
    "ShardgitHooksFail",
    "ShardgitTierNoSpace",
}


def test_every_alert_has_a_case() -> None:
    assert {one["alert"] for one in alerts()} == set(FIRES)


@pytest.mark.skipif(not Path(PROMTOOL).exists(), reason="promtool is not there")
def test_every_alert_fires_when_it_should_and_not_when_all_is_well(tmp_path: Path) -> None:
    far = {one["alert"] for one in alerts() if FAR_BACK.search(f"{one['expr']} {one.get('for')}")}
    files = []
    for interval, names in (("1m", FIRES.keys() - HOURLY), ("1h", HOURLY)):
        tests = []
        for name in sorted(names):
            later = "100m" if name in far else "40m"
            cases = [*zip(FIRES[name], (True, False), (later, later), strict=True)]
            if name in APPEARING:
                key = next(iter(FIRES[name][0]))
                cases.append(({key: "_x20 5x400"}, True, "25m"))
                cases.append(({key: "_x20 5x400"}, False, "100m"))  # and are over then
            for series, fires, at in cases:
                given = [{"series": _on(key), "values": value} for key, value in series.items()]
                # Not what it says, which its labels change: ALERTS is Prometheus' own series.
                wanted = {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0',
                    "eval_time": HOURLY.get(name, at),
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
                tests.append(
                    {"interval": interval, "input_series": given, "promql_expr_test": [wanted]}
                )
        file = tmp_path / f"{interval}.yml"
        rules = {"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": tests}
        file.write_text(yaml.safe_dump(rules))
        files.append(str(file))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def _on(series: str) -> str:
    """Return a series as a scrape gives it."""
    name, mark, inside = series.partition("{")
    labels = inside.rstrip("}") if mark else ""
    where = "" if "job=" in labels else ',job="shardgit"'
    return f'{name}{{{labels}{"," if labels else ""}instance="a:7423"{where}}}'.replace("{,", "{")


def test_the_unit_names_what_is_there() -> None:
    unit = (ROOT / "deploy" / "systemd" / "shardgit.service").read_text()
    assert "shardgit serve --config" in unit
    drain, stop = 30, int(re.search(r"TimeoutStopSec=(\d+)", unit)[1])  # type: ignore[index]
    assert stop > drain + 10
