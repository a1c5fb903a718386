"""Types of the delta kernel; see _delta.pyx."""

from collections.abc import Callable
from typing import Self

from typing_extensions import Buffer, disjoint_base

from shardgit._fastpack import Resolver

def encode(source: Buffer, target: Buffer, most: int | None = None) -> bytes | None: ...
def apply(source: Buffer, delta: Buffer, most: int) -> bytes: ...

@disjoint_base
class Chooser:
    def __new__(
        cls,
        ingest: Resolver,
        room: Callable[[int], Buffer],
        *,
        window: int = ...,
        depth: int = ...,
        window_bytes: int = ...,
        cache_bytes: int = ...,
        size_most: int = ...,
        family_bytes: int = ...,
        hops_most: int = ...,
        level: int = ...,
        anew: bool = ...,
    ) -> Self: ...
    def sights(self, ranks: Buffer) -> None: ...
    def offers(self, pairs: list[tuple[bytes, bytes]]) -> None: ...
    def prepare(self) -> None: ...
    def search(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def objects(self) -> int: ...
    @property
    def objects_done(self) -> int: ...
    def apply(self) -> int: ...
