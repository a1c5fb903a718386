"""What a journal promises: a small ordered key-value store with revisions, shaped so that etcd can
serve it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shardgit.errors import InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from shardgit.kept import Looked

# etcd's --max-txn-ops is 128. The journal on etcd needs two of them for itself, one for each fence, and a transaction
# inside another has what the outer one leaves.
OPERATIONS_MAX = 120
KEY_MAX_BYTES = 511  # LMDB's
VALUE_MAX_BYTES = 1 << 20
COMMIT_MAX_BYTES = 1_400_000  # etcd takes requests of 1.5 MiB
END = b"\xff" * KEY_MAX_BYTES
"""Behind every key: no key starts with 0xff."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row and the revision of the commit that wrote it."""

    key: bytes
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """The row must have this revision; 0 means that it must be absent."""

    key: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class CompareRange:
    """No row in low <= key < high may be newer than this revision. Deleted rows are not seen."""

    low: bytes
    high: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a row."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a row; one that is missing is passed over."""

    key: bytes


@dataclass(frozen=True, slots=True)
class DeleteRange:
    """Delete the rows in low <= key < high; one operation, however many there are."""

    low: bytes
    high: bytes


Condition = Compare | CompareRange
Operation = Put | Delete | DeleteRange


class JournalSnapshot(Protocol):
    """The journal as it was at one moment.

    Short-lived: a request, not a transfer. Used by one thread at a time.
    """

    @property
    def revision(self) -> int:
        """The last commit that this snapshot sees."""
        ...

    def get(self, key: bytes) -> Row | None:
        """Return a row, None when it is missing; JournalCorrupt when it is damaged."""
        ...

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        """Return the rows in low <= key < high by rising key, lazily, while the snapshot lasts."""
        ...


class Journal(Protocol):
    """All that is small and mutable.

    commit checks every condition against the state before it, then applies every operation, or
    raises Conflict and applies none. It returns once all is durable: the revision from which on
    readers see it, the journal's unchanged one when it changed nothing. Rows that it wrote have
    that revision, and no earlier row has. Conditions and operations together are 120 and 1.4 MB at
    most, no key is touched twice, and nothing is read inside. Commits that wait together share one
    fsync; each is checked for itself. A full disk or map is StorageFull and changes nothing.
    """

    def snapshot(self) -> AbstractContextManager[JournalSnapshot]:
        """Open a snapshot of now."""
        ...

    def revision(self) -> int:
        """Return the revision of the last commit, of any process; cheap: for every request.

        A commit that is under way may be told some milliseconds before a snapshot shows it. Whoever notes how far it
        has looked notes the revision of its snapshot.
        """
        ...

    def fresh_sync(self, *, stale_ok: bool = False) -> None:
        """Return when snapshots show all that was committed anywhere before this call; from a thread.

        Where other nodes commit too, it asks them, so whoever serves a request calls it once, before its first
        snapshot. Unavailable when they do not answer in time; with ``stale_ok`` it then returns, a little earlier, and
        snapshots show what this node has.
        """
        ...

    async def fresh(self, *, stale_ok: bool = False) -> None:
        """Do as fresh_sync, from the event loop."""
        ...

    def oldest_snapshot(self) -> int:
        """Return the revision of the oldest snapshot that is open in any process, ``revision`` when none is."""
        ...

    def commit_sync(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """Commit from a thread."""
        ...

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """Commit from the event loop.

        A cancelled caller does not undo a commit that is under way.
        """
        ...

    def close(self) -> None:
        """Finish the commits that wait; every later call is Unavailable."""
        ...


class StoreJournal(Journal, Protocol):
    """What a store's services want of a journal besides."""

    def begin(self) -> None:
        """Begin the threads that commit now: else they have the priority of whoever commits first, for ever."""
        ...

    def commit_soon(
        self,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        answer: Callable[[int | BaseException], None],
    ) -> None:
        """Commit behind the caller, who goes on: ``answer`` hears, on some thread, the revision or the error.

        It must be quick and raise nothing.
        """
        ...

    def sizes(self) -> dict[str, int]:
        """Return the bytes of what this machine has of it: live ones, and those of the file."""
        ...

    def waiting(self) -> int:
        """Return about how many commits wait."""
        ...

    def caches(self) -> dict[str, Looked]:
        """Return the caches of this process, by the names that metrics have for them."""
        ...

    def listening(self, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """Call ``listener``, on some thread, behind each commit of this process, while the block lasts.

        It must be quick and raise nothing.
        """
        ...


def check_key(key: bytes) -> None:
    """Raise LimitExceeded for a key that no journal takes."""
    if not 1 <= len(key) <= KEY_MAX_BYTES or key[0] == 0xFF:
        raise LimitExceeded(
            "journal key has an impossible length or start", bytes=len(key), limit=KEY_MAX_BYTES
        )


def check_commit(conditions: Sequence[Condition], operations: Sequence[Operation]) -> None:
    """Raise LimitExceeded or InvalidArgument for a commit that no journal takes."""
    count = len(conditions) + len(operations)
    if count > OPERATIONS_MAX:
        raise LimitExceeded(
            "too many operations in one commit", operations=count, limit=OPERATIONS_MAX
        )
    size = 0
    for step in (*conditions, *operations):
        match step:
            case Compare(key) | Delete(key):
                check_key(key)
                size += len(key)
            case Put(key, value):
                check_key(key)
                if len(value) > VALUE_MAX_BYTES:
                    raise LimitExceeded(
                        "journal value is too large", bytes=len(value), limit=VALUE_MAX_BYTES
                    )
                size += len(key) + len(value)
            case CompareRange(low, high) | DeleteRange(low, high):
                check_key(low)
                if len(high) > KEY_MAX_BYTES or low >= high:
                    raise InvalidArgument(
                        "journal range is empty or too long", low=low.hex(), high=high.hex()
                    )
                size += len(low) + len(high)
    if size > COMMIT_MAX_BYTES:
        raise LimitExceeded("journal commit is too large", bytes=size, limit=COMMIT_MAX_BYTES)
    # As in etcd: within one commit there is no order, so no two operations may meet in one key.
    keys = [operation.key for operation in operations if isinstance(operation, Put | Delete)]
    if len(set(keys)) != len(keys):
        raise InvalidArgument("a key stands twice in one commit")
    for gone in operations:
        if isinstance(gone, DeleteRange) and any(gone.low <= key < gone.high for key in keys):
            raise InvalidArgument(
                "a key stands inside a deleted range of its commit", low=gone.low.hex()
            )


def end_of(prefix: bytes) -> bytes:
    """Return the first key behind all keys that start with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return END
    return stripped[:-1] + bytes([stripped[-1] + 1])
