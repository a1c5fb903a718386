"""Holders: who may still read, or is about to name, what gc would delete."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from shardgit.journal.leases import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from shardgit.journal.interface import Journal
    from shardgit.journal.leases import Leases


class Asked(Protocol):
    """What all processes of a store say while they are asked."""

    def before_ms(self) -> int:
        """Return a time: what is created from then on may be about to be named. Ask before the journal is looked at.

        Milliseconds since 1970, by the clocks that blocks are stamped with. Errors: Unavailable when a process does
        not say.
        """
        ...

    def awaited(self, revision: int, before_ms: int) -> tuple[str, ...]:
        """Return who still looks at what was named before ``revision``, or puts blocks from before that time on.

        In words. The second are processes that came since ``before_ms`` was told, by clocks that are behind.
        """
        ...


class Holders(Protocol):
    """The processes of a store, as gc asks them."""

    def asking(self) -> AbstractContextManager[Asked]:
        """Ask all of them for as long as the block lasts. Errors: Unavailable."""
        ...


class LocalHolders:
    """The processes of one machine: leases in shared memory, LMDB's readers. See Holders and Asked."""

    def __init__(self, leases: Leases, journal: Journal) -> None:
        self._leases = leases
        self._journal = journal

    @contextmanager
    def asking(self) -> Iterator[LocalHolders]:
        """See Holders."""
        yield self

    def before_ms(self) -> int:
        """See Asked; NOTHING without any lease."""
        return min((held.since_ms for held in self._leases.all()), default=NOTHING)

    def oldest(self) -> int:
        """Return the oldest revision that is looked at."""
        # Snapshots first: one that is open takes its lease before it ends.
        oldest = self._journal.oldest_snapshot()
        return min([oldest, *(held.revision for held in self._leases.all())])

    def awaited(self, revision: int, before_ms: int) -> tuple[str, ...]:
        """See Asked."""
        old = self._journal.oldest_snapshot() < revision
        holders = [
            held
            for held in self._leases.all()
            if held.revision < revision or held.since_ms < before_ms
        ]
        if not old and not holders:
            return ()
        return tuple(f"process {held.pid}" for held in holders) or ("a journal snapshot",)
