"""Metrics stand in docs/metrics.md; events are static; requests have ids."""

from __future__ import annotations

import ast
import json
import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from prometheus_client import REGISTRY as DEFAULT_REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from shardgit import metrics, telemetry
from shardgit.console import gauges
from shardgit.errors import DataLoss, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
# These have lists of names, or look at text that they wrote themselves.
LISTING = {"test_deploy.py", "test_telemetry.py", "test_console_traffic.py"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def registered() -> dict[str, tuple[str, str]]:
    """Return name -> (type, labels) of all metrics that processes of a server register."""
    found = {}
    for registry in (telemetry.REGISTRY, gauges.REGISTRY):
        for metric in list(registry._collector_to_names):  # the registry offers no list
            labels = ", ".join(getattr(metric, "_labelnames", ()))
            kind = str(metric._type)  # type: ignore[attr-defined]
            name = str(metric._name)  # type: ignore[attr-defined]
            found[name + ("_total" if kind == "counter" else "")] = (kind, labels)
    return found


def documented() -> dict[str, tuple[str, str]]:
    """Return what the table of docs/metrics.md says."""
    rows = re.findall(
        r"^\| `(shardgit_\w+)` \| (\w+) \| ([^|]*)\|", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    return {name: (kind, labels.replace("`", "").strip()) for name, kind, labels in rows}


def test_the_page_lists_exactly_the_metrics_that_are_registered() -> None:
    assert documented() == registered()


def constants() -> dict[tuple[str, str], str]:
    """Return module and constant -> name of all metrics."""
    names = {one.removesuffix("_total"): one for one in registered()}
    return {
        (module.__name__.rpartition(".")[2], constant): names[metric._name]
        for module in (telemetry, metrics, gauges)
        for constant, metric in vars(module).items()
        if isinstance(metric, MetricWrapperBase)
    }


def looked_at(test: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the metrics that a test names: a sample in a string, or a constant such as metrics.HOOKS."""
    known, by_constant = registered(), constants()
    found = set()
    for node in ast.walk(test):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for sample in re.findall(r"\bshardgit_\w+", node.value):
                whole = re.sub("_(count|sum|bucket)$", "", sample)
                is_of_histogram = known.get(whole, ("", ""))[0] == "histogram"
                found.add(whole if is_of_histogram else sample)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(by_constant.get((node.value.id, node.attr), ""))
    return found & known.keys()


def test_each_metric_is_looked_at_by_a_test_in_which_something_happens() -> None:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        if path.name in LISTING or not re.search(r"shardgit_|telemetry\.|metrics\.", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name.startswith("test_")
                and any(isinstance(one, ast.Assert) for one in ast.walk(node))
            ):
                found |= looked_at(node)
    assert documented().keys() - found == set()


def test_a_metric_is_looked_at_by_its_name_or_its_constant_and_not_by_a_part_of_it() -> None:
    source = """
def test_it(now):
    assert now['shardgit_hooks_total{event="update",outcome="failed"}'] == 1
    assert now["shardgit_hook_seconds_sum"] and now["shardgit_request_second"]
    assert now["shardgit_tier_reads_total_sum"]
    assert metrics.GC_WAITING and other.GC_BYTES
"""
    (test,) = ast.parse(source).body
    assert isinstance(test, ast.FunctionDef)
    names = {"shardgit_hooks_total", "shardgit_hook_seconds", "shardgit_gc_waiting_blocks"}
    assert looked_at(test) == names


def test_no_metric_of_ours_is_in_the_default_registry() -> None:
    names = [str(getattr(one, "_name", "")) for one in list(DEFAULT_REGISTRY._collector_to_names)]
    assert not [name for name in names if name.startswith("shardgit")]


def test_metrics_are_made_in_three_modules_only() -> None:
    makers = {
        path.name
        for path in (ROOT / "src/shardgit").rglob("*.py")
        if re.search(r"\b(Counter|Gauge|Histogram|Summary)\(\s*\"", path.read_text())
    }
    assert makers == {"telemetry.py", "metrics.py", "gauges.py"}


def test_events_are_static_snake_case() -> None:
    for path in (ROOT / "src/shardgit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            made = node.func.value
            is_log = isinstance(made, ast.Call) and ast.unparse(made.func).split(".")[-1] == "log"
            if is_log and node.func.attr in LEVELS:
                event = node.args[0]
                assert isinstance(event, ast.Constant), f"{path}:{node.lineno}"
                assert re.fullmatch(r"[a-z]+(_[a-z]+)*", str(event.value)), f"{path}:{node.lineno}"


def test_logs_are_json_lines_with_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(json=True)
    with telemetry.Request("http", "/x", "given-1") as seen:
        telemetry.log().info("something_happened", count=3)
    line = json.loads(capsys.readouterr().err)
    assert seen.id == "given-1"
    assert line["event"] == "something_happened"
    assert (line["count"], line["request_id"], line["level"]) == (3, "given-1", "info")


def test_what_libraries_say_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(json=True)
    telemetry.configure(json=True)  # one handler all the same
    logger = logging.getLogger("some.library")
    logger.error("it %s\nbadly", "went", exc_info=ZeroDivisionError())
    logger.info("nobody wants to know")
    (text,) = capsys.readouterr().err.splitlines()
    line = json.loads(text)
    assert (line["event"], line["library"], line["level"]) == (
        "library_said",
        "some.library",
        "error",
    )
    assert line["said"] == "it went\nbadly"
    assert "ZeroDivisionError" in line["exception"]


def test_a_request_id_that_could_break_a_log_is_replaced() -> None:
    for given in ("", "a b", "x" * 65, "a\nb", None):
        with telemetry.Request("http", "/x", given) as seen:
            assert seen.id != given
            assert re.fullmatch(r"[0-9a-f]{16}", seen.id)
    assert telemetry.request_id.get() == ""


def test_a_refusal_is_logged_by_its_severity(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(json=True)
    with telemetry.Request("http", "/x") as seen:
        seen.failed(NotFound("not here"))
    with telemetry.Request("http", "/x") as seen:
        seen.failed(DataLoss("gone"))
    levels = [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()]
    assert levels == ["info", "error"]


def test_an_unexpected_error_is_counted_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(json=True)
    before = telemetry.REQUESTS.labels("grpc", "other", "INTERNAL")._value.get()
    with pytest.raises(ZeroDivisionError), telemetry.Request("grpc", "Get"):
        raise ZeroDivisionError
    assert telemetry.REQUESTS.labels("grpc", "other", "INTERNAL")._value.get() == before + 1
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "request_failed"
    assert "ZeroDivisionError" in line["exception"]


def test_a_slow_request_is_told_with_what_its_time_went_into(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.configure(json=True)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(telemetry, "slow_request_s", 10.0)
    before = telemetry.REQUEST_SPENT.labels("http", "work")._value.get()
    with telemetry.Request("http", "/x", method="upload_pack"):
        telemetry.spend("work", 4.0)
        telemetry.spend("work", 3.0)
        with telemetry.spending("client"):
            now += 5
        now += 10
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["method"], line["seconds"]) == ("slow_request", "upload_pack", 15.0)
    assert line["spent"] == {"client": 5.0, "work": 7.0}
    assert telemetry.REQUEST_SPENT.labels("http", "work")._value.get() == before + 7
    with telemetry.Request("http", "/x"):  # slow for its client
        with telemetry.spending("client"):
            now += 100
        now += 9
    with telemetry.Request("grpc", "WatchRefs", method="WatchRefs"):
        now += 10_000
    assert capsys.readouterr().err == ""
    telemetry.spend("work", 1.0)  # of no request


def test_calls_that_are_never_slow_are_there() -> None:
    protos = "".join(path.read_text() for path in (ROOT / "proto").rglob("*.proto"))
    assert set(re.findall(r"rpc (\w+)\(", protos)) >= telemetry.LONG
