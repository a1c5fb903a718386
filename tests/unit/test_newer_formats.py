"""What a newer shardgit wrote is refused by name, with both versions, and never taken for damage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from served import FREE, git, serving, shardgit, small_repository

from shardgit.backup.target import Target
from shardgit.cluster.members import NodeRecord
from shardgit.errors import Refused, StoreFormatUnknown
from shardgit.journal.cursor_records import HookCursor
from shardgit.journal.graft_records import decode_grafts
from shardgit.journal.held import decode_held
from shardgit.journal.interface import Put
from shardgit.journal.keys import KeyRecord
from shardgit.journal.lfs_records import (
    LfsOwned,
    LfsRecord,
    LockRecord,
    decode_lock_name,
    decode_sources,
)
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.mirror_records import MirrorRecord
from shardgit.journal.mode import ModeRecord
from shardgit.journal.operations import decode_operation
from shardgit.journal.pins import PinRecord
from shardgit.journal.quota_records import QuotaRecord, Usage
from shardgit.journal.records import (
    STORE_KEY,
    NameRecord,
    PoolRecord,
    RefsHead,
    RepositoryRecord,
    StoreRecord,
    decode_counter,
    name_key,
    repository_key,
)
from shardgit.journal.token_records import TokenRecord
from shardgit.journal.uploads import UploadRecord, UploadsHead
from shardgit.node import open_store
from shardgit.oid import HashKind, PoolId
from shardgit.pool.condemned import CondemnedRecord
from shardgit.refs.log import decode_entry
from shardgit.refs.ref import decode_row
from shardgit.ring.nodes import NodeRing
from shardgit.ring.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NEWER = 9
POOL = PoolId(bytes(16))
ROWS: list[Callable[[bytes], Any]] = [
    HookCursor.decode,
    MirrorRecord.decode,
    ModeRecord.decode,
    decode_held,
    QuotaRecord.decode,
    Usage.decode,
    lambda data: decode_grafts(data, HashKind.SHA1),
    KeyRecord.decode,
    LfsRecord.decode,
    LfsOwned.decode,
    decode_sources,
    lambda data: LockRecord.decode(bytes(16), data),
    decode_lock_name,
    lambda data: decode_operation(data, dict),
    PinRecord.decode,
    RepositoryRecord.decode,
    NameRecord.decode,
    lambda data: PoolRecord.decode(POOL, data),
    RefsHead.decode,
    StoreRecord.decode,
    decode_counter,
    TokenRecord.decode,
    QuotaRecord.decode,
    Usage.decode,
    UploadsHead.decode,
    UploadRecord.decode,
    CondemnedRecord.decode,
    lambda data: decode_entry(1, data, None),  # type: ignore[arg-type]
    lambda data: decode_row(b"refs/heads/main", data),
    NodeRecord.decode,
    MirrorRecord.decode,
    ModeRecord.decode,
]


@pytest.mark.parametrize("decode", ROWS, ids=range(len(ROWS)))
def test_a_row_of_a_newer_version_names_both_versions(decode: Callable[[bytes], Any]) -> None:
    for size in (1, 8, 40, 200):  # a newer row has whatever length it likes
        with pytest.raises(StoreFormatUnknown, match="was written by a newer shardgit") as told:
            decode(bytes([NEWER]) + bytes(size - 1))
        assert told.value.facts["version"] == NEWER
        assert 1 <= int(str(told.value.facts["known"])) < NEWER
        assert told.value.code == "FAILED_PRECONDITION"


@pytest.mark.parametrize("kind", [Ring, NodeRing])
def test_a_ring_of_a_newer_version_names_both_versions(kind: Any) -> None:
    from blake3 import blake3

    from shardgit.ring.nodes import MAGIC as NODES_MAGIC
    from shardgit.ring.ring import MAGIC

    magic = MAGIC if kind is Ring else NODES_MAGIC
    body = magic + NEWER.to_bytes(2, "little") + bytes(60)
    with pytest.raises(StoreFormatUnknown) as told:
        kind.decode(body + blake3(body).digest())
    assert told.value.facts["version"] == NEWER


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two repositories in ./data."""
    small_repository(tmp_path / "source")
    for words in (
        ("init", "data"),
        ("repo", "import", "one", "source"),
        ("repo", "import", "two", "source"),
    ):
        done = shardgit(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    return tmp_path / "data"


def every_way_in_says(store: Path, words: str) -> None:
    (store.parent / "kept").mkdir(exist_ok=True)
    for command in (
        ("serve", *FREE),
        ("repo", "list"),
        ("repo", "import", "three", "source"),
        ("shard", "stats"),
        ("shard", "verify"),
        ("backup", "create", "kept"),
    ):
        done = shardgit(*command, cwd=store.parent)
        assert done.returncode == 1, (command, done)
        assert words in done.stderr, (command, done.stderr)
        assert done.stderr.count("\n") == 1, (command, done.stderr)


def test_a_newer_store_is_refused_by_every_command(store: Path) -> None:
    text = (store / "format").read_text()
    (store / "format").write_text(text.replace("shardgit store 1\n", f"shardgit store {NEWER}\n"))
    every_way_in_says(store, f"store was written by a newer shardgit (version={NEWER}, known=1)")
    done = shardgit("serve", "--check", cwd=store.parent)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_newer_journal_is_refused_by_every_command(store: Path) -> None:
    with open_store(store) as opened, opened.journal.snapshot() as snapshot:
        row = snapshot.get(STORE_KEY)
        assert row is not None
        record = replace(StoreRecord.decode(row.value), format=NEWER)
    put(store, Put(STORE_KEY, record.encode()))
    every_way_in_says(store, f"journal was written by a newer shardgit (version={NEWER}, known=1)")


def put(store: Path, row: Put) -> None:
    journal = LmdbJournal(store / "journal")
    try:
        journal.commit_sync([], [row])
    finally:
        journal.close()


def test_a_newer_row_of_one_repository_leaves_the_others_served(store: Path) -> None:
    with open_store(store) as opened, opened.journal.snapshot() as snapshot:
        row = snapshot.get(name_key("two"))
        assert row is not None
        key = repository_key(NameRecord.decode(row.value).id)
        old = snapshot.get(key)
        assert old is not None
    with serving(store, "--workers", "1") as server:
        put(store, Put(key, bytes([NEWER]) + old.value[1:]))
        git(store.parent, "clone", "-q", server.url("one"), "copy")
        done = shardgit("repo", "show", "two", "--server", server.grpc, cwd=store.parent)
        said = f"repository record was written by a newer shardgit (known=2, version={NEWER})\n"
        assert done.stderr == f"shardgit: {said}"
        with pytest.raises(AssertionError, match="newer shardgit"):
            git(store.parent, "clone", "-q", server.url("two"), "other")
        put(store, Put(key, old.value))
        git(store.parent, "clone", "-q", server.url("two"), "other")


def test_newer_backups_are_refused_and_other_files_are_no_backups(tmp_path: Path) -> None:
    (tmp_path / "format").write_text(f"shardgit backup {NEWER}\n")
    with pytest.raises(StoreFormatUnknown) as told:
        Target.open(str(tmp_path))
    assert (told.value.facts["version"], told.value.facts["known"]) == (NEWER, 1)
    for text in ("shardgit backup x\n", "something else\n", "9\n", ""):
        (tmp_path / "format").write_text(text)
        with pytest.raises(Refused) as refused:
            Target.open(str(tmp_path))
        assert not isinstance(refused.value, StoreFormatUnknown)
