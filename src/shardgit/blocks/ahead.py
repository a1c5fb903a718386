"""Read-ahead: blocks that a transfer will use soon, fetched several at once, held until it does, bounded in bytes."""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

from shardgit.blocks.block import BLOCK_MAX_BYTES
from shardgit.errors import ShardgitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from shardgit.oid import BlockId
    from shardgit.workers import Workers

LOOKED_AT_ONCE = (
    256  # in one transaction a generation; a thread for each block would cost more than the block
)


class Ahead:
    """One transfer's read-ahead: it goes on as the transfer uses its blocks, and ends with the ``with``."""

    def __init__(self, reading: ReadAhead, ids: Sequence[BlockId]) -> None:
        self.ids = list(dict.fromkeys(ids))
        self.positions = {block: position for position, block in enumerate(self.ids)}
        self.used = 0  # blocks before this one are not waited for any more
        self.begun = 0
        self.far: list[
            int
        ] = []  # positions of the next blocks that are to be fetched, the last one first
        self.looked = 0  # how many blocks were looked for near by
        self.held: dict[int, bytes] = {}
        self.reserved: dict[int, int] = {}
        self._reading = reading

    @property
    def reserved_bytes(self) -> int:
        """What it holds or waits for."""
        return sum(self.reserved.values())

    def __enter__(self) -> Ahead:
        """Begin."""
        self._reading.begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; what is under way ends by itself and is not held."""
        self._reading.end(self)


class ReadAhead:
    """The read-ahead of all transfers of a process. For any number of threads.

    Each transfer holds at most ``each_bytes``, all together ``all_bytes``; a fetch counts as a block of the largest
    size until it is there. Who gets nothing ahead fetches for itself.
    """

    def __init__(
        self,
        fetch: Callable[[BlockId], bytes | None],
        near: Callable[[Sequence[BlockId]], list[bool]],
        workers: Workers,
        *,
        each_bytes: int,
        all_bytes: int,
    ) -> None:
        self._fetch = fetch
        self._near = near  # what need not be fetched
        self._workers = workers
        self._each_bytes = each_bytes
        self._all_bytes = all_bytes
        self._used_bytes = 0
        self.most_bytes = 0  # that were ever held and waited for at once
        self._transfers: list[Ahead] = []
        self._ended: deque[Ahead] = deque()
        self._lock = Lock()

    def begin(self, one: Ahead) -> None:
        """Take a transfer in."""
        with self._lock:
            self._transfers.append(one)
            self._pump(one)
        self._drain()

    def end(self, one: Ahead) -> None:
        """Give back what a transfer holds.

        A transfer that nobody wants any more may be ended by Python's collector, in any thread and inside any call, so
        this waits for no lock.
        """
        self._ended.append(one)
        self._drain()

    def _drain(self) -> None:
        # Whoever holds the lock looks again after it, so nothing that was added meanwhile is left lying.
        while self._ended and self._lock.acquire(blocking=False):
            try:
                while self._ended:
                    one = self._ended.popleft()
                    if one in self._transfers:
                        self._transfers.remove(one)
                    one.used = len(one.ids)
                    self._release(one)
                # Others have the room with the next block that any of them uses: to look what is near, or to hand
                # on a fetch, would take locks that the thread may have already.
            finally:
                self._lock.release()

    def take(self, block: BlockId) -> bytes | None:
        """Return a block that was fetched ahead, which is not held any more then, and go on."""
        if not self._transfers:
            return None
        data: bytes | None = None
        with self._lock:
            for one in self._transfers:
                position = one.positions.get(block)
                if position is None or position < one.used:
                    continue
                data = one.held.get(position)
                one.used = position + 1
                self._release(one)
                self._pump_all()
                break
        self._drain()
        return data

    def _release(self, one: Ahead) -> None:
        """Give back what lies behind a transfer; what is under way there counts until it has ended."""
        for position in [position for position in one.held if position < one.used]:
            del one.held[position]
            self._used_bytes -= one.reserved.pop(position)

    def _pump_all(self) -> None:
        for one in self._transfers:
            self._pump(one)

    def _pump(self, one: Ahead) -> None:
        while (
            one.reserved_bytes + BLOCK_MAX_BYTES <= self._each_bytes
            and self._used_bytes + BLOCK_MAX_BYTES <= self._all_bytes
        ):
            position = self._next_far(one)
            if position is None:
                return
            one.begun = position + 1
            one.reserved[position] = BLOCK_MAX_BYTES
            self._used_bytes += BLOCK_MAX_BYTES
            self.most_bytes = max(self.most_bytes, self._used_bytes)
            try:
                self._workers.submit(self._bring, one, position)
            except RuntimeError:  # closed
                self._used_bytes -= one.reserved.pop(position)
                return

    def _next_far(self, one: Ahead) -> int | None:
        """Return the position of the next block that is not near, None at the end."""
        while True:
            while one.far:
                position = one.far.pop()
                if position >= one.used:
                    return position
            start = one.looked = max(one.looked, one.used)
            some = one.ids[start : start + LOOKED_AT_ONCE]
            if not some:
                return None
            one.looked += len(some)
            near = self._near(some)
            one.far = [start + at for at in reversed(range(len(some))) if not near[at]]

    def _bring(self, one: Ahead, position: int) -> None:
        data: bytes | None = None
        try:
            if position >= one.used:
                data = self._fetch(one.ids[position])
        except ShardgitError:
            pass  # who uses it meets that again, and is told
        finally:
            with self._lock:
                self._used_bytes -= one.reserved.pop(position)
                if data is not None and position >= one.used:
                    one.held[position] = data
                    one.reserved[position] = len(data)
                    self._used_bytes += len(data)
                self._pump_all()
            self._drain()
