"""What every place for named objects promises: they are written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from shardgit.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CLOUD_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a list tells it: name, bytes, and when it was written, in milliseconds since 1970."""

    name: str
    size: int
    written_ms: int


class Bucket(Protocol):
    """Named objects. Names are relative, with slashes; several threads may call at once.

    put and create return once the object is durable, whole; a reader never sees a part of one.
    Errors: Unavailable for what may pass, StorageFull, PermissionRefused, Refused.
    """

    where: str
    """The bucket in words, without secrets."""

    def put(self, name: str, data: bytes) -> None:
        """Write an object, over one of that name."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object; False when there is one of that name, which stays."""

    def get(self, name: str) -> bytes | None:
        """Return an object, None when it is missing."""

    def get_range(self, name: str, start: int, end: int) -> bytes | None:
        """Return some bytes of an object, fewer at its end; None when it is missing."""

    def size(self, name: str) -> int | None:
        """Return the bytes of an object, None when it is missing."""

    def list(self, prefix: str) -> Iterator[Listed]:
        """Return the objects whose names start with ``prefix``/, in no order."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that are missing are passed over."""


def folder_of(target: str) -> Path | None:
    """Return the folder that a path or a file:// URL names, None for another URL."""
    from pathlib import Path

    scheme, mark, _ = target.partition("://")
    if mark and scheme != "file":
        return None
    return Path(unquote(urlsplit(target).path) if mark else target).absolute()


def check_cloud(target: str, words: str) -> None:
    """Raise InvalidArgument, with those words, for a URL that no driver of object stores knows."""
    scheme = target.partition("://")[0]
    if scheme not in CLOUD_SCHEMES:
        raise InvalidArgument(words, scheme=scheme)
