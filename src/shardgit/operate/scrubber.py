"""The process that reads an LMDB file which may be damaged; operate/scrub.py starts and asks it.

``python -m shardgit.operate.scrubber FOLDER [closed]`` reads a request a line from standard input, JSON, and
answers each with a line of JSON on standard output and as many bytes behind it as its ``bytes``
says. It ends with its input. Nothing of the file is mapped but by LMDB itself, which only pins the
pages of a moment: should that kill the process, whoever asked goes on.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from blake3 import blake3

from shardgit.blocks.block import BLOCK_MAX_BYTES, HEADER_SIZE, MAGIC, parse_header
from shardgit.errors import BlockCorrupt, ShardgitError
from shardgit.lmdbenv import PAGE_BYTES, Environment
from shardgit.lmdbpages import HEADER_BYTES, OVERFLOW, Entry, Fault, Leaf, PageDamaged, PageFile
from shardgit.lmdbwalk import FAULTS_MAX, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.lmdbpages import Meta

SEEN = struct.Struct("<32s16sQIBBBx")  # id, pool, created ms, length, kind, flags, hash kind
ROW = struct.Struct("<HI")  # lengths of key and value
ID_BYTES = 32
METAS_TRIES = 5
METAS_PAUSE_S = 0.01
END = b"\xff" * 512  # behind every key
_OVERFLOW_HEADER = struct.Struct("<QHHI")
Answer = tuple[dict[str, Any], bytes]


class Scrubber:
    """Answers requests about one environment's file."""

    def __init__(self, folder: Path, *, closed: bool = False) -> None:
        self._handle = os.open(folder / "data.mdb", os.O_RDONLY)
        self._file = PageFile(self._handle)
        self._environment: Environment | None = None
        if not closed:
            # Where LMDB itself refuses the file, nobody else opens it either.
            with suppress(ShardgitError):
                self._environment = Environment(folder)

    @contextmanager
    def _pinned(self) -> Iterator[Meta | None]:
        """Give the newest meta page while nothing that it leads to is written over."""
        tries = 0
        while True:
            with self._environment.pin() if self._environment else nullcontext() as number:
                metas, _ = self._file.metas()
                meta = next((one for one in metas if one.transaction == number), None)
                # Another commit may have come in between, and the next but one takes the page.
                tries += 1
                if meta is not None or number is None or tries == METAS_TRIES:
                    yield meta or (metas[0] if metas else None)
                    return

    # ---- requests ----

    def walk(self) -> Answer:
        """Walk all pages."""
        _, faults = self._file.metas()
        for _ in range(METAS_TRIES):
            if faults:  # a commit may have been at it
                time.sleep(METAS_PAUSE_S)
                _, faults = self._file.metas()
        with self._pinned() as meta:
            if meta is None:
                return {"faults": _plain(faults), "entries": 0, "pages": 0, "free": 0}, b""
            found = walk(self._file, meta)
        return {
            "faults": _plain([*faults, *found.faults]),
            "entries": found.entries,
            "pages": found.pages,
            "free": found.free,
            "opens": self._environment is not None,
        }, b""

    def blocks(self, start: str, end: str, most: int) -> Answer:
        """Hash blocks with ``start`` <= id < ``end``, about ``most`` bytes; ``next`` is where to go on.

        A page that is out of order is told by a walk; here its rows count to where they stand.
        """
        begin, behind = bytes.fromhex(start), bytes.fromhex(end)
        faults: list[Fault] = []
        bad: list[dict[str, Any]] = []
        good: list[bytes] = []
        done = 0
        follow: bytes | None = None
        with self._pinned() as meta:
            if meta is not None:
                for leaf in self._file.leaves(meta.main, begin, faults=faults):
                    if leaf.low >= behind:
                        break
                    for entry in leaf.entries:
                        if not _within(leaf, entry.key, begin, behind):
                            continue
                        done += entry.size
                        wrong = self._check(entry, good)
                        if wrong is not None:
                            bad.append({"block": entry.key.hex(), "what": wrong})
                    if done >= most and leaf.high is not None and leaf.high < behind:
                        follow = leaf.high
                        break
        facts = {"next": follow.hex() if follow is not None else None, "read": done}
        return {**facts, "bad": bad, "faults": _plain(faults)}, b"".join(good)

    def _check(self, entry: Entry, good: list[bytes]) -> str | None:
        """Return what is wrong with a block; notes in ``good`` what is whole."""
        if len(entry.key) != ID_BYTES:
            return "its key is no block id"
        try:
            if entry.size > BLOCK_MAX_BYTES:
                return "it is longer than any block"
            data = self._file.value(entry)
        except PageDamaged as error:
            return f"page {error.facts['page']} {error.message}"
        if blake3(data).digest() != entry.key:
            return "its bytes do not match its id"
        try:
            head = parse_header(data)
        except BlockCorrupt as error:
            return error.message
        good.append(
            SEEN.pack(
                entry.key,
                head.pool,
                head.created_ms,
                head.length,
                head.kind,
                head.flags,
                head.hash_kind,
            )
        )
        return None

    def get(self, ids: list[str]) -> Answer:
        """Return blocks that match their ids, one after another; their lengths, None without."""
        sizes: list[int | None] = []
        found: list[bytes] = []
        with self._pinned() as meta:
            for text in ids:
                data = self._block(meta, bytes.fromhex(text)) if meta is not None else None
                sizes.append(None if data is None else len(data))
                if data is not None:
                    found.append(data)
        return {"sizes": sizes}, b"".join(found)

    def _block(self, meta: Meta, block: bytes) -> bytes | None:
        try:
            entry = self._file.lookup(meta.main, block)
            if entry is None or not HEADER_SIZE <= entry.size <= BLOCK_MAX_BYTES:
                return None
            data = self._file.value(entry)
        except PageDamaged:
            return None
        return data if blake3(data).digest() == block else None

    def rows(self, start: str, end: str, most: int) -> Answer:
        """Return rows with ``start`` <= key < ``end``, about ``most`` bytes, as they lie there."""
        begin, behind = bytes.fromhex(start), bytes.fromhex(end)
        faults: list[Fault] = []
        bad: list[dict[str, Any]] = []
        found: list[bytes] = []
        done = 0
        follow: bytes | None = None
        with self._pinned() as meta:
            if meta is not None:
                for leaf in self._file.leaves(meta.main, begin, faults=faults):
                    if leaf.low >= behind:
                        break
                    for entry in leaf.entries:
                        if not _within(leaf, entry.key, begin, behind):
                            continue
                        try:
                            value = self._file.value(entry)
                        except PageDamaged as error:
                            what = f"page {error.facts['page']} {error.message}"
                            bad.append({"key": entry.key.hex(), "what": what})
                            continue
                        done += len(entry.key) + len(value)
                        found += (ROW.pack(len(entry.key), len(value)), entry.key, value)
                    if done >= most and leaf.high is not None and leaf.high < behind:
                        follow = leaf.high
                        break
            revision = meta.transaction if meta is not None else 0
        facts = {"next": follow.hex() if follow is not None else None, "revision": revision}
        return {**facts, "bad": bad, "faults": _plain(faults)}, b"".join(found)

    def salvage(self, page: int, most: int) -> Answer:
        """Return what looks like a block in pages from ``page`` on, in whatever state the trees are.

        Each comes as (BLAKE3 of its bytes, page, where in it, length): whether it is the block that it was, only one
        who knows its id can tell.
        """
        found: list[tuple[str, int, int, int]] = []
        end = self._file.pages
        read = 0
        while page < end and read < most:
            step = 1
            data = self._file.read(page, PAGE_BYTES)
            read += PAGE_BYTES
            _, _, flags, _ = _OVERFLOW_HEADER.unpack_from(data)
            if flags == OVERFLOW:
                length = _length_at(data, HEADER_BYTES)
                whole = self._whole(page, HEADER_BYTES, length)
                if whole is not None:
                    read += length
                    found.append((blake3(whole).hexdigest(), page, HEADER_BYTES, length))
                    step = -(-(HEADER_BYTES + length) // PAGE_BYTES)
            else:
                at = data.find(MAGIC)
                while at >= 0:
                    length = _length_at(data, at)
                    if HEADER_SIZE <= length <= PAGE_BYTES - at:
                        block = data[at : at + length]
                        found.append((blake3(block).hexdigest(), page, at, length))
                    at = data.find(MAGIC, at + 1)
            page += step
        return {"next": page if page < end else None, "found": found, "read": read}, b""

    def _whole(self, page: int, skip: int, length: int) -> bytes | None:
        """Return as many bytes as a block's header claims to have; None when it cannot."""
        if not HEADER_SIZE <= length <= BLOCK_MAX_BYTES:
            return None
        try:
            return self._file.read(page, length, skip)
        except PageDamaged:
            return None

    def at(self, page: int, skip: int, length: int) -> Answer:
        """Return bytes from somewhere in a page on."""
        data = self._whole(page, skip, length)
        return {"found": data is not None}, data or b""


def _length_at(data: bytes, at: int) -> int:
    """Return the length that a block's header claims; 0 when there is none."""
    if data[at : at + len(MAGIC)] != MAGIC:
        return 0
    return int.from_bytes(data[at + 8 : at + 16], "little")


def _within(leaf: Leaf, key: bytes, begin: bytes, behind: bytes) -> bool:
    """Say whether a row is of a range: by its key, or by its page's where the key is out of place."""
    if key < leaf.low or (leaf.high is not None and key >= leaf.high):
        key = leaf.low
    return begin <= key < behind


def _plain(faults: list[Fault]) -> list[dict[str, Any]]:
    return [{"page": fault.page, "what": fault.what} for fault in faults[:FAULTS_MAX]]


def serve(folder: Path, requests: IO[bytes], answers: IO[bytes], *, closed: bool = False) -> None:
    """Answer requests until there are no more; ``closed``: without LMDB, so nobody may write meanwhile."""
    scrubber = Scrubber(folder, closed=closed)
    jobs: dict[str, Callable[..., Answer]] = {
        "walk": scrubber.walk,
        "blocks": scrubber.blocks,
        "get": scrubber.get,
        "rows": scrubber.rows,
        "salvage": scrubber.salvage,
        "at": scrubber.at,
    }
    for line in requests:
        words: dict[str, Any] = json.loads(line)
        facts, data = jobs[words.pop("job")](**words)
        answers.write(json.dumps({**facts, "bytes": len(data)}).encode() + b"\n")
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer, closed="closed" in sys.argv[2:])
