"""Repositories whose histories end early, alone and beside deeper ones in a pool; git is the judge."""

from __future__ import annotations

import random
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, reachable, shallow_copy, shallow_ends
from reference.histories import random_history

from shardgit import clock
from shardgit.backup.create import create_backup
from shardgit.backup.repository import restore_repository
from shardgit.backup.target import Target
from shardgit.errors import ShardgitError
from shardgit.graph.closure import bit
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.compact import compact
from shardgit.operate.gc import GcOptions, gc
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.verify import verify_repository
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.refs.log import LogNote
from shardgit.service.access import trusted
from shardgit.service.configuring import Configuring
from shardgit.service.exporting import export_repository
from shardgit.service.forks import fork
from shardgit.service.importing import import_repository
from shardgit.service.look import Look
from shardgit.service.push import Push
from shardgit.service.reading import Reading
from shardgit.service.ref_log import restore_ref, restoring
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardgit.service.push import Pushed
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
ME = trusted("tester")
EVERYTHING = GcOptions(grace_s=0, log_retention_s=0, orphan_age_s=0, wait_s=0, garbage_min=0)
KINDS = [HashKind.SHA1, HashKind.SHA256]


def oid(text: bytes | str) -> ObjectId:
    return ObjectId(bytes.fromhex(text.decode() if isinstance(text, bytes) else text.strip()))


def grafts(store: Store, name: str) -> set[bytes]:
    with store.journal.snapshot() as snapshot:
        found = store.grafts(snapshot, store.repository(snapshot, name))
    return {each.hex().encode() for each in found}


def check(store: Store, name: str, folder: Path) -> None:
    """The repository has exactly what git reaches in ``folder``, and its history ends there."""
    look = Look(store, name)
    assert look.view is not None
    ends = look.view.ids_at([at for at in look.view.cut if bit(look.reachable, at)])
    assert {each.hex().encode() for each in ends} == shallow_ends(folder)
    ids = [oid(each) for each in reachable(folder)]
    assert min(look.positions(ids)) >= 0
    assert sum(each.bit_count() for each in look.reachable) == len(ids)
    verify_repository(store, name)


def history(reading: Reading, *revisions: str) -> set[str]:
    return {one.id.hex() for some in reading.log(revisions, limit=1_000) for one in some}


def check_walks(store: Store, name: str, folder: Path, rand: random.Random) -> None:
    """Walks by ancestry are git's."""
    commits = sorted(git(folder, "rev-list", "--all").decode().split())
    reading = Reading(store, name)
    for _ in range(25):
        a, b = rand.choice(commits), rand.choice(commits)
        code = subprocess.run(
            ["git", "-C", str(folder), "merge-base", "--is-ancestor", a, b], check=False
        ).returncode
        assert reading.is_ancestor(a, b) == (code == 0)
        bases = git(folder, "merge-base", "--all", a, b, check=False).decode().split()
        assert {each.hex() for each in reading.merge_bases(a, b)} == set(bases)
        listed = git(folder, "rev-list", a, f"^{b}").decode().split()
        assert history(reading, a, f"^{b}") == set(listed)


def settle_pool(store: Store, name: str) -> None:
    with store.journal.snapshot() as snapshot:
        pool = store.repository(snapshot, name).pool
    settle(store, pool)


