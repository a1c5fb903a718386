"""The log of a repository's refs: one row a committed change-set. See docs/formats/refs.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.blocks.block import HEADER_SIZE, BlockKind, named, new_header, parse_header
from shardgit.errors import BlockCorrupt, DataLoss, JournalCorrupt, LimitExceeded
from shardgit.formats import check_row
from shardgit.limits import DEFAULT
from shardgit.oid import BlockId, HashKind
from shardgit.refs.ref import Ref, decode_body, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shardgit.blocks.interface import BlockStore
    from shardgit.oid import PoolId
    from shardgit.refs.snapshot import RefSnapshot

VERSION = 1
LOG_FLAG = 2  # of a block of kind REFS
MADE = 1  # flag of a row
ROW_BYTES = 64 << 10  # a larger row has its body in blocks
HELD_BLOCKS = 8  # of about 1 MiB, put with one fsync
_ROW = struct.Struct("<BBBxQIHHHHI")
_MADE = struct.Struct("<32sQ")
_BLOCK = struct.Struct("<4sI")
_U16 = struct.Struct("<H")
_PAYLOAD_BYTES = DEFAULT.block_target_bytes - HEADER_SIZE - _BLOCK.size


@dataclass(frozen=True, slots=True)
class LogNote:
    """Who moved refs, and why; goes into every change of refs."""

    actor: str  # principal's name, "" for the system
    message: str  # "push", "fork of x", ...
    address: str = ""  # where from
    time_ms: int = 0  # 0: now
    certificate: bytes = b""  # of a signed push, whole


SYSTEM = LogNote("", "")


@dataclass(frozen=True, slots=True)
class LogChange:
    """What became of one ref: None where there was, or is, none."""

    name: bytes
    old: Ref | None
    new: Ref | None


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot whose refs were all made by one row."""

    root: BlockId
    count: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One committed change-set; ``sequence`` counts from 1 in each repository, without gaps."""

    sequence: int
    time_ms: int
    actor: str
    message: str
    address: str
    changes: Changes

    @property
    def certificate(self) -> bytes:
        """The certificate of a signed push, b"" without one. Reads blocks."""
        return self.changes.certificate()


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of an entry by rising name, HEAD first.

    Many changes lie in blocks, which are read as an iteration comes to them: DataLoss when one is
    missing. Good for as long as the entry's row is not deleted; needs no snapshot of the journal.
    """

    hash_kind: HashKind
    count: int  # those of ``made`` not counted
    certificate_bytes: int
    blocks: tuple[BlockId, ...]
    body: bytes
    made: Made | None
    source: LogSource

    def __len__(self) -> int:
        return self.count + (self.made.count if self.made else 0)

    def __iter__(self) -> Iterator[LogChange]:
        size = self.hash_kind.size
        if not self.blocks:
            yield from _changes(self.body[self.certificate_bytes :], self.count, size)
        for block in self.blocks[1 if self.certificate_bytes else 0 :]:
            count, payload = self.source.block(block)
            yield from _changes(payload, count, size)
        if self.made is not None:
            for ref in self.source.opened(self.made.root).range(b"", b"\xff"):
                yield LogChange(ref.name, None, ref)

    def of(self, name: bytes) -> LogChange | None:
        """Return what became of one ref, None when it was not touched."""
        size = self.hash_kind.size
        if not self.blocks and name in self.body:
            for change in _changes(self.body[self.certificate_bytes :], self.count, size):
                if change.name == name:
                    return change
        for block in self.blocks[1 if self.certificate_bytes else 0 :]:
            count, payload = self.source.block(block)
            if name in payload:
                for change in _changes(payload, count, size):
                    if change.name == name:
                        return change
        made = self.source.opened(self.made.root).get(name) if self.made else None
        return LogChange(name, None, made) if made is not None else None

    def certificate(self) -> bytes:
        """Return the certificate."""
        if not self.certificate_bytes or not self.blocks:
            return self.body[: self.certificate_bytes]
        _, payload = self.source.block(self.blocks[0])
        if len(payload) != self.certificate_bytes:
            raise BlockCorrupt("certificate has another length than its row says")
        return payload


