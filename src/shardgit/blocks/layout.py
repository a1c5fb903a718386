"""The folder of an embedded store. See docs/formats/store.md."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.blocks.identity import (
    ENVIRONMENT_PREFIX,
    IDENTITY_FILE,
    check_identity,
    fsync,
    read_identity,
    write_durably,
    write_identity,
)
from shardgit.errors import (
    AlreadyExists,
    InvalidArgument,
    NotAStore,
    Refused,
    StorageFull,
    StoreBusy,
)
from shardgit.formats import check_version
from shardgit.lmdbenv import NO_SPACE
from shardgit.ring.builder import build
from shardgit.ring.ring import RingShard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardgit.ring.ring import Ring

NODE_FILE = "node.json"  # in the folder of a node of a cluster: what it was served with last
FORMAT_FILE = "format"
CREATING_FILE = "creating"
MAGIC = "shardgit store"
VERSION = 1
NUMBER_MAX = 4_095  # the ring's
SHARDS_MAX = 100  # each reserves a map of 1 TiB, and a process has 128 TiB of addresses
FILE_MAX_BYTES = 1 << 20
_OF_A_SHARD = (IDENTITY_FILE, IDENTITY_FILE + ".new", "data.mdb", "lock.mdb")
_OF_A_STORE = ("journal", "shards", "tmp")
_OF_A_DISK = {"lost+found"}


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
    shard_paths: Sequence[Path] | None = None,
    fill: Callable[[StoreLayout], None],
) -> StoreLayout:
    """Make the folders of a new store and let ``fill`` put the journal and the shards into them.

    The format file comes last, so a crash before it leaves no store, and the next call clears what
    the first one left. When ``fill`` raises, the folders are as they were.

    Errors: AlreadyExists when a store is there, StoreBusy while another process makes one, Refused
    when a folder holds something else, InvalidArgument, StorageFull.
    """
    if (folder / FORMAT_FILE).exists():
        raise AlreadyExists("a store exists there already", path=str(folder))
    places = _places(folder, shards, shard_paths)
    try:
        with _making(folder, places) as store_id:
            layout = StoreLayout(folder, store_id, places)
            layout.journal.mkdir()
            layout.scratch.mkdir()
            for place in places:
                place.path.mkdir(parents=True, exist_ok=True)
                write_identity(place.path, store_id, place.number)
            fill(layout)
            _sync(layout)
            # commit point: before it a crash leaves no store, after it a whole one.
            faultpoints.reach("store.before_create")
            _write_format(layout, places)
            faultpoints.reach("store.after_create")
    except OSError as cause:
        if cause.errno in NO_SPACE:
            raise StorageFull("no space left for a store", path=str(folder)) from cause
        raise Refused("store was not made", path=str(folder), cause=str(cause)) from cause
    return open_layout(folder)


def open_layout(folder: Path) -> StoreLayout:
    """Read and check a store's folder.

    Errors: NotAStore, StoreFormatUnknown for another version, Refused when a shard's disk is
    missing or swapped.
    """
    if (folder / NODE_FILE).exists() and not (folder / FORMAT_FILE).exists():
        raise Refused("folder is that of a cluster's node, which has no shards", path=str(folder))
    text = _read(folder)
    first, _, rest = text.partition("\n")
    magic, _, version = first.rpartition(" ")
    if magic != MAGIC or not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise NotAStore("folder's format file is not shardgit's", path=str(folder))
    check_version("store", int(version), VERSION)
    if int(version) < VERSION:
        raise NotAStore("folder's format file is not shardgit's", path=str(folder))
    try:
        facts = json.loads(rest)
        store_id = str(uuid.UUID(facts["store"]))
        places = tuple(ShardPlace(int(r["number"]), folder / r["path"]) for r in facts["shards"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise NotAStore("store's format file does not parse", path=str(folder)) from cause
    if not places or len({place.number for place in places}) != len(places):
        raise NotAStore("store's format file names no shard, or one twice", path=str(folder))
    for place in places:
        try:
            check_identity(place.path, store_id, place.number)
        except Refused:
            if _read(folder) != text:
                return open_layout(folder)  # the shard has left while we looked
            raise
    return StoreLayout(folder, store_id, places)


def initial_ring(layout: StoreLayout, *, replicas: int = 1, seed: int = 0) -> Ring:
    """Return the first ring over a store's shards: equal weights, a zone for each disk.

    Errors: InvalidArgument when there are fewer shards than replicas.
    """
    disks: dict[int, int] = {}
    shards = []
    for place in layout.shards:
        zone = disks.setdefault(place.path.stat().st_dev, len(disks))
        shards.append(RingShard(place.number, zone))
    return _dealt(tuple(shards), replicas, seed)


@lru_cache(maxsize=8)  # 0.1 s for several shards: tests make hundreds of stores of the same ones
def _dealt(shards: tuple[RingShard, ...], replicas: int, seed: int) -> Ring:
    return build(shards, replicas=replicas, seed=seed)


def add_place(layout: StoreLayout, path: Path, fill: Callable[[Path], None]) -> ShardPlace:
    """Make a folder a shard of the store, under the next free number; ``fill`` puts an environment there.

    A folder that a call before this one has made a shard, and that no ring names yet, is taken as it is. The caller
    keeps others from changing the layout meanwhile.

    Errors: Refused when the folder holds something else, InvalidArgument, StorageFull.
    """
    known = [place.path for place in layout.shards]
    for place in layout.shards:
        if place.path.resolve() == path.resolve():
            return place
    number = max(place.number for place in layout.shards) + 1
    if number > NUMBER_MAX or len(known) >= SHARDS_MAX:
        raise InvalidArgument("a store has 1 to 100 shards", shards=len(known) + 1)
    _check_apart(layout.folder, [*known, path])
    try:
        path.mkdir(parents=True, exist_ok=True)
        _clear_shard(path, layout.store_id)
        _check_empty(path)
        write_identity(path, layout.store_id, number)
        fill(path)
        for file in (path / "data.mdb", path, path.parent):
            fsync(file)
        place = ShardPlace(number, path)
        # commit point: before it the folder is no shard of the store, and is cleared by the next try.
        faultpoints.reach("shards.before_add")
        _write_format(layout, (*layout.shards, place))
        faultpoints.reach("shards.after_add")
    except OSError as cause:
        if cause.errno in NO_SPACE:
            raise StorageFull("no space left for a shard", path=str(path)) from cause
        raise Refused("shard was not made", path=str(path), cause=str(cause)) from cause
    return place


def drop_place(layout: StoreLayout, number: int) -> None:
    """Take a shard out of the store and remove its files; the folder itself stays.

    The caller has made sure that no ring names it. Stopped halfway it is safe to repeat.
    """
    rest = tuple(place for place in layout.shards if place.number != number)
    for place in layout.shards:
        if place.number == number:
            # commit point: after it no process opens the shard any more.
            faultpoints.reach("shards.before_drop")
            _write_format(layout, rest)
            faultpoints.reach("shards.after_drop")
            _clear_shard(place.path, layout.store_id)


def _clear_shard(path: Path, store_id: str) -> None:
    """Remove the files of a shard of that store from a folder that its format file does not name."""
    facts = read_identity(path)
    if facts is not None and facts.get("store") == store_id:
        _unlink_shard(path)


def _unlink_shard(path: Path) -> None:
    for own in [
        *(path / name for name in _OF_A_SHARD if name != IDENTITY_FILE),
        *path.glob("lock-*"),
    ]:
        own.unlink(missing_ok=True)
    for environment in path.glob(f"{ENVIRONMENT_PREFIX}*"):
        shutil.rmtree(environment, ignore_errors=True)
    (path / IDENTITY_FILE).unlink(missing_ok=True)  # last: it says that the rest is ours


def _write_format(layout: StoreLayout, places: Sequence[ShardPlace]) -> None:
    rows = [
        {"number": p.number, "path": _stored_path(layout.folder, p.path)}
        for p in sorted(places, key=lambda place: place.number)
    ]
    facts = json.dumps({"store": layout.store_id, "shards": rows}, indent=2)
    write_durably(layout.folder / FORMAT_FILE, f"{MAGIC} {VERSION}\n{facts}\n")


def zone_of(layout: StoreLayout, path: Path, zones: dict[int, int]) -> int:
    """Return the zone for a new shard: that of a shard on the same disk, else a new one.

    ``zones`` are those of the shards that the ring names.
    """
    device = path.stat().st_dev
    for place in layout.shards:
        if place.number in zones and place.path.stat().st_dev == device:
            return zones[place.number]
    return max(zones.values(), default=-1) + 1


def _places(
    folder: Path, shards: int, shard_paths: Sequence[Path] | None
) -> tuple[ShardPlace, ...]:
    paths = shard_paths or [folder / "shards" / f"{number:03}" for number in range(shards)]
    if not 1 <= len(paths) <= SHARDS_MAX:
        raise InvalidArgument("a store has 1 to 100 shards", shards=len(paths))
    _check_apart(folder, paths)
    return tuple(ShardPlace(number, path) for number, path in enumerate(paths))


def _check_apart(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse shard folders that lie in one another, or where the store keeps other things."""
    resolved = [path.resolve() for path in paths]
    own = {folder.resolve(), *(folder.resolve() / name for name in ("journal", "tmp", "shards"))}
    for number, path in enumerate(resolved):
        rest = own.union(resolved[:number])
        inside = path.is_relative_to(folder.resolve() / "journal")
        nested = any(path in other.parents for other in rest)
        nested = nested or any(other in path.parents for other in resolved[:number])
        if path in rest or inside or nested:
            raise InvalidArgument("shards and journal want a folder each", path=str(path))


