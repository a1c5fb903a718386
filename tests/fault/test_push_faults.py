"""Pushes and settles that are killed: what was acknowledged is there whole, what was not is not there in part."""

from __future__ import annotations

import pickle
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from reference.gits import extend_history, make_history
from reference.gits import git as run_git

from shardgit.errors import StorageFull
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.operate.settle import settle
from shardgit.operate.verify import verify_repository
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.look import Look
from shardgit.service.push import Push

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
PUSHES = 40
KILLS = 12
# Settles after every third push, and blocks that now and then go into the shards.
PUSHER = """
import pickle, sys
from pathlib import Path
from shardgit.limits import Limits
from shardgit.node import open_store
from shardgit.operate.settle import settle
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.look import Look
from shardgit.service.push import Push

pushes = pickle.loads(Path(sys.argv[2]).read_bytes())
with open_store(Path(sys.argv[1]), limits=Limits(recent_embedded_max_bytes=2_000)) as store:
    look = Look(store, "demo")
    with store.journal.snapshot() as snapshot:
        now = store.refs.get(snapshot, look.record, b"refs/heads/main")
    at = 0 if now is None else 1 + [new for _, new, _ in pushes].index(now.target)
    print("ready", flush=True)
    for number in range(at, len(pushes)):
        old, new, pack = pushes[number]
        push = Push(store, "demo", PushRequest((Command(b"refs/heads/main", old, new),)), principal=trusted("p"))
        push.take(pack)
        push.check()
        done = push.commit()
        assert done.results[0].error is None, done.results[0].error
        print(number, flush=True)
        if number % 3 == 2:
            settle(store, look.record.pool)
"""


def prepared(tmp_path: Path) -> list[tuple[ObjectId | None, ObjectId, bytes]]:
    """Make a history and the packs that push it, one commit after another."""
    origin = make_history(tmp_path / "origin", commits=12)
    rand = random.Random(5)
    out: list[tuple[ObjectId | None, ObjectId, bytes]] = []
    old: bytes | None = None
    for step in range(PUSHES):
        if step:
            extend_history(origin, commits=1, rand=rand, first=100 + step)
        new = run_git(origin, "rev-parse", "HEAD").strip()
        revisions = new + (b"\n^" + old if old else b"") + b"\n"
        pack = run_git(
            origin, "pack-objects", "--revs", "--stdout", "-q", "--thin", stdin=revisions
        )
        before = ObjectId(bytes.fromhex(old.decode())) if old else None
        out.append((before, ObjectId(bytes.fromhex(new.decode())), pack))
        old = new
    return out


def head(store: Store) -> ObjectId | None:
    with store.journal.snapshot() as snapshot:
        now = store.refs.get(snapshot, store.repository(snapshot, "demo"), b"refs/heads/main")
    return now.target if now else None


def test_killed_pushes_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    pushes = prepared(tmp_path)
    (tmp_path / "pushes").write_bytes(pickle.dumps(pushes))
    data = tmp_path / "data"
    create_store(data, shards=2)
    with open_store(data) as store:
        store.create_repository("demo")
    rand = random.Random(7)
    order = [new for _, new, _ in pushes]
    acknowledged = -1
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", PUSHER, str(data), str(tmp_path / "pushes")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rand.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split() if line]
        process.stdout.close()
        process.wait()
        acknowledged = max([acknowledged, *told])
        with open_store(data) as store:
            now = head(store)
            at = order.index(now) if now else -1
            # A push whose answer was cut off may have happened; none that was answered is missing.
            assert acknowledged <= at <= acknowledged + 1
            acknowledged = at
            if now:
                assert verify_repository(store, "demo").bad == ()
                reach = Look(store, "demo")
                assert reach.positions([now])[0] >= 0
    assert acknowledged > 0


def test_a_settle_that_dies_before_its_commit_leaves_the_recents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes = prepared(tmp_path)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        store.create_repository("demo")
        pool = Look(store, "demo").record.pool
        _push_all(store, pushes[:9])
        before = Look(store, "demo")
        assert len(before.state.pool.view.recents) == 9

        def dies(*_: object) -> int:
            raise StorageFull("no room")

        with monkeypatch.context() as patched:
            patched.setattr(store.journal, "commit_sync", dies)
            with pytest.raises(StorageFull):
                settle(store, pool)
        assert Look(store, "demo").state.pool == before.state.pool
        assert verify_repository(store, "demo").bad == ()
        assert settle(store, pool)
        after = Look(store, "demo")
        assert after.state.pool.view.recents == ()
        assert after.state.pool.view.objects == before.state.pool.view.objects
        assert verify_repository(store, "demo").bad == ()


def test_a_push_that_finds_the_disk_full_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes = prepared(tmp_path)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=Limits(recent_embedded_max_bytes=0)) as store:
        store.create_repository("demo")
        _push_all(store, pushes[:2])
        before = head(store)
        old, new, pack = pushes[2]
        push = Push(store, "demo", _request(old, new), principal=trusted("p"))
        push.take(pack)
        push.check()

        def full(*_: object) -> None:
            raise StorageFull("no room")

        with monkeypatch.context() as patched:
            patched.setattr(store.blocks, "put_many_sync", full)
            with pytest.raises(StorageFull):
                push.commit()
        assert head(store) == before
        _push_all(store, pushes[2:4])
        assert verify_repository(store, "demo").bad == ()


def _request(old: ObjectId | None, new: ObjectId) -> PushRequest:
    return PushRequest((Command(b"refs/heads/main", old, new),))


def _push_all(store: Store, pushes: Sequence[tuple[ObjectId | None, ObjectId, bytes]]) -> None:
    for old, new, pack in pushes:
        push = Push(store, "demo", _request(old, new), principal=trusted("p"))
        push.take(pack)
        push.check()
        assert push.commit().results[0].error is None
