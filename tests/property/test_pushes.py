"""Pushes and settles over random histories: after each the pool holds what git says, exactly."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from reference.gits import extend_history, make_history
from reference.gits import git as run_git

from shardgit.errors import Refused
from shardgit.graph.closure import bit
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.objects import object_id
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.settle import settle
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.importing import import_repository
from shardgit.service.incoming import HOPS_MAX
from shardgit.service.look import Look
from shardgit.service.push import Push

if TYPE_CHECKING:
    from pathlib import Path

    from shardgit.service.push import Pushed
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
ME = trusted("tester")
NEVER = Limits(recents_settle=10_000, recents_max=10_000)


def git(folder: Path, *words: str) -> str:
    return run_git(folder, *words).decode().strip()


def pack_of(origin: Path, *revisions: str, thin: bool = True) -> bytes:
    words = ["--thin"] if thin else []
    return subprocess.run(
        ["git", "-C", str(origin), "pack-objects", "--revs", "--stdout", "-q", *words],
        input="\n".join(revisions).encode() + b"\n",
        capture_output=True,
        check=True,
    ).stdout


def push(
    store: Store, name: str, ref: bytes, old: str | None, new: str, pack: bytes
) -> tuple[Push, Pushed]:
    command = Command(
        ref,
        ObjectId(bytes.fromhex(old)) if old else None,
        ObjectId(bytes.fromhex(new)),
    )
    made = Push(store, name, PushRequest((command,)), principal=ME)
    made.take(pack)
    made.check()
    return made, made.commit()


def verify(store: Store, name: str, origin: Path, tip: str) -> None:
    """Every object that git reaches from ``tip`` is reached, readable and itself; nothing else is."""
    look = Look(store, name)
    assert look.view is not None
    kind = look.record.hash_kind
    lines = git(origin, "rev-list", "--objects", "--no-object-names", tip).split()
    ids = [ObjectId(bytes.fromhex(line)) for line in lines]
    positions = look.positions(ids)
    assert min(positions) >= 0
    assert sum(bit(look.reachable, at) for at in range(look.view.objects)) == len(ids)
    for found in look.view.read_positions(positions):
        assert object_id(found.type, [found.data], len(found.data), kind) == found.id


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [HashKind.SHA1, HashKind.SHA256])
def test_random_pushes_and_settles_keep_every_object(
    kind: HashKind, seed: int, tmp_path: Path
) -> None:
    rand = random.Random(seed)
    origin = make_history(tmp_path / "origin", commits=12, algorithm=kind.git_name)
    create_store(tmp_path / "data", shards=2)
    small = rand.random() < 0.5
    sizes = {"block_target_bytes": 6_000, "block_max_bytes": 9_000} if small else {}
    embedded = rand.choice([0, 2_000, 512 << 10])
    limits = Limits(
        recents_settle=10_000, recents_max=10_000, recent_embedded_max_bytes=embedded, **sizes
    )
    with open_store(tmp_path / "data", limits=limits) as store:
        store.create_repository("demo", kind)
        old: str | None = None
        for step in range(24):
            if step:
                extend_history(origin, commits=1, rand=rand, first=100 + step)
            new = git(origin, "rev-parse", "HEAD")
            revisions = [new] if old is None else [new, f"^{old}"]
            _, done = push(store, "demo", b"refs/heads/main", old, new, pack_of(origin, *revisions))
            assert [one.error for one in done.results] == [None]
            old = new
            if rand.random() < 0.35:
                with store.journal.snapshot() as snapshot:
                    pool = store.repository(snapshot, "demo").pool
                assert settle(store, pool)
            if step % 6 == 5:
                verify(store, "demo", origin, new)
        verify(store, "demo", origin, git(origin, "rev-parse", "HEAD"))
    with open_store(tmp_path / "data") as again:
        verify(again, "demo", origin, git(origin, "rev-parse", "HEAD"))


def test_chains_over_pushes_stay_short(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    (origin / "large").write_text("\n".join(str(n) for n in range(4_000)))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "large")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=NEVER) as store:
        store.create_repository("demo")
        old: str | None = None
        for step in range(30):
            text = (origin / "large").read_text()
            (origin / "large").write_text(f"{text}\n{step}")
            git(origin, "commit", "-qam", f"step {step}")
            new = git(origin, "rev-parse", "HEAD")
            revisions = [new] if old is None else [new, f"^{old}"]
            push(store, "demo", b"refs/heads/main", old, new, pack_of(origin, *revisions))
            old = new
        look = Look(store, "demo")
        assert look.view is not None
        hops = look.view.hops_at(range(look.view.objects))
        assert 0 < max(hops) <= HOPS_MAX
        assert old is not None
        verify(store, "demo", origin, old)


def test_runs_stay_few(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    for number in range(30):
        (origin / f"noise{number}").write_bytes(random.Random(number).randbytes(20_000))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "noise")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=NEVER) as store:
        store.create_repository("demo")
        old: str | None = None
        for step in range(40):
            (origin / "file").write_text(str(step))
            git(origin, "add", "-A")
            git(origin, "commit", "-qm", f"step {step}")
            new = git(origin, "rev-parse", "HEAD")
            revisions = [new] if old is None else [new, f"^{old}"]
            push(store, "demo", b"refs/heads/main", old, new, pack_of(origin, *revisions))
            old = new
            settle(store, Look(store, "demo").record.pool)
        look = Look(store, "demo")
        assert look.view is not None
        assert len(look.view.runs) < 16
        assert old is not None
        verify(store, "demo", origin, old)


def test_a_dangling_object_in_the_pack_is_left_out(tmp_path: Path) -> None:
    """Git takes a pack that also holds an object whose links lead nowhere; it must never become reachable."""
    origin = make_history(tmp_path / "origin", commits=12)
    tip = git(origin, "rev-parse", "HEAD")
    nowhere = "12" * 20
    text = f"tree {nowhere}\nauthor A <a@b.c> 1 +0000\ncommitter A <a@b.c> 1 +0000\n\nx\n"
    stray = subprocess.run(
        ["git", "-C", str(origin), "hash-object", "-t", "commit", "-w", "--stdin", "--literally"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    ids = git(origin, "rev-list", "--objects", "--no-object-names", tip).split()
    pack = subprocess.run(
        ["git", "-C", str(origin), "pack-objects", "--stdout", "-q"],
        input="\n".join([*ids, stray]).encode() + b"\n",
        capture_output=True,
        check=True,
    ).stdout
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=NEVER) as store:
        store.create_repository("demo")
        _, done = push(store, "demo", b"refs/heads/main", None, tip, pack)
        assert [one.error for one in done.results] == [None]
        verify(store, "demo", origin, tip)
        view = Look(store, "demo").view
        assert view is not None
        assert view.positions([ObjectId(bytes.fromhex(stray))]) == [-1]
        made = Push(
            store,
            "demo",
            PushRequest((Command(b"refs/heads/stray", None, ObjectId(bytes.fromhex(stray))),)),
            principal=ME,
        )
        made.take(pack)
        made.check()
        assert made.commit().results[0].error == "missing necessary objects"


def test_what_is_reached_survives_a_settle_without_a_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    for number in range(20):  # so that the pool is larger than one block
        (origin / f"noise{number}").write_bytes(random.Random(number).randbytes(30_000))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "noise")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=NEVER) as store:
        store.create_repository("demo")
        old: str | None = None
        walks = 0
        whole = store.closure_of

        def counted(*words: object) -> bytes:
            nonlocal walks
            walks += 1
            return whole(*words)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "closure_of", counted)
        for step in range(30):
            (origin / "file").write_text(str(step))
            git(origin, "add", "-A")
            git(origin, "commit", "-qm", f"step {step}")
            new = git(origin, "rev-parse", "HEAD")
            revisions = [new] if old is None else [new, f"^{old}"]
            push(store, "demo", b"refs/heads/main", old, new, pack_of(origin, *revisions))
            old = new
            if step % 3 == 2:
                settle(store, Look(store, "demo").record.pool)
            if step % 7 == 6:
                verify(store, "demo", origin, new)
        assert walks <= 1


def test_an_import_does_not_undo_pushes_by_itself(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    source = str(origin)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=NEVER) as store:
        import_repository(store, "demo", source)
        import_repository(store, "demo", source)
        before = git(origin, "rev-parse", "refs/heads/main")
        git(origin, "commit", "-q", "--allow-empty", "-m", "pushed")
        pushed = git(origin, "rev-parse", "HEAD")
        pack = pack_of(origin, pushed, f"^{before}")
        push(store, "demo", b"refs/heads/main", before, pushed, pack)
        git(origin, "reset", "-q", "--hard", before)
        with pytest.raises(Refused, match="changed since its last import"):
            import_repository(store, "demo", source)
        verify_head(store, pushed)
        import_repository(store, "demo", source, overwrite=True)
        verify_head(store, before)
        import_repository(store, "demo", source)


def verify_head(store: Store, expected: str) -> None:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "demo")
        found = store.refs.get(snapshot, record, b"refs/heads/main")
    assert found is not None
    assert found.target == bytes.fromhex(expected)
