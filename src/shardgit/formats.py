"""Versions of what is stored: what a newer shardgit wrote is refused by name, never taken for damage."""

from __future__ import annotations

from shardgit.errors import StoreFormatUnknown


def check_version(what: str, version: int, known: int) -> None:
    """Raise StoreFormatUnknown when something is of a later version than this shardgit knows; it names both.

    For bytes that were held against a checksum: elsewhere a flipped bit would look like a later version.
    """
    if version > known:
        raise StoreFormatUnknown(
            f"{what} was written by a newer shardgit", version=version, known=known
        )


def check_row(what: str, data: bytes, known: int) -> None:
    """The same for a row of the journal, whose first byte is its version."""
    if data:
        check_version(what, data[0], known)
