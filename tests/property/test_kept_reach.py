"""What a push keeps of what refs reach, for the next one, is what a walk from them finds, in each fork of a pool."""

from __future__ import annotations

import gc
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from gcing import MAIN, ME, Made, collected, commit, push, start, without_grace

from shardgit.graph.closure import closure
from shardgit.limits import DEFAULT, Limits
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType, object_id
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.settle import settle
from shardgit.pack.builder import PackBuilder
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service import store as store_module
from shardgit.service.configuring import Configuring
from shardgit.service.forks import fork
from shardgit.service.look import Look
from shardgit.service.push import Push
from shardgit.service.ref_updates import update_refs
from shardgit.service.store import Store
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.pool.view import PoolView

FORKS = ["parent", "child", "third"]
ALIAS = b"refs/heads/alias"
TAGS = [b"refs/tags/t", b"refs/tags/u"]
HEADS = [MAIN, b"refs/heads/a", b"refs/heads/b"]
REFS = [*HEADS, *TAGS, ALIAS]
NOTE = LogNote("me", "test")
NEVER = Limits(recents_settle=10_000, recents_max=10_000)
STEPS = 160


def tag(of: Made, text: str) -> Made:
    """Return an annotated tag."""
    body = b"object %s\ntype commit\ntag t\ntagger me <me@x> 1700000000 +0000\n\n%s\n" % (
        of.id.hex().encode(),
        text.encode(),
    )
    oid = object_id(ObjectType.TAG, [body], len(body), HashKind.SHA1)
    return Made(oid, ((ObjectType.TAG, body),), frozenset({oid}))


@contextmanager
def opened(folder: Path, limits: Limits = NEVER) -> Iterator[Store]:
    create_store(folder)
    with open_store(folder, limits=limits, threads=2) as store:
        yield store


def check(store: Store, name: str) -> Look:
    """A look, which is returned, reaches exactly what a walk from all refs finds."""
    look = Look(store, name)
    with store.journal.snapshot() as snapshot:
        refs = list(store.refs.list(snapshot, look.record))
    tips = {ref.target for ref in refs if ref.target is not None}
    view = look.state.pool.view
    assert look.reachable == closure(view, view.positions(sorted(tips)))
    return look


def settle_all(store: Store) -> bool:
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, "parent").pool
    return settle(store, pool)


def forked(store: Store) -> Made:
    """Make three repositories of one pool; returns the commit that they share."""
    store.create_repository("parent")
    first = commit(size=10)
    push(store, "parent", MAIN, None, first, first)
    for name in FORKS[1:]:
        fork(store, "parent", name, NOTE)
    return first


