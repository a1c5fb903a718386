"""Bytes of the store's files against those of git's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bed import Bed, pack_of
from result import Row, Side

if TYPE_CHECKING:
    from pathlib import Path


def rows(bed: Bed) -> list[Row]:
    """Compare after an import."""
    files = [path.stat() for path in bed.store.rglob("*") if path.is_file()]
    pack = pack_of(bed.repository)
    index = pack.stat().st_size + pack.with_suffix(".idx").stat().st_size
    everything = [path for path in bed.repository.glob("objects/**/*") if path.is_file()]
    peers = (
        _side("git: pack and .idx", index),
        _side("git: with bitmap and graph", _sum(everything)),
    )
    how = "Sizes of all files, after an import."
    disk = sum(one.st_blocks * 512 for one in files)
    whole = sum(one.st_size for one in files)
    return [
        Row("storage", "bytes in files", _side("shardgit", whole), peers, how=how),
        Row("storage", "bytes on disk", _side("shardgit", disk), peers, how=how),
    ]


def _side(name: str, size_bytes: int) -> Side:
    return Side(name, 0.0, 0.0, size_bytes=size_bytes)


def _sum(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
