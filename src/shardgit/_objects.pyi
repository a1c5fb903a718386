"""Types of the object kernel; see _objects.pyx."""

from array import array
from typing import Self

from typing_extensions import Buffer, disjoint_base

def confirm(
    block: Buffer,
    hash_size: int,
    base: int,
    places: array[int],
    numbers: array[int],
    start: int,
    stop: int,
    ids: Buffer,
) -> list[int]: ...
def outside(bits: Buffer, places: array[int]) -> list[int]: ...

@disjoint_base
class Messages:
    objects: int
    def __new__(
        cls, hash_size: int, room: int, held: int = 16777216, step: int = 67108864
    ) -> Self: ...
    @property
    def made(self) -> int: ...
    @property
    def held(self) -> int: ...
    def absent(self, ids: Buffer, start: int) -> int: ...
    def begin(
        self,
        block: Buffer,
        base: int,
        places: array[int],
        start: int,
        stop: int,
        large: int,
        bases: dict[bytes, bytes] | None = None,
    ) -> tuple[list[int], list[bytes]]: ...
    def ends(self, places: array[int], start: int, stop: int) -> list[int]: ...
    def give(self, bases: dict[bytes, bytes] | None = None) -> list[bytes]: ...
    def fill(self, block: Buffer) -> bool: ...
    def take(self) -> bytes: ...