class Run:
    """One random history over one pool."""

    def __init__(self, store: Store, rand: random.Random, *, shallow: bool) -> None:
        self.store = store
        self.rand = rand
        self.shallow = shallow
        first = forked(store)
        self.sent = {name: [first] for name in FORKS}
        self.unsent: dict[str, list[Made]] = {name: [] for name in FORKS}  # below shallow ends
        self.by_id = {first.id: first}
        self.late: list[Push] = []
        self.number = 0
        for name in FORKS if shallow else []:
            Configuring(store).update(name, {"receive.shallow_update": True})

    def step(self) -> None:
        names = ["push"] * 60 + ["settle"] * 12 + ["update"] * 6 + ["point"] * 3 + ["upload"] * 3
        names += ["collect"] * 3 + ["commit_late"] * 13
        getattr(self, self.rand.choice(names))()

    def made(self, *parents: Made) -> Made:
        new = commit(*parents, size=self.rand.choice([10, 900]))
        self.by_id[new.id] = new
        return new

    def target(self, name: str, ref: bytes) -> ObjectId | None:
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, name)
            found = self.store.refs.get(snapshot, record, ref)
            if found is not None and found.symbolic is not None:
                found = self.store.refs.get(snapshot, record, found.symbolic)
        return found.target if found is not None else None

    def push(self) -> None:
        """Push up to three commands: created, moved forth or aside, deleted, or refused; some wait for their commit."""
        name = self.rand.choice(FORKS)
        commands: list[Command] = []
        pack: list[Made] = []
        ends: list[Made] = []
        for ref in self.rand.sample(REFS, self.rand.choice([1, 1, 1, 2, 3])):
            old = self.target(name, ref)
            new = self.next(name, ref, old, pack, ends)
            known = old if self.rand.random() < 0.95 else None
            commands.append(Command(ref, known, new.id if new else None))
        if self.shallow:
            ends += self.rand.sample(self.sent[name], min(len(self.sent[name]), 2))
        request = PushRequest(
            tuple(commands),
            shallow=tuple(end.id for end in ends),
            atomic=self.rand.random() < 0.2,
        )
        made = Push(self.store, name, request, principal=ME)
        if pack:
            builder = PackBuilder(HashKind.SHA1)
            for each in dict.fromkeys(pack):
                for type_, data in each.objects:
                    builder.add(type_, data)
            made.take(builder.finish())
        made.check()
        if self.rand.random() < 0.7:
            made.commit()
            return
        standing = made.verdicts.standing()
        if standing and self.rand.random() < 0.2:
            made.verdicts.refuse(standing[0][0], "hook declined")
        self.late.append(made)

    def next(
        self, name: str, ref: bytes, old: ObjectId | None, pack: list[Made], ends: list[Made]
    ) -> Made | None:
        """Return where a ref shall stand; what it needs is added to the pack, and the ends of its history."""
        sent, unsent, rand = self.sent[name], self.unsent[name], self.rand
        dice = rand.random()
        if self.shallow and dice < 0.12:
            below = [self.made(rand.choice(sent)), self.made()]
            unsent += below
            beside = rand.sample(sent, rand.choice([0, 0, 1]))
            new = self.made(*rand.sample(below, rand.choice([1, 2])), *beside)
            ends.append(new)
        elif unsent and dice < 0.22:  # history goes on where it ended
            new = rand.choice(unsent)
            if rand.random() < 0.5:
                pack.append(new)
                new = self.made(rand.choice(sent))
        elif dice < 0.5:
            on = self.by_id.get(old) if old is not None else None
            new = self.made(on if on in sent and rand.random() < 0.8 else rand.choice(sent))
        elif dice < 0.7:
            return rand.choice(sent)
        elif dice < 0.78:
            return None
        elif dice < 0.9 and ref in TAGS:
            self.number += 1
            new = tag(rand.choice(sent), str(self.number))
            pack.append(new)
            return new
        else:  # of another fork, perhaps
            return rand.choice(self.sent[rand.choice(FORKS)])
        pack.append(new)
        sent.append(new)
        return new

    def commit_late(self) -> None:
        if self.late:
            self.late.pop(self.rand.randrange(len(self.late))).commit()

    def settle(self) -> None:
        settle_all(self.store)

    def update(self) -> None:
        name = self.rand.choice(FORKS)
        new = self.rand.choice([*self.sent[name], None])
        self.updated(name, RefUpdate(self.rand.choice(REFS), ANY, new.id if new else None))

    def point(self) -> None:
        ref = self.rand.choice([ALIAS, b"HEAD"])
        to = RefUpdate(ref, ANY, None, symbolic=self.rand.choice(HEADS))
        self.updated(self.rand.choice(FORKS), to)

    def updated(self, name: str, update: RefUpdate) -> None:
        update_refs(self.store, name, [update], atomic=False, note=NOTE, principal=ME)

    def upload(self) -> None:
        put_objects(self.store, self.rand.choice(FORKS), commit(size=10).objects)

    def collect(self) -> None:
        collected(self.store, without_grace(wait_s=0))


