"""Objects that come in columns, piece by piece, become packs. No I/O; no object is held whole.

Small objects share a pack of about 4 MiB; a larger one gets a pack of its own, which can go out
while the object still comes in, since a pack says at its start how many objects it holds.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, LimitExceeded
from shardgit.objects import ObjectType
from shardgit.oid import HashKind, ObjectId
from shardgit.pack.builder import PackBuilder, entry_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.limits import Limits

SHARED_BYTES = 4 << 20
SHARED_OBJECTS = 4_096
_HEAD = struct.Struct(">4sII")


@dataclass(slots=True)
class _Large:
    """An object under way that has a pack of its own."""

    left: int
    name: hashlib._Hash
    pack: hashlib._Hash
    deflate: zlib._Compress


class PackJoiner:
    """Takes objects, gives pieces of packs. ``ids`` are those of the objects that are whole, in order."""

    def __init__(self, kind: HashKind, *, limits: Limits) -> None:
        self.kind = kind
        self.ids: list[ObjectId] = []
        self.ends: list[int] = []  # where each whole pack ends in all that was given out
        self._limits = limits
        self._announced = 0
        self._waiting: deque[tuple[ObjectType, int]] = deque()
        self._held = bytearray()  # of the first that waits, when it is small
        self._large: _Large | None = None
        self._shared = PackBuilder(kind)
        self._given = 0

    def take(self, types: bytes, sizes: Sequence[int], data: bytes) -> Iterator[bytes]:
        """Take a batch of columns; yields what goes into the packs. Errors: InvalidArgument, LimitExceeded."""
        self._announce(types, sizes)
        view = memoryview(data)
        while self._waiting:
            kind, size = self._waiting[0]
            if self._large is None and size > SHARED_BYTES:
                yield from self._begin(kind, size)
            want = self._large.left if self._large else size - len(self._held)
            some, view = view[:want], view[want:]
            if self._large is None:
                self._held += some
                if len(self._held) < size:
                    break
                self._add(kind, bytes(self._held))
                if self._shared.raw_bytes >= SHARED_BYTES or self._shared.objects >= SHARED_OBJECTS:
                    yield self._flush()
            else:
                yield from self._go_on(self._large, some)
                if self._large is not None:
                    break
            self._waiting.popleft()
        if view:
            raise InvalidArgument("stream holds bytes of no object", bytes=len(view))

    def finish(self) -> Iterator[bytes]:
        """Yield what is left. Errors: InvalidArgument when the stream ended inside an object."""
        if self._waiting:
            raise InvalidArgument("stream ends inside an object", waiting=len(self._waiting))
        if self._shared.objects:
            yield self._flush()

    def _announce(self, types: bytes, sizes: Sequence[int]) -> None:
        if len(types) != len(sizes):
            raise InvalidArgument(
                "columns have different lengths", types=len(types), sizes=len(sizes)
            )
        self._announced += len(types)
        if self._announced > self._limits.upload_objects_max:
            raise LimitExceeded(
                "too many objects in one stream; store a pack",
                limit=self._limits.upload_objects_max,
            )
        for number, size in zip(types, sizes, strict=True):
            if not 1 <= number <= 4:
                raise InvalidArgument("object has an unknown type", type=number)
            if size > self._limits.object_size_max_bytes:
                raise LimitExceeded(
                    "object is over the size limit",
                    bytes=size,
                    limit_bytes=self._limits.object_size_max_bytes,
                )
            self._waiting.append((ObjectType(number), size))

    def _add(self, kind: ObjectType, data: bytes) -> None:
        name = self._named(kind, len(data))
        name.update(data)
        self.ids.append(ObjectId(name.digest()))
        self._shared.add(kind, data)
        self._held.clear()

    def _begin(self, kind: ObjectType, size: int) -> Iterator[bytes]:
        if self._shared.objects:
            yield self._flush()
        self._large = _Large(size, self._named(kind, size), self._hash(b""), zlib.compressobj())
        yield self._packed(self._large, _HEAD.pack(b"PACK", 2, 1) + entry_header(kind, size))

    def _go_on(self, large: _Large, some: memoryview) -> Iterator[bytes]:
        large.left -= len(some)
        large.name.update(some)
        out = large.deflate.compress(some)
        if large.left == 0:
            out += large.deflate.flush()
        if out:
            yield self._packed(large, out)
        if large.left == 0:
            self.ids.append(ObjectId(large.name.digest()))
            trailer = large.pack.digest()
            self._given += len(trailer)
            self.ends.append(self._given)
            self._large = None
            yield trailer

    def _packed(self, large: _Large, out: bytes) -> bytes:
        large.pack.update(out)
        self._given += len(out)
        return out

    def _flush(self) -> bytes:
        pack = self._shared.finish()
        self._shared = PackBuilder(self.kind)
        self._given += len(pack)
        self.ends.append(self._given)
        return pack

    def _named(self, kind: ObjectType, size: int) -> hashlib._Hash:
        return self._hash(f"{kind.git_name} {size}\0".encode())

    def _hash(self, data: bytes) -> hashlib._Hash:
        return hashlib.new(self.kind.git_name, data, usedforsecurity=False)
