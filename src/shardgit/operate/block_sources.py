"""Where a repair takes blocks from besides the store: a backup, another store's folder, a folder of blocks."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.backup.source import BackupBlocks
from shardgit.backup.target import Target
from shardgit.blocks.layout import FORMAT_FILE, MAGIC
from shardgit.errors import NotFound
from shardgit.operate.store_files import StoreFiles
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.oid import BlockId
    from shardgit.operate.store_files import BlockSource


class BlockFolder:
    """A folder of blocks as files: each is found by its bytes, whatever its name."""

    def __init__(self, folder: Path) -> None:
        self._paths: dict[bytes, Path] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    hashed = blake3()
                    while piece := file.read(1 << 20):
                        hashed.update(piece)
                self._paths[hashed.digest()] = path

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockSource."""
        return [path.read_bytes() if (path := self._paths.get(one)) else None for one in ids]


@contextmanager
def opened_source(target: str) -> Iterator[BlockSource]:
    """Open what an operator names: a backup's folder or URL, a store's folder, or a folder with blocks as files.

    Errors: NotFound, and those of backups.
    """
    folder = Path(target)
    if "://" in target or _first_line(folder / "format").startswith("shardgit backup"):
        workers = Workers(1)
        try:
            opened = Target.open(target)
            opened.load()
            yield BackupBlocks(opened, workers)
        finally:
            workers.close()
    elif _first_line(folder / FORMAT_FILE).startswith(MAGIC):
        with StoreFiles(folder) as files:
            yield files
    elif folder.is_dir():
        yield BlockFolder(folder)
    else:
        raise NotFound("there is no backup, store or folder of blocks", path=target)


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(100).partition(b"\n")[0].decode("utf-8", "replace")
    except OSError:
        return ""
