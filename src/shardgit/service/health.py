"""Whether a store can be read and written: its journal, its disks, its shards."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from shardgit.blocks.routed import RoutedStore
from shardgit.errors import ShardgitError
from shardgit.journal.held import held_shards
from shardgit.journal.mode import UNSAID, mode_of
from shardgit.journal.records import STORE_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.service.store import Store

PROBE_EVERY_S = 10.0  # a write with its fsync
PROBE_BYTES = 4_096
LEAST_FREE_BYTES = 256 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)  # which is a warning: reads go on


class Health:
    """Looks at a store from time to time; blocks, so it runs on a worker.

    ``problems`` are what keeps it from serving, ``warnings`` what only writers feel, in words by what they are about.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._probed = float("-inf")
        self._probe_words = ""
        self.problems: dict[str, str] = {}
        self.warnings: dict[str, str] = {}

    def look(self) -> None:
        """Look at all of it, once."""
        problems, warnings = dict[str, str](), dict[str, str]()
        try:
            with self._store.journal.snapshot() as snapshot:
                if snapshot.get(STORE_KEY) is None:
                    problems["journal"] = "it has no store"
                mode, held = mode_of(snapshot), held_shards(snapshot)
            if mode is not None:
                warnings["store"] = f"it is read-only: {mode.why or UNSAID}"
            for one in held:
                state = "read-only" if one.closed else "being made read-only"
                warnings[f"shard {one.id}"] = f"it is {state}: {one.why or UNSAID}"
        except (ShardgitError, OSError) as error:
            problems["journal"] = str(error)
        if getattr(self._store.journal, "is_away", False):
            warnings["etcd"] = "it does not answer: reads go on, pushes fail"
        self._look_at_disk(problems, warnings)
        try:
            self._look_at_shards(problems, warnings)
        except (ShardgitError, OSError) as error:
            problems["shards"] = str(error)
        self.problems, self.warnings = problems, warnings

    def _look_at_disk(self, problems: dict[str, str], warnings: dict[str, str]) -> None:
        now = time.monotonic()
        if now - self._probed >= PROBE_EVERY_S:
            self._probed = now
            self._probe_words = _probe(self._store.scratch)
        if self._probe_words:
            problems["disk"] = self._probe_words
        try:
            _look_at_room("disk", self._store.scratch, warnings)
        except OSError as error:
            problems["disk"] = error.strerror or str(error)

    def _look_at_shards(self, problems: dict[str, str], warnings: dict[str, str]) -> None:
        blocks = self._store.blocks
        if not isinstance(blocks, RoutedStore):
            return  # a node's own copies: what they lack comes from elsewhere
        for number, shard in blocks.shards.items():
            name = f"shard {number}"
            told = warnings if blocks.ring.replicas > 1 else problems
            try:
                if not shard.folder.is_dir():
                    told[name] = "its folder is not there"
                else:
                    _look_at_room(name, shard.folder, warnings)
            except OSError as error:
                told[name] = error.strerror or str(error)


def _probe(folder: Path) -> str:
    """Write a little and make it durable; returns what went wrong."""
    path = folder / f"health-{os.getpid()}"
    try:
        with path.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except OSError as error:
        return "" if error.errno in FULL else error.strerror or str(error)
    return ""


def _look_at_room(name: str, folder: Path, warnings: dict[str, str]) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < LEAST_FREE_BYTES:
        warnings[name] = f"{free >> 20} MiB are free: pushes may fail"
