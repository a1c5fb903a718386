"""The journal's rows: keys and typed records. See docs/formats/journal.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import JournalCorrupt
from shardgit.formats import check_row, check_version
from shardgit.journal.interface import Compare, Put, end_of
from shardgit.oid import BlockId, HashKind, PoolId, RepositoryId

if TYPE_CHECKING:
    from shardgit.journal.interface import JournalSnapshot

FORMAT = 1  # of the whole journal: a shardgit that does not know it opens nothing
VERSION = 1
RING_KEY = b"G"
STORE_KEY = b"M"
NEXT_REPOSITORY_KEY = b"C"
REPOSITORY_NAMES = b"N"
NODES = b"Y"  # of a cluster: nodes, sessions, owners
_REPOSITORY = struct.Struct("<BBHQ16sQHIQ")
_REPOSITORY_1 = struct.Struct("<BBHQ16sQHI")
REPOSITORY_VERSION = 2
_NAME = struct.Struct("<BBHQ")
_POOL = struct.Struct("<BBHQQ32s")
_HEAD = struct.Struct("<BBHIQ32sQ")
_HEAD_1 = struct.Struct("<BBHIQ32s")
HEAD_VERSION = 2
_COUNTER = struct.Struct("<B7xQ")
_STORE = struct.Struct("<BxH12x16s")
_NONE = bytes(32)
NO_REPOSITORY = RepositoryId(0)


def repository_key(repository: RepositoryId) -> bytes:
    """Return the key of a repository's record."""
    return b"I" + repository.to_bytes(8, "big")


def name_key(name: str) -> bytes:
    """Return the key of a name."""
    return REPOSITORY_NAMES + name.encode()


def deleted_key(repository: RepositoryId) -> bytes:
    """Return the key of a deleted repository's record, kept for gc's grace period."""
    return b"D" + repository.to_bytes(8, "big")


def pool_key(pool: PoolId) -> bytes:
    """Return the key of a pool's record."""
    return b"P" + pool


def recent_key(pool: PoolId, serial: int) -> bytes:
    """Return the key of a recent: what one push brought, until a settle folds it into the manifest."""
    return b"S" + pool + serial.to_bytes(8, "big")


def recents_range(pool: PoolId, *, after: int = 0, upto: int | None = None) -> tuple[bytes, bytes]:
    """Return the key range of a pool's recents with serials behind ``after``, up to ``upto``."""
    low = recent_key(pool, after + 1)
    return low, recent_key(pool, upto + 1) if upto is not None else end_of(b"S" + pool)


def serial_of(key: bytes) -> int:
    """Return the serial in a recent's key."""
    return int.from_bytes(key[-8:], "big")


def loose_range(repository: RepositoryId) -> tuple[bytes, bytes]:
    """Return the key range of a repository's loose refs; HEAD, which is not under refs/, lies
    outside.
    """
    prefix = b"R" + repository.to_bytes(8, "big")
    return prefix + b"refs/", prefix + b"refs0"


def refs_head_key(repository: RepositoryId) -> bytes:
    """Return the key of a repository's refs head."""
    return b"H" + repository.to_bytes(8, "big")


def ref_key(repository: RepositoryId, name: bytes) -> bytes:
    """Return the key of a loose ref."""
    return b"R" + repository.to_bytes(8, "big") + name


def log_key(repository: RepositoryId, sequence: int) -> bytes:
    """Return the key of a log row."""
    return b"L" + repository.to_bytes(8, "big") + sequence.to_bytes(8, "big")


def log_range(repository: RepositoryId, after: int = 0) -> tuple[bytes, bytes]:
    """Return the key range of a repository's log rows behind the one numbered ``after``."""
    return log_key(repository, after + 1), end_of(b"L" + repository.to_bytes(8, "big"))


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """A repository: its number, name, pool, settings, and the number of what it was forked from, 0 without."""

    id: RepositoryId
    name: str
    pool: PoolId
    hash_kind: HashKind
    created_ms: int
    settings: bytes = b"{}"
    parent: RepositoryId = NO_REPOSITORY

    def encode(self) -> bytes:
        """Return the row's value."""
        name = self.name.encode()
        head = _REPOSITORY.pack(
            REPOSITORY_VERSION,
            self.hash_kind,
            0,
            self.id,
            self.pool,
            self.created_ms,
            len(name),
            len(self.settings),
            self.parent,
        )
        return head + name + self.settings

    @classmethod
    def decode(cls, data: bytes) -> RepositoryRecord:
        """Return the record in a row's value, of version 1 too; JournalCorrupt when it is off."""
        check_row("repository record", data, REPOSITORY_VERSION)
        form = _REPOSITORY_1 if data[:1] == b"\1" else _REPOSITORY
        try:
            version, kind, _, number, pool, created, length, settings, *parent = form.unpack_from(
                data
            )
            if not 1 <= version <= REPOSITORY_VERSION or len(data) != form.size + length + settings:
                raise JournalCorrupt("repository record is off", version=version, bytes=len(data))
            name = data[form.size : form.size + length].decode()
            return cls(
                RepositoryId(number),
                name,
                PoolId(pool),
                HashKind(kind),
                created,
                data[form.size + length :],
                RepositoryId(parent[0] if parent else 0),
            )
        except (struct.error, ValueError) as cause:
            raise JournalCorrupt("repository record does not parse", bytes=len(data)) from cause


