"""Random histories of pushes, deletes, forks, restores, uploads, settles, compactions and gc, against a model.

The model keeps what each commit reaches and what the refs of each repository are. After each gc what must exist is
readable and whole, what nothing reaches is gone, and no block is left that nothing names.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gcing import ME, Made, assert_no_leak, assert_whole, collected, commit, in_pool, start

from shardgit.errors import ShardgitError
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind, ObjectId, PoolId
from shardgit.operate.compact import compact
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.undeleting import undelete_repository
from shardgit.refs.log import LogNote
from shardgit.service.ref_log import restore_ref, restoring
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from shardgit.service.store import Store

REFS = [b"refs/heads/a", b"refs/heads/b", b"refs/heads/c"]
NOTE = LogNote("me", "test")
STEPS = 60


@dataclass
class Model:
    """Repositories by name, their refs; commits with what they reach."""

    refs: dict[str, dict[bytes, Made]] = field(default_factory=dict)
    deleted: dict[str, dict[bytes, Made]] = field(default_factory=dict)
    reach: dict[ObjectId, frozenset[ObjectId]] = field(default_factory=dict)
    commits: list[Made] = field(default_factory=list)
    parents: dict[ObjectId, tuple[Made, ...]] = field(default_factory=dict)

    def made(self, *parents: Made, size: int) -> Made:
        new = commit(*parents, size=size)
        below = [self.reach[parent.id] for parent in parents]
        self.reach[new.id] = new.ids.union(*below)
        self.parents[new.id] = parents
        self.commits.append(new)
        return new

    def history(self, tip: Made) -> list[Made]:
        found: dict[ObjectId, Made] = {}
        waiting = [tip]
        while waiting:
            one = waiting.pop()
            if one.id not in found:
                found[one.id] = one
                waiting += self.parents[one.id]
        return list(found.values())

    def needed(self, name: str) -> frozenset[ObjectId]:
        return frozenset[ObjectId]().union(
            *(self.reach[tip.id] for tip in self.refs[name].values())
        )


class Run:
    """One random history over one store."""

    def __init__(self, store: Store, rand: random.Random) -> None:
        self.store = store
        self.rand = rand
        self.model = Model()
        self.number = 0
        self.create()

    def create(self) -> None:
        self.number += 1
        name = f"r{self.number}"
        self.store.create_repository(name, HashKind.SHA1)
        self.model.refs[name] = {}

    def name(self) -> str:
        return self.rand.choice(sorted(self.model.refs))

    def step(self) -> None:
        names = ["push"] * 6 + ["settle"] * 3 + ["gc"] * 2
        names += [
            "delete_ref",
            "fork",
            "restore",
            "delete",
            "undelete",
            "create",
            "again",
            "compact",
            "upload",
        ]
        getattr(self, self.rand.choice(names))()

    def push(self) -> None:
        name, ref = self.name(), self.rand.choice(REFS)
        refs = self.model.refs[name]
        old = refs.get(ref)
        others = sorted(refs.values(), key=lambda one: one.id)
        parents = self.rand.sample(others, min(len(others), self.rand.choice([0, 1, 1, 2])))
        new = self.model.made(*parents, size=self.rand.choice([10, 500, 5_000]))
        self.pushed(name, ref, old, new, [new])

    def again(self) -> None:
        """Push an old commit with all its history, whatever became of it."""
        if not self.model.commits:
            return
        name, ref = self.name(), self.rand.choice(REFS)
        new = self.rand.choice(self.model.commits)
        old = self.model.refs[name].get(ref)
        self.pushed(name, ref, old, new, self.model.history(new))

    def pushed(self, name: str, ref: bytes, old: Made | None, new: Made, packs: list[Made]) -> None:
        done = start(self.store, name, ref, old, new, *packs).commit()
        assert done.results[0].error is None, done.results
        self.model.refs[name][ref] = new

    def delete_ref(self) -> None:
        name = self.name()
        refs = self.model.refs[name]
        if refs:
            ref = self.rand.choice(sorted(refs))
            done = start(self.store, name, ref, refs.pop(ref), None).commit()
            assert done.results[0].error is None

    def fork(self) -> None:
        name = self.name()
        self.number += 1
        Repositories(self.store).fork(name, f"r{self.number}")
        self.model.refs[f"r{self.number}"] = dict(self.model.refs[name])

    def restore(self) -> None:
        name, ref = self.name(), self.rand.choice(REFS)
        try:
            was, _ = restore_ref(
                self.store, name, restoring(self.store, name, ref, back=1), note=NOTE, principal=ME
            )
        except ShardgitError:
            return  # no such ref, or gone after a gc: what it may say is tested elsewhere
        (found,) = [one for one in self.model.commits if one.id == was.target]
        self.model.refs[name][ref] = found

    def delete(self) -> None:
        if len(self.model.refs) > 1:
            name = self.name()
            Repositories(self.store).delete(name)
            self.model.deleted[name] = self.model.refs.pop(name)

    def undelete(self) -> None:
        if self.model.deleted:
            name = self.rand.choice(sorted(self.model.deleted))
            undelete_repository(self.store, name, note=NOTE)
            self.model.refs[name] = self.model.deleted.pop(name)

    def upload(self) -> None:
        new = commit(size=40)
        put_objects(self.store, self.name(), new.objects)

    def pools(self) -> list[PoolId]:
        with self.store.journal.snapshot() as snapshot:
            return [PoolId(row.key[1:]) for row in snapshot.range(b"P", b"Q")]

    def settle(self) -> None:
        for pool in self.pools():
            settle(self.store, pool)

    def compact(self) -> None:
        for pool in self.pools():
            compact(self.store, pool, control=silent_control(), full=self.rand.random() < 0.5)

    def gc(self) -> None:
        recents = self.rand.random() < 0.3
        if not recents:
            self.settle()
        collected(self.store)
        self.model.deleted.clear()  # without grace they are gone
        for name in self.model.refs:
            assert_whole(self.store, name, *self.model.needed(name))
        assert_no_leak(self.store)
        if not recents:
            self.assert_gone()

    def assert_gone(self) -> None:
        """Of each pool only what one of its repositories reaches is left, and what was uploaded."""
        pools: dict[bytes, list[str]] = {}
        with self.store.journal.snapshot() as snapshot:
            for name in self.model.refs:
                pools.setdefault(self.store.repository(snapshot, name).pool, []).append(name)
        for names in pools.values():
            needed = frozenset[ObjectId]().union(*map(self.model.needed, names))
            dead = sorted({oid for one in self.model.commits for oid in one.ids} - needed)
            assert not any(in_pool(self.store, names[0], *dead)), names


@pytest.mark.parametrize("seed", range(12))
def test_what_must_be_there_is_and_nothing_else(seed: int) -> None:
    rand = random.Random(seed)
    small = rand.random() < 0.5
    sizes = {"block_target_bytes": 3_000, "block_max_bytes": 9_000} if small else {}
    limits = Limits(
        recents_settle=10_000,
        recents_max=10_000,
        recent_embedded_max_bytes=rand.choice([0, 600, 512 << 10]),
        **sizes,
    )
    with tempfile.TemporaryDirectory() as folder:
        create_store(Path(folder) / "data", shards=2)
        with open_store(Path(folder) / "data", limits=limits, threads=1) as store:
            run = Run(store, rand)
            for _ in range(STEPS):
                run.step()
            run.gc()