class LogSource:
    """Where the bodies of entries come from."""

    def __init__(self, blocks: BlockStore, opened: Callable[[BlockId], RefSnapshot]) -> None:
        self._blocks = blocks
        self.opened = opened

    def block(self, block: BlockId) -> tuple[int, bytes]:
        """Return a log block's number of changes, and what stands behind it."""
        (data,) = self._blocks.get_many_sync([block])
        if data is None:
            raise DataLoss("block of the ref log is missing", block=block.hex())
        header = parse_header(data, kind=BlockKind.REFS)
        if header.flags != LOG_FLAG or len(data) < HEADER_SIZE + _BLOCK.size:
            raise BlockCorrupt("block is none of a ref log", block=block.hex())
        magic, count = _BLOCK.unpack_from(data, HEADER_SIZE)
        if magic != b"SGRL":
            raise BlockCorrupt("log block has an unknown magic", block=block.hex())
        return count, data[HEADER_SIZE + _BLOCK.size :]


def _changes(data: bytes, count: int, size: int) -> Iterator[LogChange]:
    at = 0
    for _ in range(count):
        if at + 2 > len(data):
            raise JournalCorrupt("ref log is cut short", bytes=len(data))
        start = at + 2
        at = start + (data[at] | data[at + 1] << 8)
        name = data[start:at]
        old, at = decode_body(name, data, at, size)
        new, at = decode_body(name, data, at, size)
        yield LogChange(name, old if old.stands else None, new if new.stands else None)
    if at != len(data):
        raise JournalCorrupt("ref log has bytes behind its changes", bytes=len(data))


def _encode_change(change: LogChange) -> bytes:
    nothing = Ref(change.name)
    head = _U16.pack(len(change.name)) + change.name
    return head + encode_body(change.old or nothing) + encode_body(change.new or nothing)


def encode_entry(
    changes: Iterable[LogChange],
    note: LogNote,
    *,
    pool: PoolId,
    hash_kind: HashKind,
    put: Callable[[list[tuple[BlockId, bytes]]], None],
    made: Made | None = None,
) -> bytes:
    """Return the value of a log row; ``put`` stores the blocks of a body too large for one.

    ``changes`` come by rising name. Actor, address and message are cut to what limits.py grants.
    """
    certificate = note.certificate
    if len(certificate) > DEFAULT.log_certificate_max_bytes:
        raise LimitExceeded(
            "push certificate is too large",
            bytes=len(certificate),
            limit=DEFAULT.log_certificate_max_bytes,
        )
    texts = [
        _cut(note.actor, DEFAULT.log_actor_max_bytes),
        _cut(note.address, DEFAULT.log_actor_max_bytes),
        _cut(note.message, DEFAULT.log_message_max_bytes),
    ]
    spill = _Spill(pool, hash_kind, put)
    waiting: list[bytes] = []
    count = size = 0
    room = ROW_BYTES - _ROW.size - _MADE.size - sum(map(len, texts)) - len(certificate)
    for change in changes:
        data = _encode_change(change)
        if size + len(data) > _PAYLOAD_BYTES:
            spill.add(waiting)
            waiting, size = [], 0
        waiting.append(data)
        size += len(data)
        count += 1
    if spill.blocks or size > room:
        if waiting:
            spill.add(waiting)
        blocks = spill.finish(certificate)
        body = list[bytes](blocks)
    else:
        blocks, body = [], [certificate, *waiting]
    time_ms = note.time_ms or clock.now_ms()
    head = _ROW.pack(
        VERSION,
        hash_kind,
        MADE if made else 0,
        time_ms,
        count,
        *map(len, texts),
        len(blocks),
        len(certificate),
    )
    root = _MADE.pack(made.root, made.count) if made else b""
    return b"".join((head, *texts, root, *body))


