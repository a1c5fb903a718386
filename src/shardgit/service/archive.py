"""Archives of a repository's trees: git archive, and git archive --remote for any edge."""

from __future__ import annotations

import zlib
from contextlib import aclosing
from typing import TYPE_CHECKING

from shardgit.archive.tar import TarWriter
from shardgit.archive.zip import ZipWriter
from shardgit.errors import ShardgitError
from shardgit.protocol.pktline import FLUSH_BYTES
from shardgit.protocol.upload_archive import (
    ACCEPTED,
    FORMATS,
    ArchiveReader,
    data_band,
    failure,
    message_band,
    parse_arguments,
)
from shardgit.service.access import Action, authorize
from shardgit.service.archive_walk import ArchiveWalk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

    from shardgit.protocol.upload_archive import ArchiveRequest
    from shardgit.service.access import Principal
    from shardgit.service.archive_walk import Entry
    from shardgit.service.store import Store

PIECE_BYTES = 256 << 10
DEFAULT_LEVEL = 6
DATA, MESSAGE = 1, 2


async def archive(
    store: Store, name: str, arguments: Sequence[bytes]
) -> AsyncGenerator[bytes, None]:
    """Return the archive that arguments of ``git archive`` ask for.

    Errors before the first piece: RepositoryMissing, InvalidArgument, RefMissing, PathMissing.
    """
    async with aclosing(_pieces(store, name, parse_arguments(arguments))) as made:
        async for number, piece in made:
            if number == DATA:
                yield piece


async def upload_archive(
    store: Store, name: str, pieces: AsyncIterator[bytes], principal: Principal
) -> AsyncGenerator[bytes, None]:
    """Hold git-upload-archive's conversation: arguments come in pieces, the answer goes out.

    Reads up to the arguments' flush and no further. RepositoryMissing and PermissionRefused come
    before the first piece; any other error is told to the client and raised behind that.
    """
    authorize(principal, Action.READ, name)
    await store.workers.run(_exists, store, name)
    yield ACCEPTED
    reader = ArchiveReader()
    try:
        async for data in pieces:
            reader.receive(data)
            if reader.ended:
                break
        arguments = reader.finish()
        if arguments is None:
            return
        async with aclosing(_pieces(store, name, parse_arguments(arguments))) as made:
            async for number, piece in made:
                yield data_band(piece) if number == DATA else message_band(piece)
    except Exception as error:
        yield failure(_words(error))
        raise
    yield FLUSH_BYTES


def _exists(store: Store, name: str) -> None:
    with store.journal.snapshot() as snapshot:
        store.repository(snapshot, name)


def _words(error: Exception) -> str:
    """Return what a client is told; the facts of what we did wrong stay in our log."""
    if not isinstance(error, ShardgitError):
        return "internal error"
    return error.message if error.code in ("INTERNAL", "DATA_LOSS") else str(error)


async def _pieces(
    store: Store, name: str, request: ArchiveRequest
) -> AsyncGenerator[tuple[int, bytes], None]:
    if request.list_formats:
        yield DATA, b"".join(each + b"\n" for each in FORMATS)
        return
    run = store.workers.run
    walk = await run(ArchiveWalk, store, name, request)
    await run(walk.check_paths)
    made = _zip(walk) if request.format == b"zip" else _tar(walk)
    source = _gathered(made)
    while (step := await run(next, source, None)) is not None:
        yield step


def _gathered(source: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Join small pieces: each goes through a thread and a packet."""
    waiting: list[bytes] = []
    size, kind = 0, DATA
    for number, piece in source:
        if number != kind and waiting:
            yield kind, b"".join(waiting)
            waiting, size = [], 0
        kind = number
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            yield kind, b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield kind, b"".join(waiting)


def _tar(walk: ArchiveWalk) -> Iterator[tuple[int, bytes]]:
    request = walk.request
    level = DEFAULT_LEVEL if request.level < 0 else request.level
    if request.format == b"tar":
        yield from _tar_pieces(walk)
        return
    deflate = zlib.compressobj(level, zlib.DEFLATED, 31)
    for number, piece in _tar_pieces(walk):
        out = deflate.compress(piece) if number == DATA else piece
        if out:
            yield number, out
    yield DATA, deflate.flush()


def _tar_pieces(walk: ArchiveWalk) -> Iterator[tuple[int, bytes]]:
    tar = TarWriter(time=walk.time)
    yield DATA, tar.begin(walk.commit_hex)
    for entry in walk.entries():
        if walk.request.verbose:
            yield MESSAGE, entry.path + b"\n"
        oid = entry.id.hex().encode()
        if entry.is_link:
            yield DATA, tar.entry(entry.path, entry.mode, oid, entry.size, entry.data or b"")
            continue
        yield DATA, tar.entry(entry.path, entry.mode, oid, entry.size)
        if entry.is_file:
            for piece in _content(walk, entry):
                yield DATA, piece
            yield DATA, tar.data(entry.size)
    yield DATA, tar.end()


def _zip(walk: ArchiveWalk) -> Iterator[tuple[int, bytes]]:
    request = walk.request
    level = DEFAULT_LEVEL if request.level < 0 else request.level
    out = ZipWriter(time=walk.time, level=level, comment=walk.commit_hex)
    for entry in walk.entries():
        if request.verbose:
            yield MESSAGE, entry.path + b"\n"
        if entry.data is not None or not entry.is_file:
            yield DATA, out.whole(entry.path, entry.mode, entry.data or b"")
            continue
        yield DATA, out.begin(entry.path, entry.mode, entry.size)
        for piece in _content(walk, entry):
            yield DATA, out.data(piece)
        yield DATA, out.finish(entry.size)
    yield DATA, out.end()


def _content(walk: ArchiveWalk, entry: Entry) -> Iterator[bytes]:
    if entry.data is not None:
        return iter((entry.data,))
    return walk.stream_of(entry)
