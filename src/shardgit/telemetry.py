"""Logs, request ids and metrics. Event names are static; facts are fields.

docs/metrics.md lists every metric. Workers count into files that the supervisor adds up, where
PROMETHEUS_MULTIPROC_DIR is set before this module is imported.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import re
import sys
import time
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shardgit import clock
from shardgit.countfile import count_safely
from shardgit.report import Slow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardgit.errors import ShardgitError
    from shardgit.tracing import RequestSpan, Tracer

request_id: ContextVar[str] = ContextVar("request_id", default="")
_current: ContextVar[Request | None] = ContextVar("request", default=None)
OTHER = "other"
# Methods that last as long as what they tell of.
LONG = frozenset(
    (
        *("WatchRefs", "PlanRing", "Rebalance", "CheckReceipt", "CollectGarbage"),
        *("CompactRepository", "CompactShards", "VerifyRepository", "VerifyShards", "RepairShards"),
        *("CreateBackup", "VerifyBackups", "PruneBackups", "RestoreRepository"),
    )
)
SLOW_REQUEST_S = 10.0
slow_requests: deque[Slow] = deque(maxlen=50)
tracer: Tracer | None = None
"""What makes spans of requests, where traces are on."""
slow_request_s = SLOW_REQUEST_S
"""From what time on, beside that in which its client took or sent nothing, a request is told in the log."""
ERROR_MAX = 2_000  # characters of a client's own words in a log line
_ids = random.Random()  # noqa: S311 - they tell requests apart, and keep nothing secret
os.register_at_fork(after_in_child=_ids.seed)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600)

count_safely()
REGISTRY = CollectorRegistry()
"""What workers count. The supervisor's own metrics stand in supervisor.py: a worker that knew them
would report them too."""

REQUESTS = Counter(
    "shardgit_requests_total",
    "Requests by edge, method and result code.",
    ["edge", "method", "code"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "shardgit_request_seconds",
    "Time of requests, to the last byte.",
    ["edge", "method"],
    buckets=BUCKETS,
    registry=REGISTRY,
)
REQUESTS_ACTIVE = Gauge(
    "shardgit_requests_active",
    "Requests under way.",
    ["edge"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
REQUEST_SPENT = Counter(
    "shardgit_request_spent_seconds_total",
    "Time of requests by what it went into.",
    ["edge", "into"],
    registry=REGISTRY,
)


def configure(*, json: bool | None = None, level: str = "info") -> None:
    """Send logs to standard error: JSON lines, or text on a terminal."""
    as_json = not sys.stderr.isatty() if json is None else json
    rendered: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer()]
    if as_json:
        rendered = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        # One write a line: workers share the stream, and print() would write the newline apart.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(one, _Libraries) for one in root.handlers):
        root.addHandler(_Libraries())


class _Libraries(logging.Handler):
    """Makes lines of our log of what libraries have to say: else it goes to standard error as text, between ours."""

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()[:ERROR_MAX]
        log().log(
            record.levelno,
            "library_said",
            library=record.name,
            said=said,
            exc_info=record.exc_info or None,
        )


def _add_request_id(
    _: object, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if current := request_id.get():
        event["request_id"] = current
    return event


def log() -> structlog.stdlib.BoundLogger:
    """Return the logger."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


