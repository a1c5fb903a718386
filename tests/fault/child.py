"""Jobs in processes of their own, so that whoever forks never opens LMDB, and survives what kills them."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

JOB_MAX_S = 240  # of a busy machine


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: what it returned, or why it failed, or the signal that it died of."""

    result: Any = None
    failure: str = ""
    signal: int = 0


def ended(job: Callable[[], object], *, seconds: int = JOB_MAX_S) -> Ended:
    """Run a job in a process of its own, which is killed by SIGALRM when it takes too long."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        signal.alarm(seconds)
        try:
            told = Ended(job())
        except BaseException:
            told = Ended(failure=traceback.format_exc()[-60_000:])
        data = pickle.dumps(told)
        while data:
            data = data[os.write(writer, data) :]
        os._exit(0)
    os.close(writer)
    data = b""
    while piece := os.read(reader, 65_536):
        data += piece
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Ended(signal=os.WTERMSIG(status))
    found: Ended = pickle.loads(data)
    return found


def in_child(job: Callable[[], object]) -> Any:
    """Run a job in a process of its own; AssertionError when it fails or dies."""
    done = ended(job)
    if done.failure or done.signal:
        raise AssertionError(f"{done.failure} (signal {done.signal})")
    return done.result
