"""The pool of threads: results, errors, and jobs that outlive nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from shardgit import telemetry
from shardgit.workers import Later, Workers, tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.close()


async def test_results_and_errors_come_back(workers: Workers) -> None:
    assert await workers.run(divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 7, 0)

    def stops() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        await workers.run(stops)


async def test_a_cancelled_caller_waits_for_its_job_however_often(workers: Workers) -> None:
    go = threading.Event()
    ended: list[str] = []

    def job() -> None:
        go.wait(10)
        ended.append("job")

    task = asyncio.ensure_future(workers.run(job))
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["job"]


async def test_an_outcome_may_come_from_elsewhere_and_a_cancelled_caller_waits_for_that(
    workers: Workers,
) -> None:
    told: list[Callable[[int], None]] = []

    def job() -> int | Later[int]:
        return Later(told.append)

    first = asyncio.ensure_future(workers.run_through(job))
    second = asyncio.ensure_future(workers.run_through(job))
    third = asyncio.ensure_future(workers.run_through(job))  # though both threads have had a job
    while len(told) < 3:
        await asyncio.sleep(0.001)
    second.cancel()
    await asyncio.sleep(0.01)
    assert not first.done()
    assert not second.done()
    for number, tell in enumerate(told):
        threading.Thread(target=tell, args=(number,)).start()
    outcomes = {await first, await third}
    assert len(outcomes) == 2
    assert outcomes < {0, 1, 2}
    with pytest.raises(asyncio.CancelledError):
        await second

    def fails() -> int | Later[int]:
        def start(tell: Callable[[int], None]) -> None:
            raise ZeroDivisionError

        return Later(start)

    with pytest.raises(ZeroDivisionError):
        await workers.run_through(fails)
    assert await workers.run_through(lambda: 7) == 7


async def test_no_more_jobs_than_threads_run_at_once(workers: Workers) -> None:
    running: list[int] = []
    most = 0
    lock = threading.Lock()

    def job(number: int) -> int:
        nonlocal most
        with lock:
            running.append(number)
            most = max(most, len(running))
        time.sleep(0.005)
        with lock:
            running.remove(number)
        return number

    assert await asyncio.gather(*(workers.run(job, n) for n in range(20))) == list(range(20))
    assert most <= 2


def test_map_keeps_order_and_raises_the_first_error_behind_all_jobs(workers: Workers) -> None:
    done: list[int] = []

    def job(number: int) -> int:
        if number in (3, 5):
            raise ValueError(number)
        time.sleep(0.002)
        done.append(number)
        return number * 2

    assert workers.map(job, range(3)) == [0, 2, 4]
    done.clear()
    with pytest.raises(ValueError, match="3"):
        workers.map(job, range(10))
    assert sorted(done) == [0, 1, 2, 4, 6, 7, 8, 9]


def test_closing_waits_for_what_runs_and_refuses_what_comes() -> None:
    workers = Workers(1)
    ended: list[int] = []

    def job() -> None:
        time.sleep(0.05)
        ended.append(1)

    waiting = [workers.submit(job), workers.submit(job)]
    workers.close()
    assert ended == [1, 1]
    assert all(each.done() for each in waiting)
    with pytest.raises(RuntimeError):
        workers.submit(job)
    workers.close()


async def test_tenants_take_turns_however_many_jobs_one_brings() -> None:
    workers = Workers(1)
    gate, done = threading.Event(), list[str]()
    blocked = asyncio.ensure_future(workers.run(gate.wait))
    await asyncio.sleep(0.05)

    async def bring(whose: str, count: int) -> None:
        tenant.set(whose)
        await asyncio.gather(*(workers.run(done.append, whose) for _ in range(count)))

    tasks = [asyncio.create_task(bring(*one)) for one in (("hot", 100), ("a", 2), ("b", 1))]
    await asyncio.sleep(0.05)
    assert 0.04 < workers.waited_s() < 5
    gate.set()
    await asyncio.gather(blocked, *tasks)
    assert done[:5] == ["hot", "a", "b", "hot", "a"]
    assert done[5:] == ["hot"] * 98
    assert workers.waited_s() == 0
    workers.close()


async def test_who_brings_many_jobs_is_no_sign_of_load_for_others() -> None:
    workers = Workers(1)

    async def bring(whose: str, count: int) -> None:
        tenant.set(whose)
        await asyncio.gather(*(workers.run(time.sleep, 0.01) for _ in range(count)))

    hot = asyncio.create_task(bring("hot", 40))
    await asyncio.sleep(0.2)
    assert workers.waited_s() < 0.1  # though its last job has waited for 0.2 s
    await hot
    workers.close()


def test_jobs_of_no_task_are_done_in_their_order() -> None:
    workers = Workers(1)
    done: list[int] = []
    futures = [workers.submit(done.append, number) for number in range(200)]
    for future in futures:
        future.result(10)
    assert done == list(range(200))
    workers.close()


def test_what_waits_is_done_before_the_threads_end() -> None:
    workers = Workers(2)
    gate, done = threading.Event(), list[int]()
    for _ in range(2):
        workers.submit(gate.wait)
    for number in range(50):
        workers.submit(done.append, number)
    closing = threading.Thread(target=workers.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert sorted(done) == list(range(50))


async def test_a_job_knows_for_which_request_it_is(workers: Workers) -> None:
    with telemetry.Request("http", "/x", "given-7"):
        assert await workers.run(telemetry.request_id.get) == "given-7"
    assert await workers.run(telemetry.request_id.get) == ""
