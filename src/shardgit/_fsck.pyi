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

NAME: int
URL: int
PATH: int
UPDATE: int
PARSE: int

def is_submodule_name(name: bytes) -> bool: ...
def is_submodule_url(url: bytes) -> bool: ...

@disjoint_base
class GitmodulesReader:
    def __new__(cls, data: bytes) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[int, bytes]: ...
