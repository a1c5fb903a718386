"""Where a pushed pack waits until it is whole: memory, then a file that nobody else can see."""

from __future__ import annotations

import mmap
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from shardgit._packstream import PackStream
from shardgit.errors import LimitExceeded, MalformedPack, ShardgitError, StorageFull
from shardgit.lmdbenv import NO_SPACE

if TYPE_CHECKING:
    from array import array
    from collections.abc import AsyncIterator
    from types import TracebackType
    from typing import IO

    from shardgit.oid import HashKind
    from shardgit.service.store import Store

WRITE_BYTES = 1 << 20


class PackSpool:
    """Takes one pack; past ``push_held_bytes`` it goes into an unlinked file, past ``most_bytes`` it is refused.

    ``refused`` is then the error; the client's bytes are read to their end all the same, since git hears nothing
    before it has sent everything.
    """

    def __init__(self, store: Store, most_bytes: int, kind: HashKind) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._kind = kind
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._bytes = 0
        self._map: mmap.mmap | None = None
        self._offsets: array[int] | None = None
        self.refused: ShardgitError | None = None

    async def __aenter__(self) -> Self:
        """Return self."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the bytes; a map that a kernel still holds goes with it."""
        if self._file is not None:
            with suppress(OSError):  # what did not fit is tried once more
                self._file.close()

    @property
    def size(self) -> int:
        """Bytes of the pack so far."""
        return self._bytes

    async def fill(self, first: bytes, pieces: AsyncIterator[bytes], *, to_its_end: bool) -> None:
        """Take a pack: up to the end of ``pieces``, or ``to_its_end``, whatever follows it."""
        limits = self._store.limits
        stream = None
        if to_its_end:
            stream = PackStream(
                int(self._kind),
                size_max=limits.object_size_max_bytes,
                objects_max=limits.pack_objects_max,
                raw_max=limits.pack_raw_max_bytes,
            )
        try:
            await self._take(first, stream)
            while stream is None or not stream.finished:
                piece = await anext(pieces, None)
                if piece is None:
                    break
                await self._take(piece, stream)
            if stream is not None:
                stream.finish()
                self._offsets = stream.offsets
        except (MalformedPack, LimitExceeded) as error:
            self.refused = self.refused or error
            if not to_its_end:
                async for _ in pieces:
                    pass
        if self._bytes > self._store.limits.push_held_bytes:
            await self._store.workers.run(self._write)  # what is left

    async def _take(self, piece: bytes, stream: PackStream | None) -> None:
        if not piece:
            return
        if stream is not None:
            used = await self._store.workers.run(stream.feed, piece)
            piece = piece[:used]
        if self.refused is not None:
            return
        self._bytes += len(piece)
        if self._bytes > self._most_bytes:
            self._held.clear()
            self.refused = LimitExceeded(
                "pack is too large; push in smaller steps, or large files with Git LFS",
                limit_bytes=self._most_bytes,
            )
            return
        self._held += piece
        if self._bytes > self._store.limits.push_held_bytes and len(self._held) >= WRITE_BYTES:
            await self._store.workers.run(self._write)

    def _write(self) -> None:
        """Move what is held to the file, once there is, or has to be, one."""
        if self._bytes <= self._store.limits.push_held_bytes or self.refused is not None:
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._store.scratch)  # noqa: SIM115
            self._file.write(self._held)
            self._file.flush()
        except OSError as cause:
            if cause.errno not in NO_SPACE:
                raise
            self.refused = StorageFull("no room for the pack")
            self.refused.__cause__ = cause
        self._held.clear()

    def pack(self) -> tuple[bytes | mmap.mmap, array[int] | None]:
        """Return the pack, and where its entries start, where that is known. From a worker."""
        if self._file is None:
            return bytes(self._held), self._offsets
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map, self._offsets
