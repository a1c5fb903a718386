"""The folder of an embedded store. See docs/formats/store.md."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.errors import AlreadyExists, InvalidArgument, NotAStore, Refused, StoreFormatUnknown

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT_FILE = "format"
MAGIC = "shardgit store"
VERSION = 1
SHARDS_MAX = 256


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """Where a shard lies."""

    number: int
    path: Path


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """A store's folder: its id, the journal and the shards."""

    folder: Path
    store_id: str
    shards: tuple[ShardPlace, ...]

    @property
    def journal(self) -> Path:
        """Folder of the journal's environment."""
        return self.folder / "journal"

    @property
    def scratch(self) -> Path:
        """Folder for files that no one misses."""
        return self.folder / "tmp"


def create_layout(
    folder: Path,
    *,
    shards: int = 1,
    shard_paths: list[Path] | None = None,
    fill: Callable[[StoreLayout], None],
) -> StoreLayout:
    """Make the folders of a new store and let ``fill`` put the journal and the shards into them.

    The format file comes last, so a crash before it leaves no store.

    Errors: AlreadyExists when a store is there, Refused when the folder holds something else, InvalidArgument.
    """
    if (folder / FORMAT_FILE).exists():
        raise AlreadyExists("a store exists there already", path=str(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused("folder is not empty", path=str(folder))
    places = shard_paths or [folder / "shards" / f"{number:03}" for number in range(shards)]
    if not 1 <= len(places) <= SHARDS_MAX:
        raise InvalidArgument("a store has 1 to 256 shards", shards=len(places))
    store_id = str(uuid.uuid4())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal").mkdir()
    for number, path in enumerate(places):
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise Refused("shard folder is not empty", path=str(path))
        write_identity(path, store_id, number)
    fill(StoreLayout(folder, store_id, tuple(ShardPlace(n, path) for n, path in enumerate(places))))
    rows = [{"number": number, "path": _stored_path(folder, path)} for number, path in enumerate(places)]
    text = f"{MAGIC} {VERSION}\n" + json.dumps({"store": store_id, "shards": rows}, indent=2) + "\n"
    _write_durably(folder / FORMAT_FILE, text)
    return open_layout(folder)


def open_layout(folder: Path) -> StoreLayout:
    """Read and check a store's folder.

    Errors: NotAStore, StoreFormatUnknown for a newer version, Refused when a shard's disk is missing or swapped.
    """
    try:
        text = (folder / FORMAT_FILE).read_text("utf-8")
    except OSError as cause:
        raise NotAStore("no shardgit store there; make one with: shardgit init DIR", path=str(folder)) from cause
    first, _, rest = text.partition("\n")
    magic, _, version = first.rpartition(" ")
    if magic != MAGIC or not version.isdigit():
        raise NotAStore("folder's format file is not shardgit's", path=str(folder))
    if int(version) != VERSION:
        raise StoreFormatUnknown("store has another format version", version=int(version), known=VERSION)
    try:
        facts = json.loads(rest)
        store_id = str(facts["store"])
        places = tuple(ShardPlace(int(row["number"]), folder / str(row["path"])) for row in facts["shards"])
    except (ValueError, KeyError, TypeError) as cause:
        raise NotAStore("store's format file does not parse", path=str(folder)) from cause
    for place in places:
        check_identity(place.path, store_id, place.number)
    return StoreLayout(folder, store_id, places)


def write_identity(path: Path, store_id: str, number: int) -> None:
    """Write a shard's identity file."""
    _write_durably(path / "shard.json", json.dumps({"store": store_id, "shard": number}) + "\n")


def check_identity(path: Path, store_id: str, number: int) -> None:
    """Refuse a shard folder that is missing or belongs to another store or number."""
    try:
        facts = json.loads((path / "shard.json").read_text("utf-8"))
    except (OSError, ValueError) as cause:
        raise Refused("shard is not there; is its disk mounted?", shard=number, path=str(path)) from cause
    if facts != {"store": store_id, "shard": number}:
        raise Refused("folder belongs to another shard or store", shard=number, path=str(path))


def _stored_path(folder: Path, path: Path) -> str:
    absolute = path.resolve()
    base = folder.resolve()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)


def _write_durably(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    # commit point: before it the file is as it was, after it whole and new.
    fresh.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
