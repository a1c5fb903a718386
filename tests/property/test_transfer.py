"""Packs out of a pool: any set of objects, for a client that has any other set, judged by git index-pack."""

from __future__ import annotations

import hashlib
import random
from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.gits import extend_history, git, make_history, reachable

from shardgit import _segment
from shardgit.graph.closure import closure
from shardgit.graph.closures import Closures
from shardgit.graph.selection import selection
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.pool.trailers import Trailers
from shardgit.pool.transfer import Transfer, TransferOptions, kept_entries
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.importing import import_repository
from shardgit.service.push import Push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
# Small blocks, so that families are cut and bases stand in other segments.
SMALL = Limits(block_target_bytes=6_000, block_max_bytes=9_000)


@pytest.fixture(scope="module", params=["one run", "two runs, small blocks", "recents"])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, PoolView]]:
    folder = tmp_path_factory.mktemp("transfer")
    origin = make_history(folder / "work", commits=30)
    (origin / "large").write_text("\n".join(str(i * i) for i in range(3000)))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "large")
    git(origin, "repack", "-adfq", "--depth=30")
    two = request.param == "two runs, small blocks"
    few = Limits(recents_settle=1_000, recents_max=1_000)
    create_store(folder / "data", shards=2)
    with open_store(folder / "data", limits=SMALL if two else few) as store:
        import_repository(store, "demo", str(origin))
        if two:
            extend_history(origin, commits=20, rand=random.Random(4), first=700)
            git(origin, "repack", "-adfq", "--depth=30")
            import_repository(store, "demo", str(origin))
        if request.param == "recents":
            for number in range(20):
                old = git(origin, "rev-parse", "HEAD").decode().strip()
                extend_history(origin, commits=1, rand=random.Random(number), first=700 + number)
                push_on(store, origin, old)
        with store.journal.snapshot() as snapshot:
            view = store.view(store.state(snapshot, "demo").pool)
        assert view is not None
        assert len(view.runs) == {"one run": 1, "recents": 21}.get(request.param, 2)
        yield origin, view


def push_on(store: Store, origin: Path, old: str) -> None:
    """Push HEAD of ``origin`` to its branch, on top of ``old``, as a thin pack."""
    new = git(origin, "rev-parse", "HEAD").decode().strip()
    branch = git(origin, "symbolic-ref", "HEAD").strip()
    words = ("pack-objects", "--revs", "--stdout", "-q", "--thin")
    pack = git(origin, *words, stdin=f"{new}\n^{old}\n".encode())
    command = Command(branch, ObjectId(bytes.fromhex(old)), ObjectId(bytes.fromhex(new)))
    made = Push(store, "demo", PushRequest((command,)), principal=trusted("tester"))
    made.take(pack)
    made.check()
    assert [one.error for one in made.commit().results] == [None]