def push(
    store: Store,
    name: str,
    folder: Path,
    moves: Sequence[tuple[str, str | None, str | None]],
    *revisions: str,
) -> Pushed:
    """Push from a repository on disk: refs (name, old, new), and what ``revisions`` name as the pack."""
    shallow = tuple(oid(each) for each in shallow_ends(folder))
    commands = tuple(
        Command(ref.encode(), oid(old) if old else None, oid(new) if new else None)
        for ref, old, new in moves
    )
    pack = git(
        folder,
        *("pack-objects", "--revs", "--stdout", "-q"),
        stdin="\n".join(revisions).encode() + b"\n",
    )
    made = Push(store, name, PushRequest(commands, shallow=shallow), principal=ME)
    made.take(pack)
    made.check()
    return made.commit()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_shallow_repository_is_imported_read_and_exported(
    kind: HashKind, seed: int, tmp_path: Path
) -> None:
    rand = random.Random(seed)
    origin = random_history(tmp_path / "origin.git", seed, kind.git_name)
    cut = shallow_copy(origin, tmp_path / "cut.git", rand)
    assert shallow_ends(cut)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(cut))
        check(store, "demo", cut)
        check_walks(store, "demo", cut, rand)
        export_repository(store, "demo", tmp_path / "out.git")
    git(tmp_path / "out.git", "fsck")
    assert shallow_ends(tmp_path / "out.git") == shallow_ends(cut)
    assert reachable(tmp_path / "out.git") == reachable(cut)
    with open_store(tmp_path / "data") as again:
        check(again, "demo", cut)


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.heavy) for n in range(4, 8))]
)
def test_repositories_of_one_pool_end_each_where_it_does(seed: int, tmp_path: Path) -> None:
    """Forks that are deepened, cut elsewhere, made whole or deleted, in any order, over settles, compactions and gc."""
    rand = random.Random(100 + seed)
    kind = KINDS[seed % 2]
    origin = random_history(tmp_path / "origin.git", seed, kind.git_name)
    folders: dict[str, Path] = {}
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        for step in range(8):
            if not folders:
                name = "r0"
            elif rand.random() < 0.6:
                name = f"r{step}"
                source = rand.choice(sorted(folders))
                fork(store, source, name)
                assert grafts(store, name) == grafts(store, source)
            else:
                name = rand.choice(sorted(folders))
            folder = tmp_path / f"{step}.git"
            if rand.random() < 0.3 and step:
                git(tmp_path, "clone", "-q", "--mirror", str(origin), str(folder))
            else:
                shallow_copy(origin, folder, rand)
            import_repository(store, name, str(folder), overwrite=True)
            folders[name] = folder
            if len(folders) > 2 and rand.random() < 0.4:
                gone = rand.choice(sorted(folders.keys() - {name}))
                Repositories(store).delete(gone)
                del folders[gone]
            if rand.random() < 0.5:
                settle_pool(store, name)
            if rand.random() < 0.3:
                with store.journal.snapshot() as snapshot:
                    pool = store.repository(snapshot, name).pool
                compact(store, pool, control=silent_control(), full=rand.random() < 0.5)
            if rand.random() < 0.4:
                done = gc(store, EVERYTHING, control=silent_control())
                assert not done.damaged
            for each, place in folders.items():
                check(store, each, place)
            check_walks(store, name, folder, rand)
    with open_store(tmp_path / "data") as again:
        for each, place in folders.items():
            check(again, each, place)
            check_walks(again, each, place, rand)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_deeper_sibling_is_seen(kind: HashKind, tmp_path: Path) -> None:
    origin = random_history(tmp_path / "origin.git", 5, kind.git_name)
    cut = shallow_copy(origin, tmp_path / "cut.git", random.Random(5))
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "shallow", str(cut))
        fork(store, "shallow", "whole")
        import_repository(store, "whole", str(origin), overwrite=True)
        assert grafts(store, "whole") == set()
        hidden = sorted(reachable(origin) - reachable(cut))
        look = Look(store, "shallow")
        assert look.view is not None
        places = look.view.positions([oid(each) for each in hidden])
        assert min(places) >= 0  # the pool has them
        assert not any(bit(look.reachable, at) for at in places)
        assert set(look.owned([oid(each) for each in hidden])) == {-1}
        reading = Reading(store, "shallow")
        for end in shallow_ends(cut):
            with pytest.raises(ShardgitError):
                reading.resolve(f"{end.decode()}~1")
        # Nor can it be had by a push that names it.
        commits = git(origin, "rev-list", "--all").split()
        parent = next(each for each in commits if each in hidden).decode()
        done = push(store, "shallow", cut, [("refs/heads/stolen", None, parent)])
        assert done.results[0].error is not None
        check(store, "shallow", cut)


def new_commit(folder: Path, branch: str, text: str) -> str:
    tree = git(folder, "rev-parse", f"{branch}^{{tree}}").decode().strip()
    made = git(folder, "commit-tree", "-p", branch, "-m", text, tree, date=1_800_000_000)
    git(folder, "update-ref", f"refs/heads/{branch}", made.decode().strip())
    return made.decode().strip()


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """Ten commits on main."""
    folder = tmp_path / "linear.git"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(folder))
    rows = [
        b"commit refs/heads/main\ncommitter C <c@d.e> %d +0000\ndata 2\n%d\nM 100644 inline f%d\ndata 2\n%d\n"
        % (1_700_000_000 + number, number, number, number)
        for number in range(10)
    ]
    git(folder, "fast-import", "--quiet", stdin=b"".join(rows))
    return folder


