"""Compactions over random histories: every object stays and is itself, by our own reading and by C git's."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from gcing import MAIN, assert_whole, commit
from gcing import push as pushed
from reference.gits import extend_history, make_history
from reference.gits import git as run_git

from shardgit import _segment
from shardgit.errors import Stopped
from shardgit.graph.closure import bit
from shardgit.journal.operations import put_operation, read_operation
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.objects import object_id
from shardgit.oid import HashKind, ObjectId, PoolId
from shardgit.operate import compact as compacting
from shardgit.operate.compact import AllBegun, compact, wants_compaction
from shardgit.operate.operation import Control, silent_control
from shardgit.operate.settle import settle
from shardgit.operate.verify import verify_repository
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.exporting import export_repository
from shardgit.service.forks import fork
from shardgit.service.importing import import_repository
from shardgit.service.look import Look
from shardgit.service.push import Push

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.pool.view import PlacedRun, PoolView
    from shardgit.progress import Progress
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
ME = trusted("tester")


def git(folder: Path, *words: str) -> str:
    return run_git(folder, *words).decode().strip()


def push(
    store: Store, name: str, origin: Path, old: str | None, new: str, *, thin: bool = True
) -> None:
    wanted = f"{new}\n^{old}\n" if old else f"{new}\n"
    words = ["--revs", "--stdout", "-q", *(["--thin"] if thin else [])]
    pack = subprocess.run(
        ["git", "-C", str(origin), "pack-objects", *words],
        input=wanted.encode(),
        capture_output=True,
        check=True,
    ).stdout
    before = ObjectId(bytes.fromhex(old)) if old else None
    command = Command(b"refs/heads/main", before, ObjectId(bytes.fromhex(new)))
    made = Push(store, name, PushRequest((command,)), principal=ME)
    made.take(pack)
    made.check()
    assert [one.error for one in made.commit().results] == [None]


def pool_of(store: Store, name: str = "demo") -> PoolId:
    with store.journal.snapshot() as snapshot:
        return store.repository(snapshot, name).pool


def verify(store: Store, name: str, origin: Path, tip: str) -> None:
    """Every object that git reaches from ``tip`` is reached, readable and itself; nothing else is."""
    look = Look(store, name)
    assert look.view is not None
    kind = look.record.hash_kind
    lines = git(origin, "rev-list", "--objects", "--no-object-names", tip).split()
    ids = [ObjectId(bytes.fromhex(line)) for line in lines]
    positions = look.positions(ids)
    assert min(positions) >= 0
    # Walked anew over the graph as it stands: a reach that was carried over would hide a wrong one.
    (top,) = look.positions([ObjectId(bytes.fromhex(tip))])
    bits = store.closure_of(look.view, [top])
    assert sum(bit(bits, at) for at in range(look.view.objects)) == len(ids)
    assert all(bit(bits, at) for at in positions)
    assert sum(bit(look.reachable, at) for at in range(look.view.objects)) == len(ids)
    for found in look.view.read_positions(positions):
        assert object_id(found.type, [found.data], len(found.data), kind) == found.id


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [HashKind.SHA1, HashKind.SHA256])
def test_pushes_settles_and_compactions_keep_every_object(
    kind: HashKind, seed: int, tmp_path: Path
) -> None:
    rand = random.Random(seed)
    origin = make_history(tmp_path / "origin", commits=12, algorithm=kind.git_name)
    create_store(tmp_path / "data", shards=2)
    sizes = {"block_target_bytes": 6_000, "block_max_bytes": 9_000} if seed % 2 else {}
    limits = Limits(
        recents_settle=10_000,
        recents_max=10_000,
        recent_embedded_max_bytes=rand.choice([0, 2_000, 512 << 10]),
        **sizes,
    )
    with open_store(tmp_path / "data", limits=limits) as store:
        store.create_repository("demo", kind)
        old: str | None = None
        for step in range(14):
            if step:
                extend_history(origin, commits=1, rand=rand, first=100 + step)
            new = git(origin, "rev-parse", "HEAD")
            push(store, "demo", origin, old, new)
            old = new
            pool = pool_of(store)
            if rand.random() < 0.3:
                assert settle(store, pool)
            if rand.random() < 0.2:
                done = compact(store, pool, control=silent_control(), full=rand.random() < 0.7)
                assert done.runs_after <= done.runs_before
                verify(store, "demo", origin, new)
        compact(store, pool_of(store), control=silent_control(), full=True)
        look = Look(store, "demo")
        assert look.view is not None
        assert len(look.view.runs) == 1
        assert not any(segment.entry.flags & 2 for segment in look.view.segments) or sizes
        verify(store, "demo", origin, git(origin, "rev-parse", "HEAD"))
        out = tmp_path / "out.git"
        export_repository(store, "demo", out)
    git(out, "fsck", "--strict", "--full")
    assert sorted(
        git(out, "rev-list", "--objects", "--all", "--no-object-names").split()
    ) == sorted(git(origin, "rev-list", "--objects", "HEAD", "--no-object-names").split())


def test_a_parents_clones_stay_whole_segments_after_forks_pushed(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=60)
    create_store(tmp_path / "data")
    sizes = Limits(block_target_bytes=6_000, block_max_bytes=12_000)
    with open_store(tmp_path / "data", limits=sizes) as store:
        import_repository(store, "demo", str(origin))
        fork(store, "demo", "mine")
        old = git(origin, "rev-parse", "HEAD")
        extend_history(origin, commits=12, rand=random.Random(5), first=500)
        new = git(origin, "rev-parse", "HEAD")
        push(store, "mine", origin, old, new)
        compact(store, pool_of(store), control=silent_control(), full=True)
        parent = Look(store, "demo")
        assert parent.view is not None
        assert len(parent.view.runs) == 1
        counts = [
            (sum(bit(parent.reachable, one.base + k) for k in range(one.entry.objects)), one)
            for one in parent.view.segments
        ]
        assert all(count in (0, one.entry.objects) for count, one in counts)
        assert any(count == 0 for count, _ in counts)
        for count, one in counts:
            if count and one.entry.flags & 2:
                outside = parent.view.use_segment(
                    one, lambda block: _segment.externals_of(block, 20)
                )
                at = parent.view.positions([ObjectId(oid) for oid in outside])
                assert all(bit(parent.reachable, position) for position in at)
        assert not verify_repository(store, "mine").bad
        export_repository(store, "mine", tmp_path / "out.git")
    git(tmp_path / "out.git", "fsck", "--strict", "--full")
    assert git(tmp_path / "out.git", "rev-parse", "refs/heads/main") == new


def push_and_settle(store: Store, origin: Path, times: int) -> None:
    """Make so many runs, of one commit each."""
    old = git(origin, "rev-parse", "HEAD")
    for step in range(times):
        extend_history(origin, commits=1, rand=random.Random(step), first=600 + step)
        new = git(origin, "rev-parse", "HEAD")
        push(store, "demo", origin, old, new)
        assert settle(store, pool_of(store))
        old = new


def test_a_compaction_is_wanted_once_the_tail_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "WANTED_BYTES", 500)
    origin = make_history(tmp_path / "origin", commits=30)
    create_store(tmp_path / "data")
    sizes = Limits(block_target_bytes=6_000, block_max_bytes=12_000)
    with open_store(tmp_path / "data", limits=sizes) as store:
        import_repository(store, "demo", str(origin))
        push_and_settle(store, origin, 4)
        before = Look(store, "demo").view
        assert before is not None
        assert wants_compaction(before)
        young = sum(run.record.objects for run in before.runs[1:])
        with monkeypatch.context() as patched:
            patched.setattr(compacting, "STEP_OBJECTS", young - 1)  # more than memory shall take
            done = compact(store, pool_of(store), control=silent_control())
            assert 0 < done.objects < young
            patched.setattr(compacting, "STEP_OBJECTS", 1)
            assert not wants_compaction(before)
        assert done.runs_after == 3
        before = Look(store, "demo").view
        assert before is not None
        done = compact(store, pool_of(store), control=silent_control())
        after = Look(store, "demo").view
        assert after is not None
        # The large run of the import is left alone, the small ones behind it are one now.
        assert (done.runs_before, done.runs_after) == (len(before.runs), 2)
        assert after.runs[0].record.graph == before.runs[0].record.graph
        assert not wants_compaction(after)
        assert not verify_repository(store, "demo").bad


def test_a_compaction_of_all_goes_by_groups_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = make_history(tmp_path / "origin", commits=30)
    create_store(tmp_path / "data")
    sizes = Limits(block_target_bytes=6_000, block_max_bytes=12_000)
    with open_store(tmp_path / "data", limits=sizes) as store:
        import_repository(store, "demo", str(origin))
        push_and_settle(store, origin, 6)
        pool = pool_of(store)
        before = Look(store, "demo").view
        assert before is not None
        sizes_before = [run.record.objects for run in before.runs]
        assert len(sizes_before) == 7
        # The import is a group, then two or three runs at a time.
        monkeypatch.setattr(compacting, "STEP_OBJECTS", sum(sizes_before[1:3]))
        control = Control()

        def stop(progress: Progress) -> None:
            view = Look(store, "demo").view
            assert view is not None
            if progress.stage == "writing blocks" and view.runs[0].record != before.runs[0].record:
                control.stop()  # at the second group

        control.report = stop  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            compact(store, pool, control=control, full=True)
        between = Look(store, "demo").view
        assert between is not None
        assert between.runs[0].record != before.runs[0].record
        assert [run.record for run in between.runs[1:]] == [run.record for run in before.runs[1:]]
        assert not verify_repository(store, "demo").bad
        with store.journal.snapshot() as snapshot:
            begun = read_operation(snapshot, "compact", AllBegun, pool.hex()).record
        assert begun is not None
        done = compact(store, pool, control=silent_control(), full=True)
        after = Look(store, "demo").view
        assert after is not None
        assert after.runs[0].record == between.runs[0].record  # done before, and not again
        assert done.objects == sum(sizes_before[1:])
        assert 2 < len(after.runs) < 7
        assert all(run.record.first_serial >= begun.serial for run in after.runs)
        with store.journal.snapshot() as snapshot:
            assert read_operation(snapshot, "compact", AllBegun, pool.hex()).record is None
        assert not verify_repository(store, "demo").bad
        # A row that was left long ago is no part of the next, which is gone on with as well.
        left = put_operation("compact", AllBegun(begun.serial, 0), pool.hex())
        store.journal.commit_sync([], [left])
        control = Control()
        control.report = lambda progress: control.stop()  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            compact(store, pool, control=control, full=True)
        with store.journal.snapshot() as snapshot:
            anew = read_operation(snapshot, "compact", AllBegun, pool.hex()).record
        assert anew is not None
        assert anew.serial > begun.serial
        assert anew.at_ms >= begun.at_ms
        # Begun anew, it begins with the oldest.
        assert compact(store, pool, control=silent_control(), full=True).objects == sum(
            sizes_before
        )
        export_repository(store, "demo", tmp_path / "out.git")
    git(tmp_path / "out.git", "fsck", "--strict", "--full")


def kinds_of(view: PoolView, run: PlacedRun) -> dict[tuple[str, str], int]:
    """Return the bytes of a run's entries by (type, kind of entry)."""
    span = range(run.start, run.start + run.record.objects)
    found: dict[tuple[str, str], int] = {}
    for segment in view.segments:
        if segment.base not in span:
            continue
        count = segment.entry.objects
        entries, types = view.use_segment(
            segment,
            lambda block, count=count: (  # type: ignore[misc]
                [_segment.entry_at(block, 20, at) for at in range(count)],
                block[len(block) - 28],
            ),
        )
        for kind, _, start, end in entries:
            key = (
                {1: "commit", 2: "tree", 3: "blob", 4: "tag"}[types],
                {6: "near", 7: "far"}.get(kind, "whole"),
            )
            found[key] = found.get(key, 0) + end - start
    return found