@dataclass(frozen=True, slots=True)
class NameRecord:
    """What a name stands for: a repository in a cell (0 while there is one journal)."""

    id: RepositoryId
    cell: int = 0

    def encode(self) -> bytes:
        """Return the row's value."""
        return _NAME.pack(VERSION, 0, self.cell, self.id)

    @classmethod
    def decode(cls, data: bytes) -> NameRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("name record", data, VERSION)
        if len(data) != _NAME.size or data[0] != VERSION:
            raise JournalCorrupt("name record is off", bytes=len(data))
        _, _, cell, number = _NAME.unpack(data)
        return cls(RepositoryId(number), cell)


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """A pool and the block id of its current manifest, None while it is empty."""

    id: PoolId
    hash_kind: HashKind
    manifest: BlockId | None
    generation: int
    created_ms: int

    def encode(self) -> bytes:
        """Return the row's value."""
        return _POOL.pack(
            VERSION, self.hash_kind, 0, self.generation, self.created_ms, self.manifest or _NONE
        )

    @classmethod
    def decode(cls, pool: PoolId, data: bytes) -> PoolRecord:
        """Return the record in a row's value; JournalCorrupt when it is off."""
        check_row("pool record", data, VERSION)
        if len(data) != _POOL.size or data[0] != VERSION or data[1] not in (1, 2):
            raise JournalCorrupt("pool record is off", pool=pool.hex(), bytes=len(data))
        _, kind, _, generation, created, manifest = _POOL.unpack(data)
        return cls(
            pool,
            HashKind(kind),
            BlockId(manifest) if manifest != _NONE else None,
            generation,
            created,
        )


@dataclass(frozen=True, slots=True)
class RefsHead:
    """The head of a repository's refs: the snapshot below the loose ones.

    Its row's revision changes with every ref. ``count`` is the number of refs that stand, ``loose``
    the number of loose rows, deletions among them; HEAD counts for neither. ``hash_kind`` is that
    of the snapshot's ids. ``sequence`` is the number of the last log row, 0 without one.
    """

    snapshot: BlockId | None
    count: int
    loose: int = 0
    hash_kind: HashKind | None = None
    sequence: int = 0

    def encode(self) -> bytes:
        """Return the row's value."""
        kind, root = self.hash_kind or 0, self.snapshot or _NONE
        return _HEAD.pack(HEAD_VERSION, kind, 0, self.loose, self.count, root, self.sequence)

    @classmethod
    def decode(cls, data: bytes) -> RefsHead:
        """Return the record in a row's value, of version 1 too; JournalCorrupt when it is off."""
        check_row("refs head", data, HEAD_VERSION)
        form = {1: _HEAD_1, HEAD_VERSION: _HEAD}.get(data[0] if data else 0)
        if form is None or len(data) != form.size or data[1] > HashKind.SHA256:
            raise JournalCorrupt("refs head is off", bytes=len(data))
        _, kind, _, loose, count, snapshot, *rest = form.unpack(data)
        if snapshot != _NONE and not kind:
            raise JournalCorrupt("refs head names a snapshot of no hash kind")
        root = BlockId(snapshot) if snapshot != _NONE else None
        return cls(root, count, loose, HashKind(kind) if kind else None, rest[0] if rest else 0)


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """Which store this journal belongs to: the 16 bytes of its UUID, and the journal's format."""

    id: bytes
    format: int = FORMAT

    def encode(self) -> bytes:
        """Return the row's value."""
        return _STORE.pack(VERSION, self.format, self.id)

    @classmethod
    def decode(cls, data: bytes) -> StoreRecord:
        """Return the record in a row's value; JournalCorrupt when it is off, StoreFormatUnknown for a newer journal."""
        check_row("store record", data, VERSION)
        if len(data) != _STORE.size or data[0] != VERSION:
            raise JournalCorrupt("store record is off", bytes=len(data))
        _, form, store = _STORE.unpack(data)
        check_version("journal", form, FORMAT)
        return cls(store, form)


def encode_counter(value: int) -> bytes:
    """Return the value of a counter's row."""
    return _COUNTER.pack(VERSION, value)


def decode_counter(data: bytes) -> int:
    """Return the number in a counter's row; JournalCorrupt when it is off."""
    check_row("counter", data, VERSION)
    if len(data) != _COUNTER.size or data[0] != VERSION:
        raise JournalCorrupt("counter is off", bytes=len(data))
    return int(_COUNTER.unpack(data)[1])


def encode_deleted(deleted_ms: int, record: RepositoryRecord) -> bytes:
    """Return the value of a deleted repository's row."""
    return encode_counter(deleted_ms) + record.encode()


def decode_deleted(data: bytes) -> tuple[int, bytes]:
    """Return when a repository was deleted, and the value of its row as it was; JournalCorrupt when it is off."""
    return decode_counter(data[: _COUNTER.size]), data[_COUNTER.size :]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A repository id and what makes it ours: both go into the commit that uses it."""

    id: RepositoryId
    condition: Compare
    operation: Put


def allocate_repository(snapshot: JournalSnapshot) -> Allocation:
    """Return the next repository id, from 1 on; ids are never used twice.

    The commit loses (Conflict) to another's.
    """
    row = snapshot.get(NEXT_REPOSITORY_KEY)
    number = decode_counter(row.value) if row else 1
    return Allocation(
        RepositoryId(number),
        Compare(NEXT_REPOSITORY_KEY, row.revision if row else 0),
        Put(NEXT_REPOSITORY_KEY, encode_counter(number + 1)),
    )