def cloned(origin: Path, folder: Path, depth: int) -> Path:
    git(origin.parent, "clone", "-q", "--bare", f"--depth={depth}", f"file://{origin}", str(folder))
    return folder


def test_new_ends_of_history_are_taken_only_where_settings_allow(
    linear: Path, tmp_path: Path
) -> None:
    client = cloned(linear, tmp_path / "client.git", 3)
    tip = git(client, "rev-parse", "main").decode().strip()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        store.create_repository("demo")
        done = push(store, "demo", client, [("refs/heads/main", None, tip)], tip)
        assert [each.error for each in done.results] == ["shallow update not allowed"]
        assert grafts(store, "demo") == set()
        Configuring(store).update("demo", {"receive.shallow_update": True})
        done = push(store, "demo", client, [("refs/heads/main", None, tip)], tip)
        assert [each.error for each in done.results] == [None]
        check(store, "demo", client)
        # What connects needs no setting, and ends history nowhere else.
        Configuring(store).update("demo", {"receive.shallow_update": False})
        more = new_commit(client, "main", "more")
        done = push(store, "demo", client, [("refs/heads/main", tip, more)], more, f"^{tip}")
        assert [each.error for each in done.results] == [None]
        check(store, "demo", client)
        export_repository(store, "demo", tmp_path / "out.git")
        git(tmp_path / "out.git", "fsck")


def test_a_whole_repository_stays_whole_when_a_shallow_client_pushes(
    linear: Path, tmp_path: Path
) -> None:
    client = cloned(linear, tmp_path / "client.git", 2)
    tip = git(client, "rev-parse", "main").decode().strip()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(linear))
        Configuring(store).update("demo", {"receive.shallow_update": True})
        more = new_commit(client, "main", "more")
        done = push(store, "demo", client, [("refs/heads/main", tip, more)], more, f"^{tip}")
        assert [each.error for each in done.results] == [None]
        assert grafts(store, "demo") == set()
        # Even when the pack holds the commit at which the client's history ends.
        done = push(store, "demo", client, [("refs/heads/side", None, more)], more)
        assert [each.error for each in done.results] == [None]
        assert grafts(store, "demo") == set()
        verify_repository(store, "demo")


def test_one_ref_of_a_push_may_need_an_end_and_another_not(linear: Path, tmp_path: Path) -> None:
    client = cloned(linear, tmp_path / "client.git", 2)
    tip = git(client, "rev-parse", "main").decode().strip()
    alone = git(client, "commit-tree", "-m", "alone", f"{tip}^{{tree}}").decode().strip()
    moves = [("refs/heads/main", None, tip), ("refs/heads/alone", None, alone)]
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        store.create_repository("demo")
        done = push(store, "demo", client, moves, tip, alone)
        assert [each.error for each in done.results] == ["shallow update not allowed", None]
        look = Look(store, "demo")
        assert look.positions([oid(tip)]) == [-1]
        Configuring(store).update("demo", {"receive.shallow_update": True})
        done = push(store, "demo", client, moves[:1], tip, alone)
        assert [each.error for each in done.results] == [None]
        assert grafts(store, "demo") == shallow_ends(client)
        verify_repository(store, "demo")


def test_an_end_is_given_up_once_its_parents_are_pushed(linear: Path, tmp_path: Path) -> None:
    client = cloned(linear, tmp_path / "client.git", 3)
    tip = git(client, "rev-parse", "main").decode().strip()
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(client))
        fork(store, "demo", "other")
        parent = git(linear, "rev-parse", "main~3").decode().strip()
        done = push(store, "demo", linear, [("refs/heads/old", None, parent)], parent)
        assert [each.error for each in done.results] == [None]
        assert grafts(store, "demo") == set()
        git(linear, "branch", "old", parent)
        check(store, "demo", linear)
        check(store, "other", client)
        settle_pool(store, "demo")
        check(store, "demo", linear)
        check(store, "other", client)
        assert len(history(Reading(store, "demo"), "main")) == 10
        assert len(history(Reading(store, "other"), "main")) == 3
        # What is reached already stays as it is; what comes whole once no ref reaches it ends nowhere.
        done = push(store, "other", linear, [("refs/heads/anew", None, tip)], tip)
        assert [each.error for each in done.results] == [None]
        assert len(history(Reading(store, "other"), "anew")) == 3
        Configuring(store).update("other", {"receive.deny_delete_current": "ignore"})
        gone = [("refs/heads/main", tip, None), ("refs/heads/anew", tip, None)]
        done = push(store, "other", client, gone)
        assert [each.error for each in done.results] == [None, None]
        assert grafts(store, "other") == shallow_ends(client)  # the log may bring them back
        done = push(store, "other", linear, [("refs/heads/anew", None, tip)], tip)
        assert [each.error for each in done.results] == [None]
        assert grafts(store, "other") == set()
        assert len(history(Reading(store, "other"), "anew")) == 10
        verify_repository(store, "other")


