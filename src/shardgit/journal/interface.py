"""What a journal promises: a small ordered key-value store with revisions, shaped so that etcd can serve it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shardgit.errors import InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

OPERATIONS_MAX = 128
KEY_MAX_BYTES = 511
VALUE_MAX_BYTES = 1 << 20


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
    """No row in low <= key < high may be newer than this revision."""

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
    """Delete the rows in low <= key < high."""

    low: bytes
    high: bytes


Condition = Compare | CompareRange
Operation = Put | Delete | DeleteRange


class JournalSnapshot(Protocol):
    """The journal as it was at one moment. Short-lived: a request, not a transfer."""

    @property
    def revision(self) -> int:
        """The last commit that this snapshot sees."""
        ...

    def get(self, key: bytes) -> Row | None:
        """Return a row, None when it is missing; JournalCorrupt when it is damaged."""
        ...

    def range(self, low: bytes, high: bytes, *, limit: int | None = None) -> Iterator[Row]:
        """Return the rows in low <= key < high by rising key, lazily."""
        ...


class Journal(Protocol):
    """All that is small and mutable.

    commit checks every condition, then applies every operation, or raises Conflict and applies none; it returns the
    new revision once all is durable. Conditions and operations together are 128 at most, no key stands twice, and
    nothing is read inside. Commits that wait together share one fsync. A full disk or map is StorageFull and changes
    nothing.
    """

    def snapshot(self) -> AbstractContextManager[JournalSnapshot]:
        """Open a snapshot of now."""
        ...

    def revision(self) -> int:
        """Return the revision of the last commit, of any process; cheap."""
        ...

    def commit_sync(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """Commit from a thread."""
        ...

    async def commit(self, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
        """Commit from the event loop."""
        ...


def check_commit(conditions: Sequence[Condition], operations: Sequence[Operation]) -> None:
    """Raise LimitExceeded or InvalidArgument for a commit that no journal takes."""
    if len(conditions) + len(operations) > OPERATIONS_MAX:
        raise LimitExceeded(
            "too many operations in one commit", operations=len(conditions) + len(operations), limit=OPERATIONS_MAX
        )
    keys = [operation.key for operation in operations if isinstance(operation, Put | Delete)]
    if len(set(keys)) != len(keys):
        raise InvalidArgument("a key stands twice in one commit")
    for operation in operations:
        if isinstance(operation, Put):
            if not 1 <= len(operation.key) <= KEY_MAX_BYTES:
                raise LimitExceeded("journal key has an impossible length", bytes=len(operation.key))
            if len(operation.value) > VALUE_MAX_BYTES:
                raise LimitExceeded("journal value is too large", bytes=len(operation.value), limit=VALUE_MAX_BYTES)


def end_of(prefix: bytes) -> bytes:
    """Return the first key behind all keys that start with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b"\xff" * (KEY_MAX_BYTES + 1)
    return stripped[:-1] + bytes([stripped[-1] + 1])
