"""Framed segments that several transfers of one plan send at about the same time, made once for all of them.

Clones come in crowds: each of 32 made, framed and held every segment for itself (bench storms).
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.oid import BlockId

HELD_BYTES = 16 << 20  # of one plan: who is further behind makes its own


class SharedPlan:
    """The framed segments of one plan, by their blocks. For any number of threads.

    Nothing is held while one transfer alone is under way.
    """

    def __init__(self, most_bytes: int) -> None:
        self.active = 0
        self._most_bytes = most_bytes
        self._held: OrderedDict[BlockId, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def frame(self, block: BlockId, make: Callable[[], bytes]) -> bytes:
        """Return a framed segment; one thread at a time makes what is not held, the others wait for it."""
        if self.active < 2:
            return make()
        with self._lock:
            found = self._held.get(block)
            if found is None:
                found = self._held[block] = make()
                self._bytes += len(found)
                while self._bytes > self._most_bytes:
                    _, dropped = self._held.popitem(last=False)
                    self._bytes -= len(dropped)
            return found


class Sharing:
    """The plans that are being sent now."""

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self._most_bytes = most_bytes
        self._plans: dict[bytes, SharedPlan] = {}
        self._lock = Lock()

    def enter(self, plan: bytes) -> SharedPlan:
        """Begin a transfer; ``leave`` ends it."""
        with self._lock:
            shared = self._plans.get(plan)
            if shared is None:
                shared = self._plans[plan] = SharedPlan(self._most_bytes)
            shared.active += 1
            return shared

    def leave(self, plan: bytes) -> None:
        """End a transfer. What was held goes with the last."""
        with self._lock:
            shared = self._plans[plan]
            shared.active -= 1
            if not shared.active:
                del self._plans[plan]