@pytest.mark.parametrize("thin", [True, False])
def test_a_young_run_has_its_bases_in_older_ones(
    thin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "WANTED_BYTES", 1_000)
    rand = random.Random(9)
    origin = tmp_path / "origin"
    git(tmp_path, "init", "-q", "-b", "main", str(origin))
    words = [f"line {number} {rand.random()}" for number in range(400)]
    (origin / "deep").mkdir()
    for number in range(80):
        (origin / "deep" / f"{rand.randbytes(6).hex()}.txt").write_text(
            f"{number}\n{words[number]}"
        )

    for number in range(15):  # so that the oldest run is left alone
        (origin / f"large{number}").write_bytes(rand.randbytes(40_000))

    def step(number: int) -> str:
        words.insert(rand.randrange(400), f"step {number} {rand.random()}")
        (origin / "deep" / "file.txt").write_text("\n".join(words))
        git(origin, "add", "-A")
        git(origin, "commit", "-qm", f"step {number}")
        return git(origin, "rev-parse", "HEAD")

    old = new = step(0)
    create_store(tmp_path / "data")
    sizes = Limits(block_target_bytes=6_000, block_max_bytes=60_000)
    with open_store(tmp_path / "data", limits=sizes) as store:
        import_repository(store, "demo", str(origin))
        for generation in range(3):
            for number in range(12):
                new = step(100 * generation + number + 1)
                push(store, "demo", origin, old, new, thin=thin)
                old = new
                if number % 4 == 3:
                    assert settle(store, pool_of(store))
            compact(store, pool_of(store), control=silent_control())
            view = Look(store, "demo").view
            assert view is not None
            assert len(view.runs) > 1
            assert not wants_compaction(view)
            # Nothing of what an older run has a version of is whole in a younger one: neither file nor folders.
            for run in view.runs[1:]:
                kinds = kinds_of(view, run)
                assert ("blob", "whole") not in kinds
                assert kinds.get(("tree", "whole"), 0) < 100  # the root, of one entry
                assert kinds["blob", "far"] > 0
            verify(store, "demo", origin, new)
        assert not verify_repository(store, "demo").bad
        export_repository(store, "demo", tmp_path / "out.git")
        compact(store, pool_of(store), control=silent_control(), full=True)
        view = Look(store, "demo").view
        assert view is not None
        assert not any(kind == "far" for _, kind in kinds_of(view, view.runs[0]))
        verify(store, "demo", origin, new)
    git(tmp_path / "out.git", "fsck", "--strict", "--full")
    assert git(tmp_path / "out.git", "rev-parse", "refs/heads/main") == new


