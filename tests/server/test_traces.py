"""Traces: requests of a real server arrive as spans at a collector."""

from __future__ import annotations

import sys
import time
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from served import git, serving, small_repository

import shardgit
from shardgit import telemetry
from shardgit.errors import NotFound, Refused
from shardgit.node import create_store, open_store
from shardgit.service.importing import import_repository
from shardgit.tracing import PARTS_MAX, Tracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADER = f"traceparent: 00-{TRACE}-{PARENT}-01"


class Collector(service.TraceServiceServicer):
    """Takes what is sent to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []

    def Export(self, request: Any, _: grpc.ServicerContext) -> wire.ExportTraceServiceResponse:
        for one in request.resource_spans:
            self.resources.append(told(one.resource))
            for scope in one.scope_spans:
                self.spans.extend(scope.spans)
        return wire.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        return [one for one in self.spans if one.name == name]


def told(one: Any) -> dict[str, Any]:
    """Return attributes as a dict."""
    values = {each.key: each.value for each in one.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


@contextmanager
def collecting() -> Iterator[tuple[Collector, dict[str, str]]]:
    """Give a collector, and the environment of a server that sends spans to it."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    environment = {
        "SHARDGIT_TRACES": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
    }
    try:
        yield collector, environment
    finally:
        server.stop(0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(small_repository(tmp_path / "source")))
    return tmp_path / "data"


def test_a_clone_is_a_part_of_its_clients_trace(data: Path, tmp_path: Path) -> None:
    with (
        collecting() as (collector, environment),
        serving(data, "--workers", "1", environment=environment) as server,
    ):
        client = ("-c", f"http.extraHeader={HEADER}")
        git(tmp_path, *client, "clone", "--quiet", server.url("demo"), "clone")
        with shardgit.connect(server.grpc) as store, pytest.raises(NotFound):
            store.repo("nobody").read("HEAD", "x")
        assert server.stop() == 0  # sends what was not sent yet
        packs = collector.named("http upload_pack")
        assert [one.trace_id.hex() for one in packs] == [TRACE] * len(packs)
        assert {one.parent_span_id.hex() for one in packs} == {PARENT}
        assert all(one.kind == Span.SPAN_KIND_SERVER for one in packs)
        facts = told(packs[-1])
        assert facts["shardgit.what"] == "/demo.git/git-upload-pack"
        assert facts["shardgit.code"] == "OK"
        assert facts["shardgit.spent.work_s"] > 0
        mine = {one.span_id for one in packs}
        parts = [one for one in collector.spans if one.parent_span_id in mine]
        assert {one.name for one in parts} <= {"queue", "work", "commit", "journal", "client"}
        assert all(one.end_time_unix_nano > one.start_time_unix_nano for one in parts)
        (missed,) = collector.named("grpc ReadPath")
        assert told(missed)["shardgit.code"] == "NOT_FOUND"
        assert missed.status.code != Status.STATUS_CODE_ERROR  # the client's mistake
        assert missed.trace_id.hex() != TRACE
        assert {one["service.name"] for one in collector.resources} == {"shardgit"}
        assert {one["deployment.environment"] for one in collector.resources} == {"test"}


def test_a_collector_that_is_away_holds_up_nobody(data: Path, tmp_path: Path) -> None:
    environment = {
        "SHARDGIT_TRACES": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with serving(data, "--workers", "1", environment=environment) as server:
        git(tmp_path, "clone", "--quiet", server.url("demo"), "clone")
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 20  # the exporter alone would try for 30 s and more


def test_a_request_has_no_more_parts_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (collector, environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        tracer = Tracer("0")
        monkeypatch.setattr(telemetry, "tracer", tracer)
        carried = {"traceparent": HEADER.removeprefix("traceparent: ")}
        with telemetry.Request("http", "/x", method="upload_pack", carried=carried) as seen:
            seen.spend("work", 0.0001)  # short: no part of its own
            for _ in range(2 * PARTS_MAX):
                telemetry.spend("client", 0.01)
            assert telemetry.carry_trace()["traceparent"].split("-")[1] == TRACE
            assert dict(telemetry.carry())["x-request-id"] == seen.id
        assert telemetry.carry() == []
        tracer.close()
        assert len(collector.named("client")) == PARTS_MAX
        (span,) = collector.named("http upload_pack")
        assert told(span)["shardgit.spent.client_s"] == pytest.approx(2 * PARTS_MAX * 0.01)
        assert not collector.named("work")


@pytest.mark.parametrize(
    "header", ["", "00-zz-1-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5_000]
)
def test_a_header_that_says_nothing_begins_a_trace(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as (collector, environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        tracer = Tracer("0")
        monkeypatch.setattr(telemetry, "tracer", tracer)
        with telemetry.Request("http", "/x", carried={"traceparent": header}):
            pass
        tracer.close()
        (span,) = collector.spans
        assert span.parent_span_id == b""


def test_traces_that_cannot_be_made_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(Refused, match="grpc or http/protobuf"):
        Tracer("0")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Refused, match=r"pip install 'shardgit\[otel\]'"):
        Tracer("0")


def test_spans_go_out_over_http_too(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[wire.ExportTraceServiceRequest] = []

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(wire.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        serving_it = Thread(target=server.serve_forever)
        serving_it.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}"
        )
        tracer = Tracer("0")
        monkeypatch.setattr(telemetry, "tracer", tracer)
        with telemetry.Request("ssh", "git-upload-pack 'x'"):
            pass
        tracer.close()
        server.shutdown()
        serving_it.join()
    (span,) = came[0].resource_spans[0].scope_spans[0].spans
    assert span.name == "ssh other"