def bits(positions: set[int], objects: int) -> bytes:
    out = bytearray((objects + 7) // 8)
    for at in positions:
        out[at >> 3] |= 1 << (at & 7)
    return bytes(out)


def pack_of(view: PoolView, wanted: set[int], have: set[int], options: TransferOptions) -> bytes:
    transfer = Transfer(view, bits(wanted, view.objects), bits(have, view.objects), options=options)
    assert transfer.objects == len(wanted)
    return b"".join(transfer.chunks())


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_set_for_any_client_is_what_git_reads(
    pool: tuple[Path, PoolView], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    _, view = pool
    rand = random.Random(data.draw(st.integers(0, 1 << 30)))
    everything = range(view.objects)
    wanted = set(rand.sample(everything, rand.randint(0, view.objects)))
    have = set(rand.sample(everything, rand.randint(0, view.objects))) - wanted
    options = TransferOptions(ofs_delta=rand.random() < 0.5, thin=rand.random() < 0.5)
    target = tmp_path_factory.mktemp("target") / "t.git"
    git(target.parent, "init", "-q", "--bare", "t.git")
    if have:
        whole = pack_of(view, have, set(), TransferOptions())
        git(target, "index-pack", "--stdin", stdin=whole)
    before = stored(target)
    assert before == {oid.hex() for oid in view.ids_at(sorted(have))}
    words = ["index-pack", "--stdin", *(["--fix-thin"] if options.thin else [])]
    git(target, *words, stdin=pack_of(view, wanted, have, options))
    assert stored(target) == before | {oid.hex() for oid in view.ids_at(sorted(wanted))}


def stored(folder: Path) -> set[str]:
    shown = git(folder, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    return set(shown.decode().split())


def test_every_object_reads_back_with_its_id(pool: tuple[Path, PoolView]) -> None:
    _, view = pool
    names = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
    found = view.read_positions(list(range(view.objects)))
    for one, info in zip(found, view.info(list(range(view.objects))), strict=True):
        head = names[one.type] + b" %d\0" % len(one.data)
        assert hashlib.sha1(head + one.data).digest() == one.id == info.id
        assert (info.type, info.size) == (one.type, len(one.data))
    ids = view.ids_at(list(range(view.objects)))
    assert view.positions(ids) == list(range(view.objects))
    near = [ObjectId(oid[:8] + bytes(12)) for oid in ids]
    assert set(view.positions(near)) == {-1}


def test_closure_of_every_tip_is_gits(pool: tuple[Path, PoolView]) -> None:
    origin, view = pool
    for tip in git(origin, "for-each-ref", "--format=%(objectname)").decode().split():
        want = {
            line.split()[0]
            for line in git(origin, "rev-list", "--objects", tip).decode().splitlines()
        }
        if git(origin, "cat-file", "-t", tip) == b"tag\n":
            want.add(tip)
        (position,) = view.positions([ObjectId(bytes.fromhex(tip))])
        got = closure(view, [position])
        members = [at for at in range(view.objects) if got[at >> 3] >> (at & 7) & 1]
        assert {oid.hex() for oid in view.ids_at(members)} >= want - {tip}
        assert {oid.hex() for oid in view.ids_at(members)} - want <= nested_tags(origin, tip)


def nested_tags(origin: Path, tip: str) -> set[str]:
    """Return the tags on the way from a tip, which rev-list peels before it starts."""
    found = set()
    while git(origin, "cat-file", "-t", tip) == b"tag\n":
        found.add(tip)
        tip = git(origin, "cat-file", "tag", tip).decode().split()[1]
    return found


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_difference_lacks_nothing_and_repeats_little(
    pool: tuple[Path, PoolView], data: st.DataObject
) -> None:
    origin, view = pool
    commits = git(origin, "rev-list", "--all").decode().split()
    wants = data.draw(st.lists(st.sampled_from(commits), min_size=1, max_size=3))
    haves = data.draw(st.lists(st.sampled_from(commits), min_size=1, max_size=3))
    at = [view.positions([ObjectId(bytes.fromhex(one)) for one in some]) for some in (wants, haves)]
    wanted, have = selection(view, at[0], at[1])
    sent = {
        oid.hex()
        for oid in view.ids_at([p for p in range(view.objects) if wanted[p >> 3] >> (p & 7) & 1])
    }
    needed = git(origin, "rev-list", "--objects", *wants, *(f"^{one}" for one in haves)).decode()
    exact = git(origin, "rev-list", "--objects", *wants).decode()
    owned = git(origin, "rev-list", "--objects", *haves).decode()
    reach = [{line.split()[0] for line in text.splitlines()} for text in (needed, exact, owned)]
    assert sent >= reach[1] - reach[2]  # whatever the client lacks
    assert sent <= reach[1]  # nothing that was not wanted
    assert sent <= reach[0] | {
        one for one in sent if one in reach[0]
    }  # no more than git itself would send
    claimed = {
        oid.hex()
        for oid in view.ids_at(
            [p for p in range(view.objects) if have and have[p >> 3] >> (p & 7) & 1]
        )
    }
    assert claimed <= reach[2]  # a thin pack rests on what the client really has


def test_equal_plans_give_equal_bytes_with_and_without_a_known_trailer(
    pool: tuple[Path, PoolView],
) -> None:
    origin, view = pool
    assert len(reachable(origin)) <= view.objects
    trailers = Trailers()
    full = b"\xff" * (view.objects // 8) + bytes([(1 << view.objects % 8) - 1])
    for sideband in (False, True):
        options = TransferOptions(sideband=sideband)
        packs = [
            b"".join(Transfer(view, full, options=options, trailers=known).chunks())
            for known in (None, trailers, trailers)
        ]
        assert packs[0] == packs[1] == packs[2]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_all_are_held_where_each_is_in_one_of_two_sets(data: st.DataObject) -> None:
    first, second = (data.draw(st.sets(st.integers(0, most))) for most in (63, 95))
    places = data.draw(st.lists(st.integers(-2, 99), max_size=12))
    got = _segment.holds_all(bits(first, 64), bits(second, 96), array("q", places))
    assert got == (set(places) <= first | second)


def test_a_walk_that_begins_where_another_ended_finds_the_same(pool: tuple[Path, PoolView]) -> None:
    origin, view = pool
    rows = git(origin, "rev-list", "--reverse", "--all").decode().split()
    tags = git(origin, "for-each-ref", "--format=%(objectname)", "refs/tags").decode().split()
    ids = [ObjectId(bytes.fromhex(one)) for one in (*rows, *tags)]
    places = view.positions(ids)
    rand = random.Random(3)
    closures = Closures()
    for _ in range(60):
        tips = rand.sample(places, rand.randint(1, 3))
        assert closures.of(view, tips) == closure(view, tips)
        assert closures.of(view, reversed(tips)) == closure(view, tips)


def test_entries_made_before_give_the_same_pack(pool: tuple[Path, PoolView]) -> None:
    _, view = pool
    some = bytes(
        rand.getrandbits(8) for rand in [random.Random(5)] for _ in range(view.objects // 8)
    )
    entries = kept_entries()
    packs = []
    for _ in range(2):
        transfer = Transfer(view, some, options=TransferOptions(), entries=entries)
        packs.append(b"".join(transfer.chunks()))
        assert transfer.sent.made_objects > 0
    fresh = Transfer(view, some, options=TransferOptions())
    assert packs == [b"".join(fresh.chunks())] * 2
    small = kept_entries(4 << 10)
    for number in range(50):
        small.put(ObjectId(bytes([number]) * 20), bytes(40))
    assert small.get(ObjectId(bytes(20))) is None
    assert small.get(ObjectId(bytes([49]) * 20)) == bytes(40)
    small.put(ObjectId(b"\xff" * 20), bytes(1 << 9))  # it would drive out most of the others
    assert small.get(ObjectId(b"\xff" * 20)) is None
