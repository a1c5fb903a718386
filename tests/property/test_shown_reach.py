"""What shown refs reach, followed over random moves, is what a walk from them finds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, make_history

from shardgit.errors import RefMissing, ShardgitError
from shardgit.graph import closure as module
from shardgit.graph.closure import closure
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service import store as store_module
from shardgit.service.hiding import NONE_HIDDEN, HiddenRefs
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
NAMES = [
    *(b"refs/heads/a", b"refs/heads/b", b"refs/heads/main", b"refs/heads/alias"),
    *(b"refs/hid/x", b"refs/hid/y", b"refs/hid/shown/z", b"refs/tags/t"),
]
HIDDEN = [
    NONE_HIDDEN,
    HiddenRefs(["refs/hid", "!refs/hid/shown"]),
    HiddenRefs(["refs/heads"]),
    HiddenRefs(["refs/heads/alias", "refs/tags"]),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Store, list[ObjectId]]]:
    origin = make_history(tmp_path / "origin", commits=20)
    shown = git(origin, "rev-list", "--all").decode().split()
    targets = [ObjectId(bytes.fromhex(each)) for each in shown]
    tag = git(origin, "rev-parse", "nested").decode().strip()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", threads=2) as opened:
        import_repository(opened, "demo", str(origin))
        with opened.journal.snapshot() as snapshot:
            record = opened.repository(snapshot, "demo")
            gone = [RefUpdate(ref.name, ANY, None) for ref in opened.refs.list(snapshot, record)]
            change = opened.refs.update(snapshot, record, gone, LogNote("me", "test"))
        assert opened.try_commit(change.conditions, change.operations)
        yield opened, [*targets, ObjectId(bytes.fromhex(tag))]


def expected(store: Store, hidden: HiddenRefs) -> bytes:
    with store.journal.snapshot() as snapshot:
        state = store.state(snapshot, "demo")
        record = state.record
        tips = {
            ref.target
            for ref in store.refs.list(snapshot, record)
            if ref.target is not None and not hidden.hides(ref.name)
        }
        try:
            head = store.refs.resolve(snapshot, record, b"HEAD")
        except RefMissing:
            pass
        else:
            if head.target is not None:
                tips.add(head.target)
    view = state.pool.view
    return closure(view, sorted(view.positions(sorted(tips))))


@pytest.mark.parametrize("seed", range(4))
def test_followed_reach_is_walked_reach(
    store: tuple[Store, list[ObjectId]], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, targets = store
    rand = random.Random(seed)
    followed = 0
    real = module.followed

    def counted(*words: object) -> bytes | None:
        nonlocal followed
        bits = real(*words)  # type: ignore[arg-type]
        followed += bits is not None
        return bits

    monkeypatch.setattr(store_module, "followed", counted)
    for step in range(120):
        update: RefUpdate
        name = rand.choice(NAMES)
        dice = rand.random()
        if dice < 0.08:
            update = RefUpdate(b"HEAD", ANY, None, symbolic=rand.choice(NAMES))
        elif dice < 0.14:
            update = RefUpdate(b"refs/heads/alias", ANY, None, symbolic=rand.choice(NAMES[4:]))
        elif dice < 0.24:
            update = RefUpdate(name, ANY, None)
        else:
            update = RefUpdate(name, ANY, rand.choice(targets))
        with opened.journal.snapshot() as snapshot:
            record = opened.repository(snapshot, "demo")
            try:
                change = opened.refs.update(snapshot, record, [update], LogNote("me", "test"))
            except ShardgitError:
                continue
        assert opened.try_commit(change.conditions, change.operations)
        if rand.random() < 0.5:
            continue
        for hidden in HIDDEN:
            with opened.journal.snapshot() as snapshot:
                reach = opened.reach_of(snapshot, opened.state(snapshot, "demo"), hidden)
            assert reach.bits() == expected(opened, hidden), (step, hidden.key)
    assert followed > 10