class Request:
    """One request, as logs and metrics see it, while it is entered: id, time, count.

    What nobody expected gets a log line. ``given_id`` is the client's X-Request-Id, taken when it is harmless;
    ``carried`` has W3C's headers of traces, where the client sent them.
    """

    __slots__ = (
        "_begun",
        "_carried",
        "_current_token",
        "_span",
        "_token",
        "code",
        "edge",
        "id",
        "method",
        "spent",
        "what",
    )

    def __init__(
        self,
        edge: str,
        what: str,
        given_id: str | None = None,
        *,
        method: str = OTHER,
        carried: Mapping[str, str] | None = None,
    ) -> None:
        self._carried = carried or {}
        self._span: RequestSpan | None = None
        self.edge = edge
        self.what = what
        self.method = method  # one of few
        self.spent: dict[str, float] = {}
        good = given_id is not None and _REQUEST_ID.fullmatch(given_id)
        self.id = given_id if given_id and good else _ids.randbytes(8).hex()
        self.code = "OK"

    def __enter__(self) -> Self:
        """Begin."""
        self._token = request_id.set(self.id)
        self._current_token = _current.set(self)
        if tracer is not None:
            self._span = tracer.begin(self.edge, self.id, self._carried)
        self._begun = time.monotonic()
        _active(self.edge).inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """End."""
        if isinstance(error, Exception) and self.code == "OK":
            self.code = "INTERNAL"
            log().exception("request_failed", edge=self.edge, what=self.what)
        seconds = time.monotonic() - self._begun
        _active(self.edge).dec()
        _ended(self.edge, self.method, self.code).inc()
        _seconds(self.edge, self.method).observe(seconds)
        for into, part in self.spent.items():
            _spent_in(self.edge, into).inc(part)
        if self._span is not None:
            name = f"{self.edge} {self.method}"
            what = self.what[:ERROR_MAX]
            self._span.end(name=name, what=what, code=self.code, spent=self.spent)
        is_long = self.method in LONG
        if not is_long and seconds - self.spent.get("client", 0.0) >= slow_request_s:
            self._tell_slow(seconds)
        # A generator that ends in another context than it began in may not reset it.
        with contextlib.suppress(ValueError):
            request_id.reset(self._token)
            _current.reset(self._current_token)

    def _tell_slow(self, seconds: float) -> None:
        told = {into: round(part, 3) for into, part in sorted(self.spent.items())}
        slow = Slow(
            time_ms=clock.now_ms(),
            edge=self.edge,
            method=self.method,
            what=self.what[:ERROR_MAX],
            code=self.code,
            seconds=round(seconds, 3),
            spent=told,
        )
        slow_requests.append(slow)
        facts = msgspec.structs.asdict(slow)
        del facts["time_ms"]
        log().info("slow_request", **facts)

    def spend(self, into: str, seconds: float) -> None:
        """Count time towards what it went into."""
        self.spent[into] = self.spent.get(into, 0.0) + seconds
        if self._span is not None:
            self._span.part(into, seconds)

    def carry(self) -> dict[str, str]:
        """Return the headers that make what another server does a part of this request's trace."""
        return self._span.carry() if self._span is not None else {}

    def failed(self, error: ShardgitError) -> None:
        """Note a typed error."""
        self.code = error.code
        severe = error.code in ("INTERNAL", "DATA_LOSS")
        log().log(
            logging.ERROR if severe else logging.INFO,
            "request_refused",
            edge=self.edge,
            what=self.what[:ERROR_MAX],
            error=str(error)[:ERROR_MAX],
            code=error.code,
        )

    def gone(self) -> None:
        """Note that the client went away."""
        self.code = "CANCELLED"


@functools.cache
def _active(edge: str) -> Gauge:
    return REQUESTS_ACTIVE.labels(edge)


@functools.cache
def _ended(edge: str, method: str, code: str) -> Counter:
    return REQUESTS.labels(edge, method, code)


@functools.cache
def _seconds(edge: str, method: str) -> Histogram:
    return REQUEST_SECONDS.labels(edge, method)


@functools.cache
def _spent_in(edge: str, into: str) -> Counter:
    return REQUEST_SPENT.labels(edge, into)


def spend(into: str, seconds: float) -> None:
    """Count time of the request under way in this task, if one is, towards what it went into.

    "queue" waiting for a thread, "work" on one, "journal" until reads are fresh, "client" until it took or sent bytes,
    "commit" until the journal had it. Parts may overlap where a request does several things at once.
    """
    request = _current.get()
    if request is not None:
        request.spend(into, seconds)


def carry_trace() -> dict[str, str]:
    """Return the headers, or metadata, that carry the trace of the request under way to another server."""
    request = _current.get()
    return request.carry() if request is not None else {}


def carry() -> list[tuple[str, str]]:
    """Return the metadata of calls to servers of ours: the request's id, and its trace."""
    request = _current.get()
    return [] if request is None else [("x-request-id", request.id), *request.carry().items()]


@contextlib.contextmanager
def spending(into: str) -> Iterator[None]:
    """Count the time of the block towards what the request's time went into."""
    begun = time.monotonic()
    try:
        yield
    finally:
        spend(into, time.monotonic() - begun)
