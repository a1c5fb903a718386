"""Types of the fsck kernel; see _fsck.pyx."""

from typing_extensions import Buffer

MESSAGES: tuple[str, ...]
SEVERITIES: bytes
TABLE_BYTES: int
NAME_MAX_AT: int
NAME_MAX_BYTES: int

def check(
    hash_kind: int, type: int, data: Buffer, severity: bytes
) -> tuple[list[tuple[int, int]], list[tuple[int, bytes]]]: ...
def config_entries(data: bytes) -> tuple[list[tuple[bytes, bytes | None]], bool]: ...
