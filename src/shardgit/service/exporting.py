"""Export: a repository becomes a bare Git repository on disk, checked before it gets its name."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import faultpoints
from shardgit.errors import AlreadyExists, DataLoss
from shardgit.graph.closure import bit
from shardgit.oid import HashKind, ObjectId
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.progress import Progress, Report, silent
from shardgit.service.resolving import new_ingest, resolve
from shardgit.service.source import new_hash

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.pool.view import PoolView
    from shardgit.refs.ref import Ref
    from shardgit.service.store import Store


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote."""

    repository: str
    folder: str
    objects: int
    refs: int
    pack_bytes: int
    seconds: float


def export_repository(
    store: Store, name: str, folder: Path, *, progress: Report = silent
) -> ExportResult:
    """Write repository ``name`` as a bare repository to ``folder``, which must not exist.

    Every object of the pack is made and its id computed before the folder gets its name, so an export that exists is
    whole. Errors: RepositoryMissing, AlreadyExists, DataLoss when the store's objects are damaged.
    """
    begun = time.monotonic()
    if folder.exists():
        raise AlreadyExists("export folder exists already", path=str(folder))
    with store.journal.snapshot() as snapshot:
        state = store.state(snapshot, name)
        view = store.view(state.pool)
        reach = store.reach_of(snapshot, state)
        refs = list(store.refs.list(snapshot, state.record))
        head = store.refs.get(snapshot, state.record, b"HEAD")
    wanted = reach.bits()
    kind = state.record.hash_kind
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    objects = pack_bytes = 0
    try:
        _skeleton(fresh, kind, refs, head)
        if view is not None:
            transfer = Transfer(view, wanted, options=TransferOptions())
            objects = transfer.objects
            if view.grafts:
                _shallow(fresh / "shallow", view, wanted)
            if objects:
                pack_bytes = _pack(fresh / "objects" / "pack", transfer, kind, store, progress)
        # commit point: before it there is no export, after it there is a whole one.
        faultpoints.reach("export.before_rename")
        fresh.rename(folder)
        faultpoints.reach("export.after_rename")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    seconds = time.monotonic() - begun
    return ExportResult(name, str(folder), objects, len(refs), pack_bytes, seconds)


def _skeleton(folder: Path, kind: HashKind, refs: list[Ref], head: Ref | None) -> None:
    """Write everything of a bare repository but its objects."""
    for part in ("objects/pack", "objects/info", "refs/heads", "refs/tags"):
        (folder / part).mkdir(parents=True)
    sha256 = kind is HashKind.SHA256
    config = (
        f"[core]\n\trepositoryformatversion = {int(sha256)}\n\tfilemode = true\n\tbare = true\n"
    )
    (folder / "config").write_text(
        config + ("[extensions]\n\tobjectformat = sha256\n" if sha256 else "")
    )
    (folder / "HEAD").write_bytes(_loose(head) if head else b"ref: refs/heads/main\n")
    rows = [b"# pack-refs with: peeled fully-peeled sorted \n"]
    for ref in refs:
        if ref.target is None:
            path = folder / os.fsdecode(ref.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_loose(ref))
            continue
        rows.append(ref.target.hex().encode() + b" " + ref.name + b"\n")
        if ref.peeled is not None:
            rows.append(b"^" + ref.peeled.hex().encode() + b"\n")
    (folder / "packed-refs").write_bytes(b"".join(rows))


def _shallow(path: Path, view: PoolView, reached: bytes) -> None:
    """Write where history ends, for git: of what is exported only."""
    ids = sorted(view.grafts.ids)
    places = zip(ids, view.positions(ids), strict=True)
    rows = [oid.hex().encode() + b"\n" for oid, at in places if at >= 0 and bit(reached, at)]
    if rows:
        path.write_bytes(b"".join(rows))


def _loose(ref: Ref) -> bytes:
    if ref.symbolic is not None:
        return b"ref: " + ref.symbolic + b"\n"
    return (ref.target or ObjectId(b"")).hex().encode() + b"\n"


def _pack(folder: Path, transfer: Transfer, kind: HashKind, store: Store, progress: Report) -> int:
    """Write the pack and its index; returns the pack's size."""
    path = folder / "new.pack"
    done = 0
    with path.open("wb") as file:
        for chunk in transfer.chunks():
            file.write(chunk)
            done += len(chunk)
            progress(Progress("writing the pack", done, None, "bytes"))
        file.flush()
        os.fsync(file.fileno())
    ids, crcs, offsets, trailer = _checked(path, kind, store, progress)
    if len(ids) != transfer.objects * kind.size:
        raise DataLoss("exported pack has another object count", objects=transfer.objects)
    index = pack_index(ids, crcs, offsets, trailer, kind)
    name = f"pack-{trailer.hex()}"
    (folder / f"{name}.idx").write_bytes(index)
    path.rename(folder / f"{name}.pack")
    return done


def _checked(
    path: Path, kind: HashKind, store: Store, progress: Report
) -> tuple[bytes, bytes, bytes, bytes]:
    """Resolve the pack as written and return (ids, CRCs, offsets, trailer)."""
    # Chains may go on over the segments of several imports, each of the depth that one pack may have.
    ingest = new_ingest(kind, replace(store.limits, delta_depth_max=65_535))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        ingest.scan(data)
        resolve(ingest, threads=store.workers.threads, stage="checking the pack", progress=progress)
        rows = ingest.index_rows()
        trailer = data[-kind.size :]
        del ingest  # it holds the map's buffer
    return (*rows, trailer)


def pack_index(ids: bytes, crcs: bytes, offsets: bytes, trailer: bytes, kind: HashKind) -> bytes:
    """Return an .idx of version 2. ``ids`` ascend; CRCs (u32) and offsets (u64) are BE and in their order."""
    size = kind.size
    count = len(ids) // size
    fanout = [0] * 256
    for at in range(0, len(ids), size):
        fanout[ids[at]] += 1
    total = 0
    for byte in range(256):
        total += fanout[byte]
        fanout[byte] = total
    small: list[int] = []
    large: list[int] = []
    for (offset,) in struct.iter_unpack(">Q", offsets):
        if offset < 1 << 31:
            small.append(offset)
        else:
            small.append(1 << 31 | len(large))
            large.append(offset)
    body = b"".join(
        (
            b"\xfftOc" + struct.pack(">I", 2) + struct.pack(">256I", *fanout),
            ids,
            crcs,
            struct.pack(f">{count}I", *small),
            struct.pack(f">{len(large)}Q", *large),
            trailer,
        )
    )
    hashed = new_hash(kind)
    hashed.update(body)
    return body + hashed.digest()
