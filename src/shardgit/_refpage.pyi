"""Types of the ref page kernel; see _refpage.pyx."""

from collections.abc import Callable
from typing import Self, TypeVar

from typing_extensions import Buffer, disjoint_base

from shardgit.oid import ObjectId

_T = TypeVar("_T")

def take(
    page: Buffer | None,
    changes: Buffer | None,
    hash_size: int,
    low: bytes,
    high: bytes,
    most: int,
    make: Callable[[bytes, ObjectId | None, bytes | None, ObjectId | None], _T],
    *,
    deletions: bool = False,
) -> tuple[list[_T], bool]: ...
def render(
    page: Buffer | None,
    changes: Buffer | None,
    hash_size: int,
    low: bytes,
    high: bytes,
    *,
    v0: bool,
    peel: bool,
) -> tuple[bytes, bytes | None, bytes | None]: ...

@disjoint_base
class PageWriter:
    open_bytes: int
    def __new__(cls, hash_size: int, page_bytes: int, *, deletions: bool = False) -> Self: ...
    def add(self, name: bytes, body: bytes) -> None: ...
    def merge(
        self, page: Buffer | None, changes: Buffer | None, low: bytes, high: bytes
    ) -> None: ...
    def close_page(self) -> None: ...
    def pages(self) -> list[tuple[bytes, int, bytes]]: ...