@pytest.mark.parametrize("seed", range(8))
def test_kept_reach_is_walked_reach(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = grafted = 0
    real = Store.keep_reach

    def counted(*words: object) -> None:
        nonlocal kept
        kept += 1
        real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "keep_reach", counted)
    rand = random.Random(seed)
    limits = Limits(
        recents_settle=rand.choice([10_000, 6]),
        recents_max=rand.choice([7, 64]),
        block_target_bytes=rand.choice([DEFAULT.block_target_bytes, 6_000]),
    )
    with opened(tmp_path / "data", limits) as store:
        run = Run(store, rand, shallow=seed % 2 == 1)
        for _ in range(STEPS):
            run.step()
            for name in FORKS:
                if rand.random() < 0.7:  # else more than one step is followed at once
                    grafted += bool(check(store, name).state.pool.view.grafts)
        for name in FORKS:
            check(store, name)
    assert kept > 2
    assert (grafted > 0) == run.shallow


def test_a_tag_that_was_moved_away_from_is_neither_reachable_nor_nameable(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        first = forked(store)
        old, new = tag(first, "old"), tag(first, "new")
        push(store, "parent", TAGS[0], None, old, old)
        push(store, "parent", TAGS[0], old, new, new)
        places = check(store, "parent").positions([old.id, new.id])
        assert [at >= 0 for at in places] == [False, True]
        again = start(store, "parent", TAGS[1], None, old).commit()
        assert again.results[0].error == "missing necessary objects"


def test_what_a_ref_left_and_gc_dropped_leads_to_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        first = forked(store)
        below = commit(first)
        above = commit(below)
        push(store, "child", MAIN, first, below, below)
        push(store, "parent", MAIN, first, above, below, above)
        assert settle_all(store)
        assert check(store, "parent").positions([below.id])[0] >= 0
        back = RefUpdate(MAIN, ANY, first.id)
        update_refs(store, "parent", [back], atomic=True, note=NOTE, principal=ME)
        collected(store)
        assert check(store, "parent").positions_in_pool([below.id, above.id])[1] == -1
        assert Look(store, "parent").positions([below.id]) == [-1]
        assert check(store, "child").positions([below.id])[0] >= 0


def pushed_in_turn(store: Store, first: Made) -> list[Made]:
    """Push to two forks in turn, so that a settle gives their objects other positions; returns one's commits."""
    secret = []
    for number in range(2):
        for name in ("child", "parent"):
            made = commit(first)
            push(store, name, b"refs/heads/%d" % number, None, made, made)
            if name == "child":
                secret.append(made)
    return secret


def check_unseen(store: Store, first: Made, secret: list[Made]) -> None:
    look = check(store, "parent")
    assert look.positions([first.id])[0] >= 0
    assert set(look.positions([oid for made in secret for oid in made.ids])) == {-1}


def test_a_branch_from_old_objects_counts_positions_of_a_settle_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        first = forked(store)
        secret = pushed_in_turn(store, first)
        check_unseen(store, first, secret)
        waiting = start(store, "parent", b"refs/heads/new", None, first)
        assert settle_all(store)
        assert waiting.commit().results[0].error is None
        check_unseen(store, first, secret)


def test_a_branch_from_old_objects_counts_positions_of_the_settle_that_makes_it_room(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "data", Limits(recents_settle=10_000, recents_max=5)) as store:
        first = forked(store)
        secret = pushed_in_turn(store, first)
        assert len(Look(store, "parent").state.pool.view.recents) == 5
        push(store, "parent", b"refs/heads/new", None, first)
        assert len(Look(store, "parent").state.pool.view.recents) == 0
        check_unseen(store, first, secret)


def test_a_fork_that_is_read_while_another_is_pushed_to_is_not_walked_anew_after_a_settle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = 0

    def counted(view: PoolView, tips: list[int]) -> bytes:
        nonlocal walks
        walks += 1
        return closure(view, tips)

    with opened(tmp_path / "data") as store:
        first = forked(store)
        for name in ["parent", *["child"] * 6]:
            made = commit(first)
            push(store, name, b"refs/heads/" + made.id.hex().encode(), None, made, made)
            check(store, "parent")
        gc.collect()  # what is not kept is not found by chance
        monkeypatch.setattr(store_module, "closure", counted)
        assert settle_all(store)
        check(store, "parent")
        assert walks == 0
