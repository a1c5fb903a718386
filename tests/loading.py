"""Requests again and again in threads, while something happens to the servers."""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from served import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 60.0


class Load:
    """Does the same again and again in threads, until the block is left; keeps what went wrong."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.errors: list[str] = []
        self._stop = threading.Event()

    def await_more(self) -> None:
        """Wait until each job was done once more."""
        before = dict(self.done)
        end = time.monotonic() + WAIT_S
        while any(self.done[name] == count for name, count in before.items()):
            assert time.monotonic() < end, (self.done, before, self.errors)
            time.sleep(0.05)

    @contextmanager
    def running(self, jobs: dict[str, Callable[[int], object]]) -> Iterator[None]:
        self.done = dict.fromkeys(jobs, 0)
        threads = [threading.Thread(target=self._again, args=job) for job in jobs.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _again(self, name: str, job: Callable[[int], object]) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                job(number)
            except Exception as error:
                self.errors.append(f"{name}: {error}")
            else:
                self.done[name] += 1


SSH = {
    "GIT_SSH_COMMAND": "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
}


def run(*words: str) -> None:
    """Run git; raises with what it says when it fails."""
    done = subprocess.run(
        ["git", *words],
        env={**clean_environment(), **SSH},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
