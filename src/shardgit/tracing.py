"""Traces by OpenTelemetry, where ``traces = "otlp"`` asks for them; the extra ``otel`` has what sends them.

A request is a span, with what its time went into as children and as attributes. Where to send spans, how many of the
requests, and what is said of this server besides, say OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, ...).
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from shardgit.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

TRACES = ("off", "otlp")
PARTS_MAX = 64  # children of a request; a clone has a wait for its client with each piece
PART_MIN_S = 0.001
HEADERS = ("traceparent", "tracestate")
WORST = ("INTERNAL", "DATA_LOSS", "UNAVAILABLE")  # codes that are a server's errors, not a client's
CLOSE_S = 2.0  # a collector that is away takes 30
NS = 1_000_000_000


class Tracer:
    """Makes spans of this process's requests."""

    def __init__(self, version: str) -> None:
        """Begin to send spans. Errors: Refused without OpenTelemetry's packages."""
        try:
            self._api = importlib.import_module("opentelemetry.trace")
            self._baggage = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
            sdk = importlib.import_module("opentelemetry.sdk.trace")
            sending = importlib.import_module("opentelemetry.sdk.trace.export")
            resources = importlib.import_module("opentelemetry.sdk.resources")
            exporter = importlib.import_module(_exporter())
        except ImportError as cause:
            raise Refused(
                "traces need OpenTelemetry: pip install 'shardgit[otel]'", missing=cause.name or ""
            ) from cause
        resource = resources.Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "shardgit"),
                "service.version": version,
                "process.pid": os.getpid(),
            }
        )
        self._provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(sending.BatchSpanProcessor(exporter.OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("shardgit", version)
        self._propagator = self._baggage.TraceContextTextMapPropagator()

    def begin(self, edge: str, request_id: str, carried: Mapping[str, str]) -> RequestSpan:
        """Return the span of a request that begins now, a child of what ``carried`` (W3C headers) names."""
        context = self._propagator.extract(dict(carried)) if carried else None
        span = self._tracer.start_span(
            edge,
            context=context,
            kind=self._api.SpanKind.SERVER,
            attributes={"shardgit.edge": edge, "shardgit.request_id": request_id},
        )
        return RequestSpan(self, span)

    def part(self, parent: Any, into: str, seconds: float) -> None:
        """Tell of a part of a span that ends now."""
        end = time.time_ns()
        begin = end - int(seconds * NS)
        context = self._api.set_span_in_context(parent)
        self._tracer.start_span(into, context=context, start_time=begin).end(end)

    def carry(self, span: Any) -> dict[str, str]:
        """Return the W3C headers that make what another server does a child of the span."""
        carried: dict[str, str] = {}
        self._propagator.inject(carried, context=self._api.set_span_in_context(span))
        return carried

    def failed(self, span: Any, code: str) -> None:
        """Mark a span as one that went wrong."""
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, code))

    def close(self) -> None:
        """Send what was not sent yet, for CLOSE_S at the most."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


class RequestSpan:
    """The span of one request."""

    __slots__ = ("_left", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._left = PARTS_MAX if span.is_recording() else 0

    def part(self, into: str, seconds: float) -> None:
        """Tell what time that ends now went into, unless it is short or there were many."""
        if self._left and seconds >= PART_MIN_S:
            self._left -= 1
            self._tracer.part(self._span, into, seconds)

    def carry(self) -> dict[str, str]:
        """Return the headers for calls to other servers."""
        return self._tracer.carry(self._span)

    def end(self, *, name: str, what: str, code: str, spent: Mapping[str, float]) -> None:
        """End it."""
        span = self._span
        if span.is_recording():
            span.update_name(name)
            span.set_attributes(
                {"shardgit.what": what, "shardgit.code": code}
                | {f"shardgit.spent.{into}_s": round(part, 6) for into, part in spent.items()}
            )
            if code in WORST:
                self._tracer.failed(span, code)
        span.end()


def _exporter() -> str:
    """Return the module that sends spans, by OpenTelemetry's own variables."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", named)
    if protocol not in ("grpc", "http/protobuf"):
        raise Refused("traces are sent as grpc or http/protobuf", protocol=protocol[:40])
    kind = "grpc" if protocol == "grpc" else "http"
    return f"opentelemetry.exporter.otlp.proto.{kind}.trace_exporter"
