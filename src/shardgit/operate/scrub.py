"""Reading the files of a store that may be damaged, in a process of its own for each.

See operate/scrubber.py for what runs there. A process that dies is started again at the next request.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from shardgit.blocks.block import BlockKind
from shardgit.errors import DataLoss
from shardgit.journal.rows import decode_row
from shardgit.oid import BlockId, HashKind, PoolId
from shardgit.operate.scrubber import END, ROW, SEEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.journal.interface import Row

BATCH_BYTES = 8 << 20  # read between two looks at the throttle
GET_MAX = 64


class ScrubberDied(DataLoss):
    """The process that read a database file ended before it answered."""


@dataclass(frozen=True, slots=True)
class SeenBlock:
    """A block that is whole, as its header tells it."""

    id: BlockId
    pool: PoolId
    created_ms: int
    length: int
    kind: BlockKind
    flags: int
    hash_kind: HashKind


@dataclass(frozen=True, slots=True)
class PageFault:
    """A page of the file that is off, and in what."""

    page: int
    what: str


@dataclass(frozen=True, slots=True)
class WalkedFile:
    """What a walk over all pages of a file found; ``opens`` says whether LMDB takes the file at all."""

    faults: tuple[PageFault, ...]
    entries: int
    pages: int
    free: int
    opens: bool


@dataclass(frozen=True, slots=True)
class ScrubbedBlocks:
    """Blocks of a shard that were read and hashed: those whole, and (id, what is wrong) of the others.

    ``next`` is where the rest begins, None at the end.
    """

    whole: tuple[SeenBlock, ...]
    bad: tuple[tuple[bytes, str], ...]
    faults: tuple[PageFault, ...]
    read_bytes: int
    next: bytes | None


@dataclass(frozen=True, slots=True)
class ScrubbedRows:
    """Rows of the journal that are whole, and (key, what is wrong) of the others."""

    whole: tuple[Row, ...]
    bad: tuple[tuple[bytes, str], ...]
    faults: tuple[PageFault, ...]


class Scrub:
    """Asks about one environment. A context manager; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = False  # whether the process keeps LMDB away from the file
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Scrub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            process.wait()

    # ---- questions ----

    def walk(self) -> WalkedFile:
        """Walk all pages of the file."""
        facts, _ = self._ask("walk")
        opens = bool(facts.get("opens"))
        return WalkedFile(_faults(facts), facts["entries"], facts["pages"], facts["free"], opens)

    def blocks(self, start: bytes, end: bytes = END, *, most: int = BATCH_BYTES) -> ScrubbedBlocks:
        """Read and hash blocks with ``start`` <= id < ``end``, as many as make ``most`` bytes."""
        facts, data = self._ask("blocks", start=start.hex(), end=end.hex(), most=most)
        whole = []
        for block, pool, created, length, kind, flags, hash_kind in SEEN.iter_unpack(data):
            whole.append(
                SeenBlock(
                    BlockId(block),
                    PoolId(pool),
                    created,
                    length,
                    BlockKind(kind),
                    flags,
                    HashKind(hash_kind),
                )
            )
        bad = tuple((bytes.fromhex(one["block"]), str(one["what"])) for one in facts["bad"])
        return ScrubbedBlocks(tuple(whole), bad, _faults(facts), facts["read"], _next(facts))

    def get_many(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """Return copies of the blocks that are here whole, None for the others."""
        found: list[bytes | None] = []
        for at in range(0, len(ids), GET_MAX):
            facts, data = self._ask("get", ids=[block.hex() for block in ids[at : at + GET_MAX]])
            start = 0
            for size in facts["sizes"]:
                found.append(None if size is None else data[start : start + size])
                start += size or 0
        return found

    def rows(self, low: bytes = b"", high: bytes = END) -> Iterator[ScrubbedRows]:
        """Return the rows of a journal with low <= key < high by rising key, some at a time."""
        start: bytes | None = low
        while start is not None:
            words = {"start": start.hex(), "end": high.hex(), "most": BATCH_BYTES}
            facts, data = self._ask("rows", **words)
            whole: list[Row] = []
            bad = [(bytes.fromhex(one["key"]), str(one["what"])) for one in facts["bad"]]
            at = 0
            while at < len(data):
                key_bytes, value_bytes = ROW.unpack_from(data, at)
                at += ROW.size
                key = data[at : at + key_bytes]
                at += key_bytes + value_bytes
                try:
                    whole.append(decode_row(key, data[at - value_bytes : at]))
                except DataLoss as error:
                    bad.append((key, error.message))
            yield ScrubbedRows(tuple(whole), tuple(bad), _faults(facts))
            start = _next(facts)

    def salvage(self) -> Iterator[tuple[BlockId, bytes]]:
        """Return what looks like a block anywhere in the file, by the id that its bytes give."""
        page: int | None = 2
        while page is not None:
            facts, _ = self._ask("salvage", page=page, most=BATCH_BYTES)
            for block, first, skip, length in facts["found"]:
                there, data = self._ask("at", page=first, skip=skip, length=length)
                if there["found"]:
                    yield BlockId(bytes.fromhex(block)), data
            page = facts["next"]

    # ---- the process ----

    def _ask(self, job: str, **words: Any) -> tuple[dict[str, Any], bytes]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"job": job, **words}).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            facts: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
            data = _exactly(process.stdout, facts["bytes"]) if facts else b""
        except BrokenPipeError:
            facts, data = {}, b""
        if not facts or len(data) != facts["bytes"]:
            self.close()
            raise ScrubberDied(
                "process that reads a database file died",
                path=str(self.folder),
                how=_how(process.returncode),
            )
        return facts, data

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "shardgit.operate.scrubber", str(self.folder)),
                    *(["closed"] if self.closed else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    return pipe.read(count) if count else b""


def _faults(facts: dict[str, Any]) -> tuple[PageFault, ...]:
    return tuple(PageFault(one["page"], str(one["what"])) for one in facts["faults"])


def _next(facts: dict[str, Any]) -> bytes | None:
    return bytes.fromhex(facts["next"]) if facts["next"] is not None else None


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
