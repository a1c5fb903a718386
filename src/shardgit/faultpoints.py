"""Named points round every commit point, at which tests let a process die, stand still or fail.

Nothing happens unless SHARDGIT_FAULT is set when the process starts, or a test listens. Its form is
NAME[:COUNT[:ACTION]], several with commas between: at the COUNTth time (the first without, each time
with "*") that the process reaches NAME ("*": any point) it does ACTION:

    kill        SIGKILL to itself (the default)
    pause       SIGSTOP to itself: it stands until SIGCONT
    fail        OSError with ENOSPC is raised at the point
    sleep       one second passes: a slow disk, where the point lies before an fsync
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE = "SHARDGIT_FAULT"
ANY = "*"
SLEEP_S = 1.0

_hook: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Tell that this process is at a point. Without a listener it costs one look at a global."""
    if _hook is not None:
        _hook(name)


@contextmanager
def listening(hook: Callable[[str], None]) -> Iterator[None]:
    """Call ``hook`` at each point of this process; what it raises is raised there."""
    global _hook  # noqa: PLW0603
    before, _hook = _hook, hook
    try:
        yield
    finally:
        _hook = before


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at one point. ``count`` 0: each time."""

    name: str
    count: int = 1
    action: str = "kill"


def faults_of(text: str) -> list[Fault]:
    """Read the variable's value; ValueError for one that says nothing."""
    found = []
    for word in text.split(","):
        name, _, rest = word.strip().partition(":")
        count, _, action = rest.partition(":")
        fault = Fault(name, 0 if count == ANY else int(count or 1), action or "kill")
        if not name or fault.count < 0 or fault.action not in _ACTIONS:
            raise ValueError(f"{VARIABLE} is not NAME[:COUNT[:ACTION]]: {word!r}")
        found.append(fault)
    return found


class Faults:
    """Counts the points that are reached and does what was asked for."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._times = [0] * len(faults)
        self._lock = Lock()

    def __call__(self, name: str) -> None:
        """Be at a point."""
        due = []
        with self._lock:
            for number, fault in enumerate(self._faults):
                if fault.name in (name, ANY):
                    self._times[number] += 1
                    if fault.count in (0, self._times[number]):
                        due.append(fault)
        for fault in due:
            _ACTIONS[fault.action]()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _pause() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sleep() -> None:
    time.sleep(SLEEP_S)


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "pause": _pause,
    "fail": _fail,
    "sleep": _sleep,
}

if text := os.environ.get(VARIABLE):
    _hook = Faults(faults_of(text))