@contextmanager
def _making(folder: Path, places: tuple[ShardPlace, ...]) -> Iterator[str]:
    """Hold the file that marks a store in the making; clear up when its making fails."""
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / CREATING_FILE
    left = {entry.name for entry in folder.iterdir()} - _OF_A_DISK
    if left and CREATING_FILE not in left:
        raise Refused("folder is not empty", path=str(folder))
    with mark.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            raise StoreBusy("another process makes a store there", path=str(folder)) from cause
        if (folder / FORMAT_FILE).exists():
            raise AlreadyExists("a store exists there already", path=str(folder))
        file.seek(0)
        _clear_what_is_left(folder, file.read())
        try:
            for place in places:
                _check_empty(place.path)
            store_id = str(uuid.uuid4())
            file.truncate(0)
            file.write(json.dumps([store_id, *(str(p.path.resolve()) for p in places)]))
            file.flush()
            os.fsync(file.fileno())
            yield store_id
        except BaseException:
            if not (folder / FORMAT_FILE).exists():
                file.seek(0)
                _clear_what_is_left(folder, file.read())
                mark.unlink()
                if not was_there:
                    with suppress(OSError):
                        folder.rmdir()
            raise
        mark.unlink()


def _check_empty(path: Path) -> None:
    if path.exists() and {entry.name for entry in path.iterdir()} - _OF_A_DISK:
        raise Refused("shard folder is not empty", path=str(path))


