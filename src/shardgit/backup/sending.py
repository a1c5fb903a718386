"""Sending blobs: packs are filled, written side by side, and indexed at the end."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.backup.pack import BlobKind, Pack, PackEntry, encode_index, encode_pack
from shardgit.errors import BlockCorrupt
from shardgit.faultpoints import reach
from shardgit.workers import Workers

if TYPE_CHECKING:
    from concurrent.futures import Future

    from shardgit.backup.target import Target

PACK_BYTES = 32 << 20
PACK_BLOBS_MAX = 32_768  # small blocks: the footer stays under 1.3 MiB
IN_FLIGHT = 3  # packs that are being written: 100 MB at most are held


class Sender:
    """Puts blobs into the packs of a target; used by one thread, as a context."""

    def __init__(self, target: Target) -> None:
        self.sent_blobs = self.sent_bytes = 0
        self._target = target
        self._workers = Workers(IN_FLIGHT)
        self._waiting: list[tuple[PackEntry, bytes]] = []
        self._size = 0
        self._flying: deque[tuple[Pack, Future[None]]] = deque()
        self._queued: set[bytes] = set()
        self._made: list[Pack] = []

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def add(self, blob: bytes, data: bytes, kind: BlobKind) -> bool:
        """Take a blob in, unless the target has it; says whether it is sent. Errors: BlockCorrupt."""
        if blob in self._target or blob in self._queued:
            return False
        if blake3(data).digest() != blob:
            raise BlockCorrupt("block does not match its id", block=blob.hex())
        self._queued.add(blob)
        self._waiting.append((PackEntry(blob, len(data), kind), data))
        self._size += len(data)
        if self._size >= PACK_BYTES or len(self._waiting) >= PACK_BLOBS_MAX:
            self._fly()
        return True

    def _fly(self) -> None:
        if not self._waiting:
            return
        if len(self._flying) >= IN_FLIGHT:
            self._land()
        pack, data = encode_pack(self._waiting)
        self._waiting, self._size = [], 0
        self._flying.append((pack, self._workers.submit(self._put, pack, data)))

    def _put(self, pack: Pack, data: bytes) -> None:
        reach("backup.before_pack")
        self._target.bucket.put(pack.name, data)
        reach("backup.after_pack")

    def _land(self) -> None:
        pack, future = self._flying.popleft()
        future.result()
        self._target.take(pack)
        self._made.append(pack)
        self._queued.difference_update(entry.id for entry in pack.entries)
        self.sent_blobs += len(pack.entries)
        self.sent_bytes += sum(entry.length for entry in pack.entries)

    def flush(self) -> None:
        """Write what waits; all that was added is durable on return."""
        self._fly()
        while self._flying:
            self._land()

    def write_index(self) -> None:
        """Flush, and write the index of the new packs and of those that earlier writers left without one."""
        self.flush()
        fresh = [*self._target.unindexed, *self._made]
        if fresh:
            name, data = encode_index(fresh)
            self._target.bucket.put(name, data)
            self._target.indexes.append(name)
        self._target.unindexed, self._made = [], []
