"""Where uploaded objects wait as packs until all are there: an unlinked file that nobody else sees."""

from __future__ import annotations

import errno
import mmap
import tempfile
from itertools import pairwise
from typing import TYPE_CHECKING, Self

from shardgit.errors import LimitExceeded, StorageFull
from shardgit.pack.joining import PackJoiner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from shardgit.limits import Limits
    from shardgit.oid import HashKind, ObjectId
    from shardgit.service.store import Store


class UploadSpool:
    """Takes objects in columns; ``packs`` gives them back. Methods run in the calling thread, a worker's."""

    def __init__(self, store: Store, kind: HashKind, *, most_bytes: int, limits: Limits) -> None:
        self._joiner = PackJoiner(kind, limits=limits)
        self._most_bytes = most_bytes
        self._bytes = 0
        self._file = tempfile.TemporaryFile(dir=store.scratch)  # noqa: SIM115

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the bytes; a map that a kernel still holds goes with it."""
        self._file.close()

    @property
    def ids(self) -> list[ObjectId]:
        """The ids of the objects, in the order in which they came."""
        return self._joiner.ids

    def take(self, types: bytes, sizes: Sequence[int], data: bytes) -> None:
        """Take a batch. Errors: InvalidArgument, LimitExceeded, StorageFull."""
        self._write(self._joiner.take(types, sizes, data))

    def _write(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self._bytes += len(piece)
            if self._bytes > self._most_bytes:
                raise LimitExceeded("objects are too much at once", limit_bytes=self._most_bytes)
            try:
                self._file.write(piece)
            except OSError as cause:
                if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StorageFull("no room for the uploaded objects") from cause
                raise

    def packs(self) -> list[memoryview]:
        """End the stream; returns its packs. Errors: InvalidArgument."""
        self._write(self._joiner.finish())
        if not self._bytes:
            return []
        self._file.flush()
        view = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        return [view[start:end] for start, end in pairwise([0, *self._joiner.ends])]