def written(folder: Path, *, commits: int, rand: random.Random) -> list[str]:
    """Write a history of small edits to 120 files; return its commits, the oldest first."""
    git(folder.parent, "init", "-q", "--bare", "-b", "main", str(folder))
    words = [rand.randbytes(rand.randint(2, 5)).hex() for _ in range(300)]
    names = [f"part{number % 6}/{words[number]}.txt" for number in range(120)]
    files = {name: [" ".join(rand.choices(words, k=7)) for _ in range(60)] for name in names}
    out = []
    for number in range(commits):
        touched = rand.sample(names, k=rand.choice((1, 1, 2, 4))) if number else names
        text = f"change {number}: {rand.choice(words)}\n"
        out.append(f"commit refs/heads/main\nmark :{number + 1}\n")
        out.append(f"committer A <a@example.org> {1_700_000_000 + number} +0000\n")
        out.append(f"data {len(text)}\n{text}")
        for name in touched:
            lines = files[name]
            if number:
                lines[rand.randrange(60)] = " ".join(rand.choices(words, k=7))
            body = "\n".join(lines)
            out.append(f"M 100644 inline {name}\ndata {len(body)}\n{body}\n")
    run_git(folder, "fast-import", "--quiet", stdin="".join(out).encode())
    return git(folder, "rev-list", "--reverse", "main").split()