def decode_entry(sequence: int, data: bytes, source: LogSource) -> LogEntry:
    """Return the entry in a log row's value; JournalCorrupt when it is off."""
    check_row("log row", data, VERSION)
    try:
        version, kind, flags, time_ms, count, actor, address, message, blocks, certificate = (
            _ROW.unpack_from(data)
        )
        if version != VERSION or kind not in (1, 2) or flags & ~MADE:
            raise JournalCorrupt("log row is off", version=version, sequence=sequence)
        at = _ROW.size
        texts = []
        for length in (actor, address, message):
            texts.append(data[at : at + length].decode())
            at += length
        made = None
        if flags & MADE:
            made = Made(*_MADE.unpack_from(data, at))
            at += _MADE.size
        body = data[at:]
        named = tuple(BlockId(body[n * 32 : n * 32 + 32]) for n in range(blocks))
        if len(body) != 32 * blocks if blocks else len(body) < certificate:
            raise JournalCorrupt("log row is cut short", sequence=sequence)
    except (struct.error, UnicodeDecodeError) as cause:
        raise JournalCorrupt("log row does not parse", sequence=sequence) from cause
    changes = Changes(
        HashKind(kind), count, certificate, named, b"" if named else body, made, source
    )
    return LogEntry(sequence, time_ms, texts[0], texts[2], texts[1], changes)


def _named_at(data: bytes) -> tuple[int, int, int]:
    """Return where a row's snapshot stands, 0 without one, where its blocks begin, and how many they are."""
    check_row("log row", data, VERSION)
    try:
        version, kind, flags, _, _, actor, address, message, blocks, _ = _ROW.unpack_from(data)
    except struct.error as cause:
        raise JournalCorrupt("log row does not parse", bytes=len(data)) from cause
    at = _ROW.size + actor + address + message
    first = at + (_MADE.size if flags & MADE else 0)
    if version != VERSION or kind not in (1, 2) or flags & ~MADE or len(data) < first + 32 * blocks:
        raise JournalCorrupt("log row is off", version=version, bytes=len(data))
    return at if flags & MADE else 0, first, blocks


def named_blocks(data: bytes) -> tuple[BlockId | None, tuple[BlockId, ...]]:
    """Return the snapshot and the log blocks that a row's value names; JournalCorrupt when it is off."""
    made, first, blocks = _named_at(data)
    named = range(first, first + 32 * blocks, 32)
    root = BlockId(data[made : made + 32]) if made else None
    return root, tuple(BlockId(data[at : at + 32]) for at in named)


def with_blocks(data: bytes, renamed: Callable[[BlockId], BlockId]) -> bytes:
    """Return a row's value that names other blocks."""
    made, first, blocks = _named_at(data)
    out = bytearray(data)
    places = [*([made] if made else []), *range(first, first + 32 * blocks, 32)]
    for at in places:
        out[at : at + 32] = renamed(BlockId(data[at : at + 32]))
    return bytes(out)


class _Spill:
    """Puts the body of a large row as blocks."""

    def __init__(
        self,
        pool: PoolId,
        hash_kind: HashKind,
        put: Callable[[list[tuple[BlockId, bytes]]], None],
    ) -> None:
        self.blocks: list[BlockId] = []
        self._pool = pool
        self._hash_kind = hash_kind
        self._put = put
        self._held: list[tuple[BlockId, bytes]] = []

    def add(self, changes: list[bytes]) -> None:
        self.blocks.append(self._block(len(changes), b"".join(changes)))

    def finish(self, certificate: bytes) -> list[BlockId]:
        if certificate:
            self.blocks.insert(0, self._block(0, certificate))
        self._flush()
        return self.blocks

    def _block(self, count: int, payload: bytes) -> BlockId:
        length = HEADER_SIZE + _BLOCK.size + len(payload)
        head = new_header(BlockKind.REFS, self._hash_kind, self._pool, length, flags=LOG_FLAG)
        made, data = named(head + _BLOCK.pack(b"SGRL", count) + payload)
        self._held.append((made, data))
        if len(self._held) == HELD_BLOCKS:
            self._flush()
        return made

    def _flush(self) -> None:
        # Durable before the commit that names them; a crash between leaves blocks that gc drops.
        if self._held:
            self._put(self._held)
        self._held = []


def _cut(text: str, most: int) -> bytes:
    raw = text.encode("utf-8", "replace")
    return raw if len(raw) <= most else raw[:most].decode("utf-8", "ignore").encode()
