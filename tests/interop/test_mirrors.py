"""Pull mirrors of a second server: in step with refs, pruned, moved by force; pushes, failures, secrets, addresses."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from moved import Moved
from served import clean_environment, git, serving, shardgit, small_repository

from shardgit.errors import (
    InvalidArgument,
    JournalCorrupt,
    MirrorMissing,
    NotFound,
    ReadOnly,
    Refused,
    Stopped,
)
from shardgit.journal.mirror_records import MirrorRecord
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import RepositoryId
from shardgit.refs.log import LogNote
from shardgit.service import mirror_copies
from shardgit.service.configuring import Configuring
from shardgit.service.importing import import_repository
from shardgit.service.mirror_credentials import NO_CREDENTIALS, Credentials
from shardgit.service.mirror_sync import MirrorRounds, sync_mirror
from shardgit.service.mirrors import MirrorPlan, Mirrors
from shardgit.service.remote_clone import Errand
from shardgit.service.repositories import Repositories
from shardgit.service.source import GitSource
from shardgit.turns import FileTurns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from served import Server

    from shardgit.progress import Progress
    from shardgit.service.source import SourcePack
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
NOTE = LogNote("tester", "mirror")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source's store, a work tree of it, and a token that may read it."""
    folder = tmp_path_factory.mktemp("mirrors")
    create_store(folder / "far")
    work = small_repository(folder / "work")
    with open_store(folder / "far") as store:
        import_repository(store, "project", str(work))
    for words in (("--write", "**", "--name", "writer"), ("--read", "**", "--name", "reader")):
        done = shardgit("token", "create", *words, "--data", "far", "--json", cwd=folder)
        (folder / words[-1]).write_text(json.loads(done.stdout)["token"] + "\n")
    return folder


@pytest.fixture(scope="module")
def far(home: Path) -> Iterator[Server]:
    """The server that is followed; it lets nobody in without a token."""
    with serving(home / "far", "--workers", "1", environment={"SHARDGIT_AUTH": "required"}) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "near")
    with open_store(tmp_path / "near") as opened:
        yield opened


def push(home: Path, far: Server, *words: str) -> None:
    token = (home / "writer").read_text().strip()
    url = far.url("project").replace("://", f"://x:{token}@")
    subprocess.run(
        ["git", "-C", str(home / "work"), "push", "-q", url, *words],
        env=clean_environment(),
        check=True,
        capture_output=True,
        timeout=60,
    )


def refs_of(store: Store, name: str) -> dict[str, str]:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        return {
            ref.name.decode(): ref.target.hex() if ref.target else ""
            for ref in store.refs.list(snapshot, record)
        }


def known(home: Path, who: str = "reader") -> Credentials:
    return Credentials.of([f"far={home / who}"])


def follow(store: Store, far: Server, name: str = "copy", **more: object) -> None:
    plan = MirrorPlan(far.url("project"), credential="far", **more)  # type: ignore[arg-type]
    Mirrors(store).add(name, plan, NOTE)


def test_a_mirror_has_what_its_source_has(home: Path, far: Server, store: Store) -> None:
    work = home / "work"
    follow(store, far)
    state = sync_mirror(store, "copy", known(home))
    assert state.synced_ms
    assert state.due_ms >= state.tried_ms + 300_000
    main = git(work, "rev-parse", "main")
    assert refs_of(store, "copy")["refs/heads/main"] == main
    assert set(refs_of(store, "copy")) == {"refs/heads/main", "refs/tags/v1"}
    with store.journal.snapshot() as snapshot:
        before = store.refs.head(snapshot, store.repository(snapshot, "copy")).sequence
    sync_mirror(store, "copy", known(home))
    with store.journal.snapshot() as snapshot:
        assert store.refs.head(snapshot, store.repository(snapshot, "copy")).sequence == before
    # Moved by force, made and deleted there: so it is here, and the log has it.
    git(work, "commit", "-q", "--amend", "-m", "rewritten")
    push(home, far, "+main", "main:refs/heads/other", ":refs/tags/v1")
    sync_mirror(store, "copy", known(home))
    now = git(work, "rev-parse", "main")
    assert refs_of(store, "copy") == dict.fromkeys(("refs/heads/main", "refs/heads/other"), now)
    with store.journal.snapshot() as snapshot:
        entry = next(store.refs.log(snapshot, store.repository(snapshot, "copy")))
    assert entry.message == f"mirror of {far.url('project')}"
    moves = {
        change.name: (change.old and change.old.target, change.new and change.new.target)
        for change in entry.changes
    }
    assert moves[b"refs/heads/main"] == (bytes.fromhex(main), bytes.fromhex(now))
    assert moves[b"refs/tags/v1"][1] is None


def test_a_mirror_takes_the_refs_that_it_is_told_to(home: Path, far: Server, store: Store) -> None:
    push(home, far, "main:refs/pull/1/head", "main:refs/heads/kept")
    follow(store, far, refs=("refs/heads/*",))
    sync_mirror(store, "copy", known(home))
    assert "refs/heads/kept" in refs_of(store, "copy")
    assert all(name.startswith("refs/heads/") for name in refs_of(store, "copy"))
    with store.journal.snapshot() as snapshot:
        revision = store.refs.head(snapshot, store.repository(snapshot, "copy")).sequence
    sync_mirror(store, "copy", known(home))
    with store.journal.snapshot() as snapshot:
        assert store.refs.head(snapshot, store.repository(snapshot, "copy")).sequence == revision


