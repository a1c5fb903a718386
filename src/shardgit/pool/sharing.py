"""Framed segments that several transfers of one plan send at about the same time, made once for all of them.

Clones come in crowds: each of 32 made, framed and held every segment for itself (bench storms).
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Event, RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.oid import BlockId

    # Of which block, from which byte of its entries on; None: all of it.
    Part = tuple[BlockId, int | None]

# Of all plans: who is further behind makes its own. With 32 MiB a crowd of 32 clones cost as much CPU and 20 MiB more,
# with 4 MiB a sixth more CPU.
HELD_BYTES = 8 << 20


class _Frame:
    """A framed segment, or one that is being made."""

    __slots__ = ("data", "ready", "size")

    def __init__(self) -> None:
        self.size = 0
        self.data: list[bytes] | None = None  # None once ready: it could not be made
        self.ready = Event()


class SharedPlan:
    """The framed segments of one plan, or parts of them. For any number of threads.

    Nothing is held while one transfer alone is under way.
    """

    def __init__(self, sharing: Sharing) -> None:
        self.active = 0
        self.frames: dict[Part, _Frame] = {}
        self._sharing = sharing

    def frame(self, part: Part, make: Callable[[], list[bytes]]) -> list[bytes]:
        """Return a framed part; one thread makes what is not held, others that want the same wait for it."""
        found, mine = self._sharing.look(self, part)
        if found is None:
            return make()
        if not mine:
            found.ready.wait()
            return found.data if found.data is not None else make()
        try:
            found.data = make()
        finally:
            found.ready.set()
            self._sharing.keep(self, part, found)
        return found.data


class Sharing:
    """The plans that are being sent now, and what they hold together, the longest unused let go first."""

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self._most_bytes = most_bytes
        self._plans: dict[bytes, SharedPlan] = {}
        self._held: OrderedDict[_Frame, tuple[SharedPlan, Part]] = OrderedDict()
        self._bytes = 0
        # A transfer that nobody wants any more may be ended by Python's collector, inside any call of ours.
        self._lock = RLock()

    @property
    def held_bytes(self) -> int:
        """What all plans hold."""
        return self._bytes

    def enter(self, plan: bytes) -> SharedPlan:
        """Begin a transfer; ``leave`` ends it."""
        with self._lock:
            shared = self._plans.get(plan)
            if shared is None:
                shared = self._plans[plan] = SharedPlan(self)
            shared.active += 1
            # A transfer may have ended in between, by Python's collector, and have taken the plan along.
            self._plans[plan] = shared
            return shared

    def leave(self, plan: bytes) -> None:
        """End a transfer. What was held for it goes when at most one is left."""
        with self._lock:
            shared = self._plans[plan]
            shared.active -= 1
            if shared.active < 2:
                for part in list(shared.frames):
                    self._drop(shared, part)
            if not shared.active and self._plans.get(plan) is shared:
                del self._plans[plan]

    def look(self, shared: SharedPlan, part: Part) -> tuple[_Frame | None, bool]:
        """Return (what is held or being made, whether the caller makes it); None where nothing is shared."""
        with self._lock:
            if shared.active < 2:
                return None, False
            found = shared.frames.get(part)
            if found is not None:
                if found in self._held:
                    self._held.move_to_end(found)
                return found, False
            made = shared.frames[part] = _Frame()
            return made, True

    def keep(self, shared: SharedPlan, part: Part, made: _Frame) -> None:
        """Take over what was made for a plan, unless nobody shares it any more."""
        with self._lock:
            # Python's collector may end a transfer wherever an object is made: here, and not between the steps below.
            entry = (shared, part)
            made.size = sum(map(len, made.data or ()))
            if shared.frames.get(part) is not made:
                return
            if made.data is None:
                del shared.frames[part]
                return
            self._held[made] = entry
            self._bytes += made.size
            while self._bytes > self._most_bytes and self._held:
                oldest, (plan, at) = self._held.popitem(last=False)
                self._bytes -= oldest.size
                if plan.frames.get(at) is oldest:
                    del plan.frames[at]

    def _drop(self, shared: SharedPlan, part: Part) -> None:
        dropped = shared.frames.pop(part, None)
        if dropped is not None and self._held.pop(dropped, None) is not None:
            self._bytes -= dropped.size
