"""What older runs have at the paths of younger ones: found in bounded time, whatever trees were pushed."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from gcing import MAIN, ME
from reference.gits import git

from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType, object_id
from shardgit.oid import HashKind, ObjectId
from shardgit.operate import bases
from shardgit.operate import compact as compacting
from shardgit.operate.bases import older_versions
from shardgit.operate.compact import compact
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.verify import verify_repository
from shardgit.pack.builder import PackBuilder
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.importing import import_repository
from shardgit.service.look import Look
from shardgit.service.push import Push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store

SMALL = Limits(
    recents_settle=10_000,
    recents_max=10_000,
    recent_embedded_max_bytes=0,
    block_target_bytes=300,
    block_max_bytes=60_000,
)


class History:
    """Commits made by hand, a push and a run each."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pack = PackBuilder(HashKind.SHA1)
        self.tip: ObjectId | None = None

    def add(self, kind: ObjectType, data: bytes) -> ObjectId:
        self.pack.add(kind, data)
        return object_id(kind, [data], len(data), HashKind.SHA1)

    def tree(self, *entries: tuple[bytes, ObjectId]) -> ObjectId:
        return self.add(ObjectType.TREE, b"".join(head + b"\0" + oid for head, oid in entries))

    def push(self, root: ObjectId) -> None:
        parent = b"parent %s\n" % self.tip.hex().encode() if self.tip else b""
        who = b"me <me@x> 1700000000 +0000"
        lines = (root.hex().encode(), parent, who, who)
        oid = self.add(ObjectType.COMMIT, b"tree %s\n%sauthor %s\ncommitter %s\n\n" % lines)
        request = PushRequest((Command(MAIN, self.tip, oid),))
        made = Push(self.store, "demo", request, principal=ME)
        made.take(self.pack.finish())
        made.check()
        assert made.commit().results[0].error is None
        self.tip, self.pack = oid, PackBuilder(HashKind.SHA1)
        with self.store.journal.snapshot() as snapshot:
            pool = self.store.repository(snapshot, "demo").pool
        assert settle(self.store, pool)

    @property
    def view(self) -> PoolView:
        view = Look(self.store, "demo").view
        assert view is not None
        return view


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=SMALL, threads=2) as store:
        yield History(store)


def test_a_tree_that_stands_in_very_many_places_is_looked_into_once(history: History) -> None:
    history.store.create_repository("demo", HashKind.SHA1)
    depth = 14  # 10 ** 14 paths
    for text in (b"one", b"two"):
        at = history.add(ObjectType.BLOB, text)
        for level in range(depth):
            mode = b"40000" if level else b"100644"
            at = history.tree(*((b"%s d%d" % (mode, number), at) for number in range(10)))
        history.push(at)
    view = history.view
    assert len(view.runs) == 2
    begun = time.process_time()
    assert len(older_versions(view, view.runs[1:])) == depth + 1
    assert time.process_time() - begun < 5


def test_no_more_of_trees_is_read_than_there_is_room_for(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.store.create_repository("demo", HashKind.SHA1)
    # Each of many small folders stands where one large folder stood.
    blob = history.add(ObjectType.BLOB, b"")
    large = history.tree(*((b"100644 f%05d" % number, blob) for number in range(1_000)))
    history.push(history.tree(*((b"40000 d%03d" % number, large) for number in range(200))))
    small = []
    for number in range(200):
        other = history.add(ObjectType.BLOB, b"%d" % number)
        small.append((b"40000 d%03d" % number, history.tree((b"100644 f00001", other))))
    history.push(history.tree(*small))
    view = history.view
    assert len(older_versions(view, view.runs[1:])) == 1 + 200 + 200
    monkeypatch.setattr(bases, "FOLDERS_BYTES", 64 * 35_000)
    assert len(older_versions(view, view.runs[1:])) == 1 + 200 + 64
    monkeypatch.setattr(bases, "OLDER_MAX", 100)
    assert len(older_versions(view, view.runs[1:])) == 100


@pytest.mark.interop
def test_a_tree_that_only_an_import_takes_is_passed_over(history: History, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    git(tmp_path, "init", "-q", "-b", "main", str(origin))
    (origin / "file").write_text("one")
    git(origin, "add", "file")
    blob = git(origin, "rev-parse", ":file").decode().strip()
    odd = b"00100644 file\0" + bytes.fromhex(blob)
    (tmp_path / "tree").write_bytes(odd)
    words = ("hash-object", "-w", "-t", "tree", "--literally", str(tmp_path / "tree"))
    tree = git(origin, *words).decode().strip()
    tip = git(origin, "commit-tree", tree, "-m", "odd").decode().strip()
    git(origin, "update-ref", "refs/heads/main", tip)
    import_repository(history.store, "demo", str(origin))
    history.tip = ObjectId(bytes.fromhex(tip))
    history.push(history.tree((b"100644 file", history.add(ObjectType.BLOB, b"two"))))
    view = history.view
    assert len(older_versions(view, view.runs[1:])) == 1  # the roots, and nothing in them


def test_a_file_that_there_is_no_room_for_leaves_the_others_their_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "WANTED_BYTES", 500)
    rand = random.Random(3)
    limits = replace(SMALL, thin_bases_max_bytes=200_000, block_max_bytes=1 << 20)
    small = rand.randbytes(6_000)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=limits, threads=2) as store:
        store.create_repository("demo", HashKind.SHA1)
        history = History(store)
        for size in (300_000, 100, 200):
            small += b"more"
            large = history.add(ObjectType.BLOB, rand.randbytes(size))
            files = (b"100644 large", large), (b"100644 small", history.add(ObjectType.BLOB, small))
            history.push(history.tree(*files))
        with store.journal.snapshot() as snapshot:
            pool = store.repository(snapshot, "demo").pool
        assert compact(store, pool, control=silent_control()).runs_after == 2
        view = history.view
        young = [one for one in view.segments if one.base >= view.runs[1].start]
        size = sum(one.entry.entry_bytes for one in young if one.entry.type == ObjectType.BLOB)
        assert size < 1_000  # 300 of the large file, and deltas
        assert not verify_repository(store, "demo").bad
