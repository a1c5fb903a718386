"""The manifest of a backup: which rows and which blocks it is. See docs/formats/backup.md."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise

from blake3 import blake3

from shardgit.errors import BackupCorrupt, BackupMissing

MAGIC = b"SGBC"
VERSION = 1
_HEAD = struct.Struct("<4sHHIIQ8x")
_CHUNK = struct.Struct("<32sIHxx")
_CHECKSUM_BYTES = 32
_ID = 32
FACTS_READ_BYTES = 16 << 10
NAME = re.compile(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class CutFacts:
    """What a backup tells about itself. Times are those of the clock of the machine that made it."""

    id: str
    store: str  # UUID of the store
    taken_ms: int  # of the journal's snapshot
    finished_ms: int
    revision: int  # of the journal
    rows: int
    row_bytes: int
    repositories: int
    blocks: int
    block_bytes: int
    sent_blobs: int
    sent_bytes: int
    version: str  # of the program
    host: str = ""


@dataclass(frozen=True, slots=True)
class RowsBlob:
    """A blob of rows: its id, how many rows, the key of the first."""

    id: bytes
    rows: int
    first: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A whole backup: its facts, the blobs of its rows by rising key, its blocks' ids ascending, one after another."""

    facts: CutFacts
    chunks: tuple[RowsBlob, ...]
    blocks: bytes

    def block_ids(self) -> list[bytes]:
        """Return the ids of the blocks."""
        return [self.blocks[at : at + _ID] for at in range(0, len(self.blocks), _ID)]

    @property
    def blobs(self) -> set[bytes]:
        """The ids of all blobs that the backup is made of."""
        return {chunk.id for chunk in self.chunks}.union(self.block_ids())


def cut_name(cut: str) -> str:
    """Return the name of a backup's object. Errors: BackupMissing for what is no id."""
    if not NAME.fullmatch(cut):
        raise BackupMissing("no backup has such an id", backup=cut[:100])
    return f"cuts/{cut}"


def new_cut_id(time_ms: int) -> str:
    """Return a fresh id; ids sort by time."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{time_ms % 1000:03}Z-{os.urandom(4).hex()}"


def encode_cut(cut: Cut) -> bytes:
    """Return the bytes of a backup's object."""
    facts = json.dumps(asdict(cut.facts), separators=(",", ":")).encode()
    count = len(cut.blocks) // _ID
    out = [_HEAD.pack(MAGIC, VERSION, 0, len(facts), len(cut.chunks), count), facts]
    for chunk in cut.chunks:
        out += (_CHUNK.pack(chunk.id, chunk.rows, len(chunk.first)), chunk.first)
    body = b"".join((*out, cut.blocks))
    return body + blake3(body).digest()


def decode_facts(data: bytes) -> CutFacts:
    """Return what a backup tells about itself, from its first FACTS_READ_BYTES; these are not held by a checksum."""
    try:
        magic, version, _, length, _, _ = _HEAD.unpack_from(data)
        if magic != MAGIC or version != VERSION or length > FACTS_READ_BYTES - _HEAD.size:
            raise BackupCorrupt("backup has an unknown magic or version", version=version)
        return CutFacts(**json.loads(data[_HEAD.size : _HEAD.size + length]))
    except (ValueError, TypeError, RecursionError, struct.error) as cause:
        raise BackupCorrupt("backup does not parse", bytes=len(data)) from cause


def decode_cut(data: bytes) -> Cut:
    """Return the backup in an object; BackupCorrupt when it is off."""
    body = data[:-_CHECKSUM_BYTES]
    if len(body) < _HEAD.size or blake3(body).digest() != data[-_CHECKSUM_BYTES:]:
        raise BackupCorrupt("backup does not match its checksum", bytes=len(data))
    magic, version, _, length, count, blocks = _HEAD.unpack_from(body)
    if magic != MAGIC or version != VERSION or length > FACTS_READ_BYTES:
        raise BackupCorrupt("backup has an unknown magic or version", version=version)
    at = _HEAD.size + length
    try:
        facts = CutFacts(**json.loads(body[_HEAD.size : at]))
        chunks = []
        for _ in range(count):
            name, rows, first = _CHUNK.unpack_from(body, at)
            at += _CHUNK.size + first
            chunks.append(RowsBlob(name, rows, body[at - first : at]))
    except (ValueError, TypeError, RecursionError, struct.error) as cause:
        raise BackupCorrupt("backup does not parse", bytes=len(data)) from cause
    ids = body[at:]
    if len(ids) != blocks * _ID:
        raise BackupCorrupt("backup has another count of blocks than it says", blocks=blocks)
    made = Cut(facts, tuple(chunks), ids)
    named = made.block_ids()
    if any(a >= b for a, b in pairwise(named)) or any(
        a.first >= b.first for a, b in pairwise(chunks)
    ):
        raise BackupCorrupt("backup is out of order", blocks=blocks)
    return made
