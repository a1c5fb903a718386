"""Refs and forks when the process dies, or the disk is full, between blocks and commit."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from shardgit.errors import RepositoryMissing, StorageFull
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.refs.ref import Ref
from shardgit.refs.update import ANY, RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.service.forks import fork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardgit.oid import BlockId
    from shardgit.service.store import Store

MANY = 3_000
DYING = """
    import os, signal, sys
    from pathlib import Path
    from shardgit.node import open_store
    from shardgit.oid import ObjectId
    from shardgit.refs.update import ANY, RefUpdate
    from shardgit.refs.writer import RefWriter
    from shardgit.service.forks import fork

    folder, job, moment = sys.argv[1:]
    with open_store(Path(folder)) as store:
        with store.journal.snapshot() as snapshot:
            record = store.repository(snapshot, "a")
        commit = store.journal.commit_sync

        def dying(conditions, operations):
            if moment == "after":
                commit(conditions, operations)
            os.kill(os.getpid(), signal.SIGKILL)

        store.journal.commit_sync = dying
        if job == "update":
            new = ObjectId((9).to_bytes(20, "big"))
            writer = RefWriter(store.refs, store.journal, store.workers)
            writer.update_sync(record, [RefUpdate(b"refs/n/%d" % n, ANY, new) for n in range(3_000)])
        else:
            fork(store, "a", "b")
"""


def oid(n: int) -> ObjectId:
    return ObjectId(n.to_bytes(20, "big"))


def look(store: Store, name: str) -> tuple[list[Ref], int, int]:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        entries = list(store.refs.changes_since(snapshot, record, 0))
        refs = list(store.refs.list(snapshot, record))
        head = store.refs.head(snapshot, record)
        assert head.count == len(refs)
        assert [entry.sequence for entry in entries] == list(range(1, head.sequence + 1))
        return refs, head.sequence, sum(len(list(entry.changes)) for entry in entries)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_store(tmp_path / "s", shards=2)
    with open_store(tmp_path / "s") as store:
        record = store.create_repository("a")
        writer = RefWriter(store.refs, store.journal, store.workers)
        updates = [RefUpdate(b"refs/n/%d" % n, None, oid(n + 1)) for n in range(MANY)]
        writer.update_sync(record, updates)
        writer.update_sync(record, [RefUpdate(b"refs/heads/main", None, oid(5))])
    return tmp_path / "s"


def die(folder: Path, job: str, moment: str) -> None:
    script = textwrap.dedent(DYING)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), job, moment],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_process_killed_between_blocks_and_commit_leaves_refs_as_they_were(folder: Path) -> None:
    with open_store(folder) as store:
        before = look(store, "a")
        blocks = sum(1 for _ in store.blocks.scan_sync())
    for job in ("update", "fork"):
        die(folder, job, "before")
    with open_store(folder) as store:
        assert look(store, "a") == before
        assert sum(1 for _ in store.blocks.scan_sync()) > blocks  # what nothing names
        with store.journal.snapshot() as snapshot, pytest.raises(RepositoryMissing):
            store.repository(snapshot, "b")
        fork(store, "a", "b")
        assert look(store, "b")[0] == before[0]


def test_a_process_killed_behind_the_commit_leaves_all_of_the_change(folder: Path) -> None:
    with open_store(folder) as store:
        refs, sequence, changes = look(store, "a")
    die(folder, "update", "after")
    die(folder, "fork", "after")
    with open_store(folder) as store:
        expected = [
            Ref(ref.name, oid(9)) if ref.name.startswith(b"refs/n/") else ref for ref in refs
        ]
        # refs/n/8 named that object before: it did not change
        assert look(store, "a") == (expected, sequence + 1, changes + MANY - 1)
        assert look(store, "b")[:2] == (expected, 1)


def test_blocks_that_find_no_room_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(folder) as store:
        before, revision = look(store, "a"), store.journal.revision()
        with store.journal.snapshot() as snapshot:
            record = store.repository(snapshot, "a")

        def full(blocks: Sequence[tuple[BlockId, bytes]]) -> None:
            raise StorageFull("no room", blocks=len(blocks))

        with monkeypatch.context() as patch:
            patch.setattr(store.blocks, "put_many_sync", full)
            writer = RefWriter(store.refs, store.journal, store.workers)
            updates = [RefUpdate(b"refs/n/%d" % n, ANY, oid(9)) for n in range(MANY)]
            with pytest.raises(StorageFull):
                writer.update_sync(record, updates)
            with pytest.raises(StorageFull):
                fork(store, "a", "b")
        assert store.journal.revision() == revision
        assert look(store, "a") == before
        fork(store, "a", "b")