def test_a_clone_after_many_small_pushes_costs_what_it_does_after_a_repack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "WANTED_BYTES", 2_000)
    origin = tmp_path / "origin.git"
    tips = written(origin, commits=180, rand=random.Random(11))
    create_store(tmp_path / "data")
    sizes = Limits(block_target_bytes=30_000, block_max_bytes=200_000, recents_settle=1_000)
    with open_store(tmp_path / "data", limits=sizes) as store:
        store.create_repository("demo")
        for number, new in enumerate(tips):
            push(store, "demo", origin, tips[number - 1] if number else None, new)
            if number % 12 == 7:
                settle(store, pool_of(store))
            view = Look(store, "demo").view
            if number % 30 == 29 and view is not None and wants_compaction(view):
                compact(store, pool_of(store), control=silent_control())
            if number % 30 in (29, 6) and number > 90:
                look = Look(store, "demo")
                assert look.view is not None
                chunks = Transfer(look.view, look.reachable, options=TransferOptions()).chunks()
                ours = sum(map(len, chunks))
                words = ["pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset"]
                words += ["--no-reuse-delta", "--no-reuse-object"]
                assert ours <= 1.05 * len(run_git(origin, *words, stdin=new.encode()))
        assert not verify_repository(store, "demo").bad


def test_a_machine_of_many_cores_compacts(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", threads=64) as store:
        store.create_repository("demo", HashKind.SHA1)
        made = [commit(size=20)]
        while 3 * len(made) < 2_100:  # fewer objects are looked at by one thread
            made.append(commit(made[-1], size=20))
        pushed(store, "demo", MAIN, None, made[-1], *made)
        pool = Look(store, "demo").record.pool
        assert compact(store, pool, control=silent_control(), full=True).objects == 3 * len(made)
        assert_whole(store, "demo", *made[-1].ids)
