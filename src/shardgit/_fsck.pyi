"""Types of the fsck kernel; see _fsck.pyx."""

from typing import Self

from typing_extensions import Buffer, disjoint_base

MESSAGES: tuple[str, ...]
SEVERITIES: bytes
TABLE_BYTES: int
NAME_MAX_AT: int
NAME_MAX_BYTES: int

def check(
    hash_kind: int, type: int, data: Buffer, severity: bytes
) -> tuple[list[tuple[int, int]], list[tuple[int, bytes]]]: ...

@disjoint_base
class ConfigReader:
    mistaken: bool
    def __new__(cls, data: bytes) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[bytes, bytes, bytes | None]: ...
