"""Loads an on-disk repository into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from gitsuite.disk import DiskRepository

    from shardgit.service.store import Store


def load(store: Store, name: str, disk: DiskRepository) -> None:
    """Import a repository with all its objects and refs."""
    import_repository(store, name, str(disk.folder))
