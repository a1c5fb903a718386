"""Tasks of simulated processes, of which exactly one runs at a time: a seed decides which, so a seed replays exactly.

A task is a thread that runs only while it holds the baton. It may lose it where it calls ``switch``: at the calls of
the simulated journal and shards, and at fault points. There its process may also die: then ``Killed`` is raised in all
tasks of the process, before anything else goes on, and whatever they reach for while they unwind is refused.
"""

from __future__ import annotations

import random
import threading
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STAY = 0.45  # how often a task keeps the baton where it might lose it
STEPS_MAX = 60_000  # a world that takes more stands in a loop
TICK_MS = 3
EPOCH_MS = 1_700_000_000_000


class Killed(BaseException):
    """The simulated process is dead."""


class Stuck(Exception):
    """No task can go on, or they go on for ever."""


class Process:
    """A simulated process: tasks and what they hold in memory live and die with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.stopped = False  # SIGSTOP


class Task:
    """A thread of a simulated process."""

    def __init__(self, process: Process, name: str, job: Callable[[], object]) -> None:
        self.process = process
        self.name = name
        self.job = job
        self.baton = threading.Lock()
        self.baton.acquire()
        self.wake_ms = 0.0
        self.ended = False
        self.thread: threading.Thread | None = None


class Scheduler:
    """Owns the baton, the clock and the dice."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.dice = random.Random(seed)
        self.now = float(EPOCH_MS)
        self.steps = 0
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.failures: list[str] = []
        self.quiet = False  # nobody loses the baton
        self.trace: list[str] | None = [] if trace else None
        self.at_step: Callable[[str], None] | None = None  # may kill processes
        self._main = threading.Lock()
        self._main.acquire()
        self._by_thread: dict[int, Task] = {}

    # ---- the clock; see shardgit.clock ----

    def now_ms(self) -> int:
        return int(self.now)

    def monotonic(self) -> float:
        return self.now / 1_000

    def sleep(self, seconds: float) -> None:
        task = self.mine()
        if task is None:
            self.now += seconds * 1_000
            return
        task.wake_ms = self.now + seconds * 1_000
        self.switch("sleep", stay=0.0)

    # ---- tasks ----

    def mine(self) -> Task | None:
        """Return the task whose thread calls, None for a thread that is none."""
        return self._by_thread.get(threading.get_ident())

    def spawn(self, process: Process, name: str, job: Callable[[], object]) -> Task:
        task = Task(process, name, job)
        self.tasks.append(task)
        return task

    def run(self) -> None:
        """Run until every task has ended."""
        if not self.tasks:
            return
        self._give(self._next())
        self._main.acquire()

    def switch(self, label: str, *, stay: float = STAY) -> None:
        """Let another task go on, perhaps."""
        task = self.mine()
        if task is None or self.quiet:
            return
        if task.process.dead:
            raise Killed
        self.steps += 1
        self.now += self.dice.random() * TICK_MS
        if self.trace is not None:
            self.trace.append(f"{self.steps:6} {task.process.name}/{task.name}: {label}")
        if self.steps > STEPS_MAX:
            self.failures.append(
                "no end: " + label + "\n" + "".join(traceback.format_stack(limit=12))
            )
            for each in self.tasks:
                each.process.dead = True
            raise Killed
        if self.at_step is not None:
            self.at_step(label)
        if task.process.dead:
            raise Killed
        if task.process.stopped or task.wake_ms > self.now or self.dice.random() >= stay:
            chosen = self._next()
            if chosen is not task:
                self._give(chosen)
                task.baton.acquire()
                if task.process.dead:
                    raise Killed

    def _next(self) -> Task:
        """Return who goes on: first whoever has to die."""
        ready = []
        for task in self.tasks:
            if task.process.dead:
                return task
            if not task.process.stopped and task.wake_ms <= self.now:
                ready.append(task)
        if not ready:
            awake = [task for task in self.tasks if not task.process.stopped]
            if not awake:  # nobody is left to wake them: they are woken
                awake = self.tasks
                for task in awake:
                    task.process.stopped = False
            first = min(awake, key=lambda task: task.wake_ms)
            self.now = max(self.now, first.wake_ms)
            return first
        return ready[int(self.dice.random() * len(ready))]

    def _give(self, task: Task) -> None:
        self.current = task
        if task.thread is None:
            task.thread = threading.Thread(target=self._body, args=(task,), daemon=True)
            task.thread.start()
        else:
            task.baton.release()

    def _body(self, task: Task) -> None:
        self._by_thread[threading.get_ident()] = task
        try:
            if not task.process.dead:
                task.job()
        except Killed:
            pass
        except BaseException:
            self.failures.append(f"{task.process.name}/{task.name}\n{traceback.format_exc()}")
        task.ended = True
        self.tasks.remove(task)
        del self._by_thread[threading.get_ident()]
        if self.tasks:
            self._give(self._next())
        else:
            self._main.release()


class SimLock:
    """What stands for threading.Lock in simulated code: whoever waits hands the baton on."""

    scheduler: Scheduler | None = None

    def __init__(self) -> None:
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        del timeout
        while self._held:
            if not blocking:
                return False
            scheduler = SimLock.scheduler
            if scheduler is None or scheduler.mine() is None:
                raise Stuck("a lock is held by a task that has ended")
            scheduler.switch("lock", stay=0.0)
        self._held = True
        return True

    def release(self) -> None:
        assert self._held
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
