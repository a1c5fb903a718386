"""Types of the pkt-line kernel; see _pktline.pyx."""

from typing import Any

from typing_extensions import Buffer

def cut(data: Buffer, marks: tuple[object, ...], out: list[Any]) -> int: ...
def ids_named(packets: list[Any], at: int, word: bytes, size: int) -> list[bytes]: ...
