"""Settles that meet damage or another process: pushes go on, nothing is lost, and who must wait is told."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from moved import Moved
from property.test_pushes import git, pack_of, push, verify
from reference.gits import make_history

from shardgit.errors import Unavailable
from shardgit.filelock import holding
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.operate.settle import settle
from shardgit.service.look import Look
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.oid import PoolId
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop


def pool_of(store: Store) -> PoolId:
    with store.journal.snapshot() as snapshot:
        return store.repository(snapshot, "demo").pool


class Pusher:
    """Pushes one commit after another; each adds a line to a large file, or one to another."""

    def __init__(self, store: Store, origin: Path) -> None:
        self.store, self.origin = store, origin
        self.old: str | None = None

    def push(self, file: str = "large") -> list[str | None]:
        path = self.origin / file
        path.write_text(f"{path.read_text() if path.exists() else ''}\n{time.monotonic_ns()}")
        git(self.origin, "add", "-A")
        git(self.origin, "commit", "-qm", file)
        return self.send()

    def send(self) -> list[str | None]:
        new = git(self.origin, "rev-parse", "HEAD")
        revisions = [new] if self.old is None else [new, f"^{self.old}"]
        pack = pack_of(self.origin, *revisions)
        _, done = push(self.store, "demo", b"refs/heads/main", self.old, new, pack)
        errors = [one.error for one in done.results]
        if errors == [None]:
            self.old = new
        return errors


def test_what_a_damaged_block_keeps_from_merging_is_set_aside(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    (origin / "large").write_text("\n".join(str(n) for n in range(4_000)))
    create_store(tmp_path / "data", shards=2)
    limits = Limits(
        recents_settle=10_000,
        recents_max=10_000,
        block_target_bytes=6_000,
        block_max_bytes=60_000,
    )
    with open_store(tmp_path / "data", limits=limits) as store:
        store.create_repository("demo")
        pusher = Pusher(store, origin)
        assert pusher.push() == [None]
        assert settle(store, pool_of(store))
        base = ObjectId(bytes.fromhex(git(origin, "rev-parse", "HEAD:large")))
        look = Look(store, "demo")
        assert look.view is not None
        at = look.view.positions([base])[0]
        (block,) = [
            segment.entry.ref.id
            for segment in look.view.segments
            if at in range(segment.base, segment.base + segment.entry.objects)
        ]
        for file in ("large", "a", "b"):
            assert pusher.push(file) == [None]
        (found,) = store.blocks.get_many_sync([block])
        assert found is not None
        store.blocks.delete_many_sync([block])
        for file in ("c", "d"):
            assert pusher.push(file) == [None]
        moved = Moved()
        assert settle(store, pool_of(store))
        assert moved("shardgit_settles_total") == {"set_aside": 1}
        look = Look(store, "demo")
        assert look.state.pool.view.recents == ()
        assert pusher.push("e") == [None]
        assert settle(store, pool_of(store))
        # ... and once the block is there again, nothing is missing.
        store.blocks.put_many_sync([(block, found)])
    with open_store(tmp_path / "data", limits=limits) as store:
        pusher.store = store
        assert pusher.push("large") == [None]
        assert settle(store, pool_of(store))
        verify(store, "demo", origin, git(origin, "rev-parse", "HEAD"))


def test_pushes_wait_for_the_settle_of_another_process(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    create_store(tmp_path / "data")
    limits = Limits(recents_settle=10_000, recents_max=3, settle_wait_max_s=0.4)
    with open_store(tmp_path / "data", limits=limits) as store:
        store.create_repository("demo")
        pusher = Pusher(store, origin)
        lock = store.scratch / f"settle-{pool_of(store).hex()[:8]}.lock"
        for _ in range(3):
            assert pusher.push() == [None]
        with holding(lock) as held:
            assert held
            begun = time.monotonic()
            assert pusher.push() == [None]  # it has waited for long enough
            assert time.monotonic() - begun >= 0.4
            while len(Look(store, "demo").state.pool.view.recents) < 12:
                assert pusher.push() == [None]
            with pytest.raises(Unavailable, match="is being settled; try again"):
                pusher.push()
        assert pusher.send() == [None]
        assert len(Look(store, "demo").state.pool.view.recents) == 1


def test_a_push_goes_on_when_the_other_has_settled(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    create_store(tmp_path / "data")
    limits = Limits(recents_settle=10_000, recents_max=3, settle_wait_max_s=60)
    with open_store(tmp_path / "data", limits=limits) as store:
        store.create_repository("demo")
        pusher = Pusher(store, origin)
        lock = store.scratch / f"settle-{pool_of(store).hex()[:8]}.lock"
        for _ in range(3):
            assert pusher.push() == [None]
        taken = threading.Event()

        def hold() -> None:
            with holding(lock) as held:
                assert held
                taken.set()
                time.sleep(0.5)

        other = threading.Thread(target=hold)
        other.start()
        taken.wait()
        assert pusher.push() == [None]
        other.join()
        assert len(Look(store, "demo").state.pool.view.recents) == 1


def test_uploads_wait_as_pushes_do(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    limits = Limits(recents_settle=10_000, recents_max=3, settle_wait_max_s=0.2)
    with open_store(tmp_path / "data", limits=limits) as store:
        store.create_repository("demo")
        lock = store.scratch / f"settle-{pool_of(store).hex()[:8]}.lock"
        with holding(lock) as held:
            assert held
            for number in range(12):
                begun = time.monotonic()
                put_objects(store, "demo", [(3, b"%d" % number)])
                assert (time.monotonic() - begun >= 0.2) is (number >= 3)
            with pytest.raises(Unavailable, match="is being settled; try again"):
                put_objects(store, "demo", [(3, b"one more")])
        put_objects(store, "demo", [(3, b"one more")])
        assert len(Look(store, "demo").state.pool.view.recents) == 1