def test_a_mirror_takes_no_pushes_until_it_follows_nobody(
    home: Path, far: Server, store: Store
) -> None:
    follow(store, far)
    sync_mirror(store, "copy", known(home))
    with pytest.raises(ReadOnly) as caught:
        import_repository(store, "copy", str(home / "work"), overwrite=True)
    assert caught.value.facts["why"] == f"it is a mirror of {far.url('project')}; push there"
    with pytest.raises(ReadOnly):
        Repositories(store).delete("copy")
    assert Repositories(store).stats("copy").read_only.startswith("repository is read-only: it is")
    Mirrors(store).remove("copy")
    with pytest.raises(MirrorMissing):
        Mirrors(store).get("copy")
    with pytest.raises(MirrorMissing):
        sync_mirror(store, "copy", known(home))
    import_repository(store, "copy", str(home / "work"), overwrite=True)
    with pytest.raises(Refused, match="has refs"):
        follow(store, far)
    follow(store, far, overwrite=True)


def test_a_mirror_that_is_read_only_itself_waits(home: Path, far: Server, store: Store) -> None:
    follow(store, far)
    Configuring(store).update("copy", {"read_only": True})
    with pytest.raises(ReadOnly):
        sync_mirror(store, "copy", known(home))
    Configuring(store).update("copy", {"read_only": None})
    sync_mirror(store, "copy", known(home))


