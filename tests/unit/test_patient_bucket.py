"""A bucket that is slow is waited for, one that is silent is given up, whatever was asked of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from waiting import WAIT_S, until

from shardgit.buckets import patient
from shardgit.buckets.memory import MemoryBucket
from shardgit.buckets.patient import SMALL_BYTES, PatientBucket
from shardgit.errors import PermissionRefused, Unavailable
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = b"x" * (SMALL_BYTES + 1)


class Gated(MemoryBucket):
    """Answers once ``open`` is set, or fails when it is not set in ``give_up_s``."""

    def __init__(self, inner: MemoryBucket | None = None, *, give_up_s: float = 30.0) -> None:
        super().__init__()
        self.inner = inner or MemoryBucket()
        self.open = threading.Event()
        self.open.set()
        self.give_up_s = give_up_s
        self.asked: list[str] = []

    def _pass(self, what: str) -> None:
        self.asked.append(what)
        if not self.open.wait(self.give_up_s):
            raise Unavailable("timed out")

    def put(self, name: str, data: bytes) -> None:
        self._pass("put")
        self.inner.put(name, data)

    def get(self, name: str) -> bytes | None:
        self._pass("get")
        return self.inner.get(name)

    def get_range(self, name: str, start: int, end: int) -> bytes | None:
        self._pass("get_range")
        return self.inner.get_range(name, start, end)

    def size(self, name: str) -> int | None:
        self._pass("size")
        return self.inner.size(name)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "FIRST_S", 0.05)
    monkeypatch.setattr(patient, "PULSE_S", 0.02)


@pytest.fixture
def quick() -> Gated:
    return Gated(give_up_s=0.05)


@pytest.fixture
def slow(quick: Gated) -> Iterator[Gated]:
    made = Gated(quick.inner)
    yield made
    made.open.set()


def begin(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Unavailable as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def feelers() -> int:
    return sum(one.name == "bucket-pulse" for one in threading.enumerate())


def test_what_is_small_goes_the_quick_way_and_what_is_large_the_slow(
    quick: Gated, slow: Gated
) -> None:
    bucket = PatientBucket(quick, slow)
    bucket.put("a", b"small")
    bucket.put("b", LARGE)
    assert bucket.get_range("b", 1, 3) == b"xx"
    assert bucket.get_range("b", 0, len(LARGE)) == LARGE
    assert bucket.get("a") == b"small"
    assert bucket.size("b") == len(LARGE)
    assert quick.asked == ["put", "get_range", "size"]
    assert slow.asked == ["put", "get_range", "get"]


def test_a_slow_store_is_waited_for_as_long_as_it_answers_something(
    quick: Gated, slow: Gated
) -> None:
    bucket = PatientBucket(quick, slow, away_s=0.15)
    slow.open.clear()
    threads = [begin(lambda: bucket.put("a", LARGE)) for _ in range(3)]
    time.sleep(0.6)
    assert [outcome for _, outcome in threads] == [[], [], []]
    assert feelers() == 1
    slow.open.set()
    for thread, outcome in threads:
        thread.join(10)
        assert outcome == [None]
    assert bucket.get("a") == LARGE
    until(lambda: not feelers())  # nobody asks for nobody


def test_a_silent_store_is_given_up_by_all_who_wait(quick: Gated, slow: Gated) -> None:
    bucket = PatientBucket(quick, slow, away_s=1.0)
    bucket.put("a", LARGE)
    for gate in (quick, slow):
        gate.open.clear()
    begun = time.monotonic()
    threads = [
        begin(lambda: bucket.get("a")),
        begin(lambda: bucket.put("b", LARGE)),
        begin(lambda: bucket.put("c", b"small")),
    ]
    for thread, outcome in threads:
        thread.join(10)
        assert isinstance(outcome[0], Unavailable)
    assert time.monotonic() - begun < 20
    took = []
    for call in (
        lambda: bucket.get("a"),
        lambda: bucket.put("d", b"small"),
        lambda: bucket.size("a"),
    ):
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            call()
        took.append(time.monotonic() - begun)
    assert max(took) < 1.0  # at once: it is known to be away
    assert feelers() == 1
    for gate in (quick, slow):
        gate.open.set()
    assert when_back(lambda: bucket.get("a")) == LARGE


def when_back(call: Callable[[], object]) -> object:
    """Return what a call returns once the store is noticed to be back."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            return call()
        except Unavailable:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_many_requests_wait_no_longer_than_one(quick: Gated, slow: Gated) -> None:
    """However many threads bring them: what one has learnt all others know."""
    bucket = PatientBucket(quick, slow, away_s=0.3)
    for gate in (quick, slow):
        gate.open.clear()
    begun = time.monotonic()
    workers = Workers(4)
    with pytest.raises(Unavailable):
        workers.map(lambda number: bucket.put(str(number), LARGE), range(200))
    assert time.monotonic() - begun < 10  # four at a time, each alone, would take 15 s
    for gate in (quick, slow):
        gate.open.set()
    when_back(lambda: bucket.put("x", LARGE))
    workers.close()


def test_odd_errors_of_the_pulse_do_not_end_it(
    quick: Gated, slow: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = PatientBucket(quick, slow, away_s=0.15)
    slow.open.clear()
    monkeypatch.setattr(quick, "size", lambda _: 1 // 0)
    thread, outcome = begin(lambda: bucket.put("a", LARGE))
    thread.join(10)
    assert isinstance(outcome[0], Unavailable)
    monkeypatch.undo()
    slow.open.set()
    when_back(lambda: bucket.put("a", LARGE))
    until(lambda: not feelers())


def test_a_request_that_had_not_begun_when_it_was_given_up_is_not_made(
    quick: Gated, slow: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient, "THREADS", 1)
    bucket = PatientBucket(quick, slow, away_s=0.1)
    for gate in (quick, slow):
        gate.open.clear()
    threads = [begin(lambda name=name: bucket.put(name, LARGE)) for name in "ab"]  # type: ignore[misc]
    for thread, outcome in threads:
        thread.join(10)
        assert isinstance(outcome[0], Unavailable)
    for gate in (quick, slow):
        gate.open.set()
    when_back(lambda: bucket.put("c", LARGE))
    assert slow.asked == ["put", "put"]


def test_errors_of_a_request_are_its_own(quick: Gated, slow: Gated) -> None:
    slow.give_up_s = 0.0
    slow.open.clear()
    bucket = PatientBucket(quick, slow)
    with pytest.raises(Unavailable, match="timed out"):
        bucket.put("a", LARGE)
    assert feelers() == 0


def test_a_refusal_is_an_answer(quick: Gated, slow: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stores do not tell who may not list whether an object is missing."""

    def refused(_: str) -> int:
        raise PermissionRefused("no")

    monkeypatch.setattr(quick, "size", refused)
    bucket = PatientBucket(quick, slow, away_s=0.15)
    slow.open.clear()
    thread, outcome = begin(lambda: bucket.put("a", LARGE))
    time.sleep(0.5)
    assert outcome == []
    slow.open.set()
    thread.join(10)
    assert outcome == [None]


def test_a_request_that_comes_through_after_all_ends_the_silence(
    quick: Gated, slow: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "size", lambda _: 1 // 0)  # the pulse never has an answer
    bucket = PatientBucket(quick, slow, away_s=0.15)
    slow.open.clear()
    thread, outcome = begin(lambda: bucket.put("a", LARGE))
    thread.join(10)
    assert isinstance(outcome[0], Unavailable)
    slow.open.set()
    assert when_back(lambda: bucket.get("a")) == LARGE
    monkeypatch.undo()