def _clear_what_is_left(folder: Path, text: str) -> None:
    """Remove what a store in the making has put into its folders, and nothing else."""
    try:
        store_id, *paths = (str(part) for part in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        # Cut short before anything was made, or not ours.
        if {entry.name for entry in folder.iterdir()} - _OF_A_DISK - {CREATING_FILE}:
            raise Refused("folder is not empty", path=str(folder)) from None
        return
    for path in map(Path, paths):
        _clear_shard(path, store_id)
    for name in _OF_A_STORE:
        shutil.rmtree(folder / name, ignore_errors=True)


def _read(folder: Path) -> str:
    try:
        with (folder / FORMAT_FILE).open("rb") as file:
            return file.read(FILE_MAX_BYTES).decode("utf-8")
    except OSError as cause:
        if (folder / CREATING_FILE).exists():
            message = "store was not made to its end; make it again with: shardgit init DIR"
        else:
            message = "no shardgit store there; make one with: shardgit init DIR"
        raise NotAStore(message, path=str(folder)) from cause
    except UnicodeDecodeError as cause:
        raise NotAStore("folder's format file is not shardgit's", path=str(folder)) from cause


def _sync(layout: StoreLayout) -> None:
    """Make files and folder entries durable: LMDB syncs what it commits, not what it makes."""
    folders = {layout.folder, layout.journal, layout.scratch}
    for place in layout.shards:
        folders.update((place.path, place.path.parent))
    for folder in folders:
        for file in (folder / "data.mdb", folder):
            if file.exists():
                fsync(file)


def _stored_path(folder: Path, path: Path) -> str:
    absolute = path.resolve()
    base = folder.resolve()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)