def test_a_shallow_repository_comes_back_from_store_and_backup(
    linear: Path, tmp_path: Path
) -> None:
    cut = cloned(linear, tmp_path / "cut.git", 3)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(cut))
        before_ms = clock.now_ms()
        create_backup(store, str(tmp_path / "backup"), control=silent_control())

        def restored(name: str, **words: object) -> None:
            target = Target.open(str(tmp_path / "backup"))
            control = silent_control()
            restore_repository(store, target, "demo", new_name=name, control=control, **words)  # type: ignore[arg-type]

        (newest,) = Target.open(str(tmp_path / "backup")).cut_ids()
        restored("from-backup", backup=newest)
        check(store, "from-backup", cut)
        # As it was before it became another history, which ends nowhere.
        time.sleep(0.01)
        other = tmp_path / "other.git"
        git(tmp_path, "init", "-q", "--bare", "-b", "main", str(other))
        row = b"commit refs/heads/main\ncommitter C <c@d.e> 1 +0000\ndata 1\nx\n"
        git(other, "fast-import", "--quiet", stdin=row)
        import_repository(store, "demo", str(other), overwrite=True)
        check(store, "demo", other)
        restored("then", at_ms=before_ms)
        check(store, "then", cut)
        Repositories(store).delete("demo")
        restored("deleted")
        check(store, "deleted", other)
        Repositories(store).delete("deleted")


def test_the_ref_log_brings_back_history_as_it_ended(linear: Path, tmp_path: Path) -> None:
    """Another history is imported over a shallow one, whose parents a sibling has; the old refs come back."""
    cut = cloned(linear, tmp_path / "cut.git", 3)
    other = tmp_path / "other.git"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(other))
    row = b"commit refs/heads/main\ncommitter C <c@d.e> 1 +0000\ndata 1\nx\n"
    git(other, "fast-import", "--quiet", stdin=row)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(cut))
        fork(store, "demo", "whole")
        import_repository(store, "whole", str(linear), overwrite=True)
        import_repository(store, "demo", str(other), overwrite=True)
        check(store, "demo", other)
        back = restoring(store, "demo", b"refs/heads/main", back=1)
        restore_ref(store, "demo", back, note=LogNote("ann", "back"), principal=trusted("ann"))
        check(store, "demo", cut)
        check(store, "whole", linear)


def test_ends_that_no_ref_reaches_are_forgotten_once_they_are_many(
    linear: Path, tmp_path: Path
) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=Limits(grafts_max=6)) as store:
        for number in range(7):
            client = cloned(linear, tmp_path / f"{number}.git", 1)
            import_repository(store, "demo", str(client))
            check(store, "demo", client)
            assert len(grafts(store, "demo")) == (1, 2, 3)[number % 3]
            new_commit(linear, "main", f"more {number}")


def test_a_push_that_looked_before_the_ends_moved_looks_again(linear: Path, tmp_path: Path) -> None:
    client = cloned(linear, tmp_path / "client.git", 3)
    tip = git(client, "rev-parse", "main").decode().strip()
    other = tmp_path / "other.git"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(other))
    git(
        other,
        "fast-import",
        "--quiet",
        stdin=b"commit refs/heads/main\ncommitter C <c@d.e> 1 +0000\ndata 1\nx\n",
    )
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(client))
        more = new_commit(client, "main", "more")
        command = Command(b"refs/heads/side", None, oid(more))
        late = Push(store, "demo", PushRequest((command,)), principal=ME)
        late.take(
            git(
                client,
                "pack-objects",
                "--revs",
                "--stdout",
                "-q",
                stdin=f"{more}\n^{tip}\n".encode(),
            )
        )
        late.check()
        steps = late.steps()
        assert steps is not None
        import_repository(store, "demo", str(other), overwrite=True)
        check(store, "demo", other)
        assert not store.try_commit(steps.conditions, steps.operations)
        late.lost()
        done = late.commit()
        assert [each.error for each in done.results] == ["missing necessary objects"]
        check(store, "demo", other)