def test_failures_put_the_next_try_off_and_tell_no_secret(
    home: Path, far: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(store, far, interval_s=60)
    monkeypatch.setenv("WRONG_TOKEN", "sgt_0123456789abcdef_hush")
    wrong = Credentials.of(["far=$WRONG_TOKEN"])
    states = []
    for _ in range(3):
        with pytest.raises(NotFound) as caught:
            sync_mirror(store, "copy", wrong)
        assert "hush" not in str(caught.value)
        states.append(Mirrors(store).get("copy"))
    assert [(one.due_ms - one.tried_ms) // 1_000 for one in states] == [120, 240, 480]
    state = states[-1]
    assert (state.failures, state.synced_ms) == (3, 0)
    assert "git could not read the source" in state.error
    assert "hush" not in state.error
    assert Mirrors(store).due(state.tried_ms) == []
    with pytest.raises(Refused, match="credential"):
        sync_mirror(store, "copy", NO_CREDENTIALS)
    Mirrors(store).hasten("copy")
    rounds = MirrorRounds(store, known(home))
    moved = Moved()
    assert rounds.sync_next(lambda _: None)
    assert not rounds.sync_next(lambda _: None)
    assert moved("shardgit_maintenance_total") == {"mirror done": 1}
    assert moved("shardgit_maintenance_seconds_total")["mirror"] > 0
    state = Mirrors(store).get("copy")
    assert (state.failures, state.error) == (0, "")
    assert state.synced_ms


def test_a_sync_that_is_told_to_stop_leaves_no_git(home: Path, far: Server, store: Store) -> None:
    follow(store, far)

    def stop(_: Progress) -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        sync_mirror(store, "copy", known(home), progress=stop)
    assert not list(store.scratch.glob("mirror-*"))
    assert not list(store.scratch.glob("listing-*"))
    state = Mirrors(store).get("copy")
    assert (state.tried_ms, state.failures) == (0, 0)


def test_where_a_mirror_may_not_go(store: Store) -> None:
    mirrors = Mirrors(store)
    for url in (
        "file:///etc",
        "/srv/git/project",
        "ext::sh -c true",
        "https://me:secret@example.org/a.git",
        "git@example.org:a.git",
        "ftp://example.org/a.git",
        "https://example.org/a b.git",
    ):
        with pytest.raises((InvalidArgument, Refused)) as caught:
            mirrors.add("copy", MirrorPlan(url), NOTE)
        assert "secret" not in str(caught.value)
    with pytest.raises(Refused, match="link-local"):
        mirrors.add("copy", MirrorPlan("http://169.254.169.254/a.git"), NOTE)
    with pytest.raises(InvalidArgument, match="interval"):
        mirrors.add("copy", MirrorPlan("http://127.0.0.1/a.git", interval_s=1), NOTE)
    assert mirrors.all() == []
    for entry in ("far", "far=relative", "=/x", "far=$"):
        with pytest.raises(InvalidArgument):
            Credentials.of([entry])


def test_a_repository_by_user_and_password_shows_basic(tmp_path: Path) -> None:
    (tmp_path / "two").write_text("ann:secret\nmore\n")
    (tmp_path / "one").write_text("  token  \n")
    known = Credentials.of([f"two={tmp_path / 'two'}", f"one={tmp_path / 'one'}"])
    assert known.authorization("two") == "Basic YW5uOnNlY3JldA=="
    assert known.authorization("one") == "Bearer token"
    assert known.authorization("") == ""
    with pytest.raises(Refused):
        known.authorization("three")


def test_rows_hold_what_was_put() -> None:
    record = MirrorRecord(1, 2, 3, 4, "no")
    assert MirrorRecord.decode(record.encode()) == record
    for data in (b"", b"\0{}", b"\x01[]", b"\x01{"):
        with pytest.raises(JournalCorrupt):
            MirrorRecord.decode(data)


def test_a_server_brings_its_mirrors_in_step_by_itself(
    home: Path, far: Server, tmp_path: Path
) -> None:
    create_store(tmp_path / "near")
    variables = {
        "SHARDGIT_MAINTENANCE_INTERVAL_S": "1",
        "SHARDGIT_MIRROR_CREDENTIALS": f"far={home / 'reader'}",
    }
    with serving(tmp_path / "near", "--workers", "2", environment=variables) as near:
        words = ("--server", near.grpc, "--json")
        url = far.url("project")
        done = shardgit("mirror", "add", "a/copy", url, "--credential", "far", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        done = shardgit("mirror", "sync", "a/copy", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        git(tmp_path, "clone", "-q", near.url("a/copy"), "clone")
        assert git(tmp_path / "clone", "rev-parse", "HEAD") == git(
            home / "work", "rev-parse", "main"
        )
        pushed = subprocess.run(
            ["git", "-C", str(tmp_path / "clone"), "push", "origin", "HEAD:refs/heads/x"],
            env={**os.environ, **clean_environment()},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert pushed.returncode == 1
        assert f"it is a mirror of {url}; push there" in pushed.stderr
        listed = shardgit("mirror", "list", "--server", near.grpc, cwd=tmp_path).stdout
        assert listed.splitlines()[1].startswith(f"a/copy  {url}  ")
        token = (home / "reader").read_text().strip()
        assert token not in listed
        assert token not in near.errors.read_text()
        assert shardgit("mirror", "remove", "a/copy", *words, cwd=tmp_path).returncode == 0
        assert shardgit("mirror", "show", "a/copy", *words, cwd=tmp_path).returncode == 1


def test_a_second_look_fetches_and_reads_what_is_new_alone(
    home: Path, far: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(store, far)
    sync_mirror(store, "copy", known(home))
    monkeypatch.setattr(Errand, "clone", lambda *_: pytest.fail("copied whole again"))
    (home / "work" / "second").write_text("second\n")
    git(home / "work", "add", "second")
    git(home / "work", "commit", "-q", "-m", "second")
    push(home, far, "main")
    read: list[str] = []
    scanned = GitSource.packs

    def packs(source: GitSource, *, use_index: bool = True) -> Iterator[SourcePack]:
        for one in scanned(source, use_index=use_index):
            read.append(one.path.name)
            yield one

    monkeypatch.setattr(GitSource, "packs", packs)
    sync_mirror(store, "copy", known(home))
    assert refs_of(store, "copy")["refs/heads/main"] == git(home / "work", "rev-parse", "main")
    assert len(read) == 1
    (copy,) = (store.scratch / "mirrors").iterdir()
    assert len(list((copy / "objects" / "pack").glob("*.pack"))) == 2
    # What the pool has dropped meanwhile is read again: here the note says too much.
    names = [path.name for path in (copy / "objects" / "pack").glob("*.pack")]
    (copy / "shardgit-imported").write_text(json.dumps([*names, "more"]))
    Mirrors(store).remove("copy")
    Repositories(store).delete("copy")
    follow(store, far, "copy")
    with store.journal.snapshot() as snapshot:
        number = store.repository(snapshot, "copy").id
    copy.rename(copy.with_name(f"{number}.git"))
    sync_mirror(store, "copy", known(home))
    assert refs_of(store, "copy")["refs/heads/main"] == git(home / "work", "rev-parse", "main")
    MirrorRounds(store, known(home)).sync_next(lambda _: None)
    Mirrors(store).remove("copy")
    MirrorRounds(store, known(home)).sync_next(lambda _: None)
    assert list((store.scratch / "mirrors").iterdir()) == []


def test_copies_are_bounded_together_and_by_their_packs(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = mirror_copies.MirrorCopies(tmp_path, Limits(mirror_copies_max_bytes=3_000))
    for number in (1, 2, 3):
        folder = tmp_path / "mirrors" / f"{number}.git"
        (folder / "objects" / "pack").mkdir(parents=True)
        (folder / "objects" / "pack" / "a.pack").write_bytes(bytes(1_400))
        os.utime(folder, (number, number))
    copies.sweep({RepositoryId(1), RepositoryId(2), RepositoryId(3)}, FileTurns(tmp_path / "turns"))
    assert sorted(path.name for path in (tmp_path / "mirrors").iterdir()) == ["2.git", "3.git"]
    copies.keep(RepositoryId(2))
    monkeypatch.setattr(mirror_copies, "PACKS_MAX", 0)
    copies.keep(RepositoryId(3))
    assert sorted(path.name for path in (tmp_path / "mirrors").iterdir()) == ["2.git"]
