"""The v2 command object-info, without I/O: the arguments read, the answer written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument
from shardgit.protocol.pktline import line
from shardgit.protocol.upload_pack import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shardgit.oid import ObjectId

CAPABILITY = b"object-info=size"


@dataclass(frozen=True, slots=True)
class ObjectInfoRequest:
    """A v2 object-info command: ids in the client's order, one that comes twice twice."""

    ids: tuple[ObjectId, ...] = ()
    size: bool = False


class ObjectInfoArguments:
    """Collects the arguments of one command, line by line."""

    def __init__(self, oid: Callable[[bytes], ObjectId]) -> None:
        self._oid = oid
        self._ids: list[ObjectId] = []
        self._size = False

    def add(self, text: bytes) -> None:
        """Take a line without its newline. Errors: InvalidArgument, in git's words."""
        if text == b"size":
            self._size = True
        elif text.startswith(b"oid "):
            try:
                self._ids.append(self._oid(text[4:]))
            except InvalidArgument as cause:
                words = f"expected to get oid, not '{shown(text[4:])}'"
                raise InvalidArgument(f"object-info: protocol error, {words}") from cause
        else:
            raise InvalidArgument(f"object-info: unexpected line: '{shown(text)}'")

    def finish(self) -> ObjectInfoRequest:
        """Return the command."""
        return ObjectInfoRequest(tuple(self._ids), self._size)


def object_info_head(request: ObjectInfoRequest) -> bytes:
    """Return the line that names what is told; nothing when nothing was asked."""
    return line(b"size") if request.size and request.ids else b""


def object_info_lines(
    request: ObjectInfoRequest, ids: Iterable[ObjectId], sizes: Sequence[int | None]
) -> bytes:
    """Return a line for each id; ``sizes`` has None for an object that is not there."""
    out = []
    for oid, size in zip(ids, sizes, strict=True):
        text = oid.hex().encode()
        if size is None:
            text += b" "
        elif request.size:
            text += b" %d" % size
        out.append(line(text))
    return b"".join(out)
