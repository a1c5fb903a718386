"""Two nodes, one journal on etcd: git pushes to one and clones from the other."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import pytest
from listening import listening
from served import clean_environment, git, small_repository

from shardgit.blocks.layout import open_layout
from shardgit.blocks.routed import RoutedStore
from shardgit.blocks.shard import ShardStore
from shardgit.http.app import GitHttp
from shardgit.journal.bundles import FileBundles
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import END, Put
from shardgit.limits import DEFAULT
from shardgit.node import JournalRings, create_store, open_store
from shardgit.operate.settle import settle
from shardgit.refs.table import RefTable
from shardgit.service.repositories import Repositories
from shardgit.service.store import Store
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from etcds import Etcds

pytestmark = pytest.mark.cluster


class Shared(ShardStore):
    """A shard of both nodes, in the place of an object store: no node closes it."""

    def close(self) -> None:
        """Stay open."""


class OffLoop(FileBundles):
    """Bundles that may take their time: no event loop waits for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads = 0

    def read(self, bundle: bytes, offset: int, length: int) -> bytes | None:
        self.reads += 1
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return super().read(bundle, offset, length)

    def put(self, bundle: bytes, data: bytes) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        super().put(bundle, data)


class Nodes:
    """Makes nodes of one store."""

    def __init__(self, folder: Path, etcds: Etcds, opened: ExitStack) -> None:
        self.folder, self.etcds, self.opened = folder, etcds, opened
        self.bundles = OffLoop(folder / "bundles")
        self.prefix = b"nodes/" + os.urandom(8).hex().encode() + b"/"
        create_store(folder / "data")
        with open_store(folder / "data") as store, store.journal.snapshot() as snapshot:
            self.rows = list(snapshot.range(b"\0", END))
        self.workers = Workers(2)
        opened.callback(self.workers.close)
        place = open_layout(folder / "data").shards[0]
        self.shard = Shared(place.path, self.workers)
        opened.callback(ShardStore.close, self.shard)

    def open(self, name: str) -> Store:
        own = self.folder / name
        (own / "tmp").mkdir(parents=True)
        journal = EtcdJournal(own, self.etcds.access(), self.bundles, prefix=self.prefix)
        with journal.snapshot() as snapshot:
            is_new = not snapshot.revision
        if is_new:
            journal.commit_sync([], [Put(row.key, row.value) for row in self.rows])
        workers = Workers(2)
        rings = JournalRings(journal, self.folder / "data", workers)
        revision, ring = rings.now()
        shards: dict[int, ShardStore] = {ring.shards[0].number: self.shard}
        blocks = RoutedStore(ring, shards, workers, source=rings, revision=revision)
        store = Store(
            journal=journal,
            blocks=blocks,
            refs=RefTable(blocks),
            workers=workers,
            limits=DEFAULT,
            scratch=own / "tmp",
        )
        self.opened.callback(store.close)
        return store


@pytest.fixture
def nodes(tmp_path: Path, etcds: Etcds) -> Iterator[Nodes]:
    with ExitStack() as opened:
        yield Nodes(tmp_path, etcds, opened)


async def run(folder: Path, *words: str) -> str:
    """Run git beside the loop that serves it."""
    process = await asyncio.create_subprocess_exec(
        *("git", *words),
        cwd=folder,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_a_push_to_one_node_is_in_a_clone_of_the_other_at_once(
    nodes: Nodes, tmp_path: Path
) -> None:
    stores = [nodes.open("a"), nodes.open("b")]
    Repositories(stores[0]).create("demo")
    work = small_repository(tmp_path / "work")
    rand = random.Random(1)
    async with AsyncExitStack() as serving:
        urls = [
            await serving.enter_async_context(listening(GitHttp(store, version="1")))
            for store in stores
        ]
        for turn in range(6):
            (work / f"f{turn}").write_bytes(rand.randbytes(20_000))
            git(work, "add", "-A")
            git(work, "commit", "-qm", f"turn {turn}")
            await run(work, "push", "-q", f"{urls[turn % 2]}/demo.git", "main:main")
            other = f"{urls[(turn + 1) % 2]}/demo.git"
            tip = (await run(work, "ls-remote", other, "main")).split()[0]
            assert tip == git(work, "rev-parse", "HEAD")
        for number, url in enumerate(urls):
            await run(tmp_path, "clone", "-q", f"{url}/demo.git", f"clone{number}")
            await run(tmp_path / f"clone{number}", "fsck", "--strict")
    assert nodes.bundles.reads


async def test_pushes_to_both_nodes_side_by_side_and_settles_between_them(
    nodes: Nodes, tmp_path: Path
) -> None:
    stores = [nodes.open("a"), nodes.open("b")]
    Repositories(stores[0]).create("demo")
    work = small_repository(tmp_path / "work")
    async with AsyncExitStack() as serving:
        urls = [
            await serving.enter_async_context(listening(GitHttp(store, version="1")))
            for store in stores
        ]
        await run(work, "push", "-q", f"{urls[0]}/demo.git", "main:main", "v1")
        for number in range(4):
            git(work, "checkout", "-qB", f"b{number}", "main")
            for change in range(3):
                (work / f"f{number}").write_text(f"{number} {change}\n" * 500)
                git(work, "add", "-A")
                git(work, "commit", "-qm", f"{number} {change}")

        async def pushes(number: int) -> None:
            for change in (2, 1, 0):
                target = f"{urls[(number + change) % 2]}/demo.git"
                await run(work, "push", "-q", target, f"b{number}~{change}:refs/heads/b{number}")

        async def settles() -> None:
            for turn in range(3):
                store = stores[turn % 2]
                await store.journal.fresh()
                with store.journal.snapshot() as snapshot:
                    pool = store.repository(snapshot, "demo").pool
                await asyncio.to_thread(settle, store, pool)

        await asyncio.gather(settles(), *(pushes(number) for number in range(4)))
        shown = [await run(work, "ls-remote", f"{url}/demo.git") for url in urls]
        assert shown[0] == shown[1]
        for number in range(4):
            assert f"{git(work, 'rev-parse', f'b{number}')}\trefs/heads/b{number}\n" in shown[0]
        for number, url in enumerate(urls):
            await run(tmp_path, "clone", "-q", "--mirror", f"{url}/demo.git", f"clone{number}")
            await run(tmp_path / f"clone{number}", "fsck", "--strict")
