"""What a node asks of the other nodes of its cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.oid import BlockId


class Peers(Protocol):
    """Calls to other nodes by number, from threads; each with a deadline of seconds.

    Bytes are not checked here: whoever asks has the ids. Errors: Unavailable when a node does not answer, or not as
    it should; RingStale when it goes by a newer ring, which was then taken over.
    """

    def get(
        self, node: int, ids: Sequence[BlockId], *, only_here: bool
    ) -> Iterator[tuple[BlockId, bytes | None]]:
        """Return blocks in the order of ``ids``, None for absent ones, as they come.

        The node takes what it has not from the object store, unless it is asked for what is ``only_here``.
        """
        ...

    def has(self, node: int, ids: Sequence[BlockId]) -> list[bool]:
        """Say which blocks a node has on its disks."""
        ...

    def warm(self, node: int, blocks: Sequence[tuple[BlockId, bytes]]) -> int:
        """Give a node blocks that are durable; returns how many it has kept."""
        ...

    def drop(self, node: int, ids: Sequence[BlockId]) -> None:
        """Let a node drop blocks that were deleted."""
        ...

    def close(self) -> None:
        """End all calls."""
        ...
