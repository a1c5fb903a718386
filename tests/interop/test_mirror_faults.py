"""Mirrors whose sources, settings or copies are not as they should be: nothing is lost, nobody is kept busy."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, serving, shardgit, small_repository

from shardgit import clock
from shardgit.backup.create import create_backup
from shardgit.backup.repository import restore_repository
from shardgit.backup.target import Target
from shardgit.errors import (
    InvalidArgument,
    LimitExceeded,
    MirrorMissing,
    NotFound,
    ReadOnly,
    Refused,
    Stopped,
    StoreBusy,
)
from shardgit.journal.interface import Delete
from shardgit.journal.mirror_records import mirror_key
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.operate.operation import silent_control
from shardgit.refs.log import LogNote
from shardgit.service.configuring import Configuring
from shardgit.service.importing import import_repository
from shardgit.service.mirror_credentials import NO_CREDENTIALS
from shardgit.service.mirror_sync import MirrorRounds, sync_mirror
from shardgit.service.mirrors import MirrorPlan, Mirrors
from shardgit.service.remote_clone import Errand
from shardgit.service.remote_url import checked_url
from shardgit.service.repositories import Repositories
from shardgit.service.settings import MirrorSettings, RepositorySettings, encode_settings
from shardgit.service.writable import check_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.journal.interface import Condition, Operation
    from shardgit.progress import Progress
    from shardgit.service.mirrors import Mirror
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
NOTE = LogNote("tester", "mirror")


class Source(http.server.ThreadingHTTPServer):
    """Serves a repository by git itself; ``alone``: in protocol 2 whatever is asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.alone = False
        self.breaks = False
        self.flood = 0
        self.sent = 0
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/x.git"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Source

    def do_GET(self) -> None:
        if self.server.flood:
            self._flood()
            return
        self._answer(
            "advertisement", b"001e# service=git-upload-pack\n0000", b"", "--advertise-refs"
        )

    def do_POST(self) -> None:
        if self.server.breaks:
            self.send_error(500)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self._answer("result", b"", body)

    def _answer(self, kind: str, before: bytes, body: bytes, *words: str) -> None:
        self.server.asked.append(kind)
        spoken = "version=2" if self.server.alone else self.headers.get("Git-Protocol", "")
        said = subprocess.run(
            ["git", "upload-pack", "--stateless-rpc", *words, str(self.server.folder)],
            input=body,
            env={**clean_environment(), "GIT_PROTOCOL": spoken},
            capture_output=True,
            check=False,
            timeout=60,
        ).stdout
        self.send_response(200)
        self.send_header("Content-Type", f"application/x-git-upload-pack-{kind}")
        self.send_header("Content-Length", str(len(before + said)))
        self.end_headers()
        self.wfile.write(before + said)

    def _flood(self) -> None:
        """Show so many bytes of refs."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
        self.end_headers()
        self.wfile.write(b"001e# service=git-upload-pack\n0000")
        oid = b"a" * 40
        self.wfile.write(line(oid + b" HEAD\0side-band-64k\n"))
        for first in range(0, self.server.flood, 1_000 * 1_061):
            refs = (
                b"%s refs/heads/%016d%s\n" % (oid, first + at, b"x" * 989) for at in range(1_000)
            )
            with contextlib.suppress(OSError):
                self.server.sent += self.wfile.write(b"".join(map(line, refs)))
                continue
            return
        self.wfile.write(b"0000")

    def log_message(self, *_: object) -> None:
        pass


def line(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    """A repository with two refs, served."""
    with Source(small_repository(tmp_path / "work")) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "near")
    with open_store(tmp_path / "near") as opened:
        yield opened


def refs_of(store: Store, name: str) -> set[str]:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        return {ref.name.decode() for ref in store.refs.list(snapshot, record)}


def follow(store: Store, source: Source, name: str = "copy", **more: object) -> None:
    Mirrors(store).add(name, MirrorPlan(source.url, **more), NOTE)  # type: ignore[arg-type]


# ---- sources


def test_a_source_that_speaks_protocol_2_alone_takes_no_refs_away(
    store: Store, source: Source
) -> None:
    follow(store, source)
    sync_mirror(store, "copy", NO_CREDENTIALS)
    before = refs_of(store, "copy")
    assert before == {"refs/heads/main", "refs/tags/v1"}
    source.alone = True
    with pytest.raises(Refused, match="version 2 of the protocol alone"):
        sync_mirror(store, "copy", NO_CREDENTIALS)
    assert refs_of(store, "copy") == before
    source.alone = False
    sync_mirror(store, "copy", NO_CREDENTIALS)
    assert refs_of(store, "copy") == before


def test_each_way_to_such_a_source_finds_out(tmp_path: Path, store: Store, source: Source) -> None:
    errand = Errand(checked_url(source.url), store.limits)
    errand.clone(tmp_path / "made")
    source.alone = True
    (tmp_path / "listing").mkdir()
    for ask in (
        lambda: errand.refs(tmp_path / "listing"),
        lambda: errand.clone(tmp_path / "other"),
        lambda: errand.fetch(tmp_path / "made"),
    ):
        with pytest.raises(Refused, match="version 2 of the protocol alone"):
            ask()


def test_a_source_that_has_lost_all_its_refs_is_followed(store: Store, source: Source) -> None:
    follow(store, source)
    sync_mirror(store, "copy", NO_CREDENTIALS)
    for name in ("refs/heads/main", "refs/tags/v1"):
        git(source.folder, "update-ref", "-d", name)
    sync_mirror(store, "copy", NO_CREDENTIALS)
    assert refs_of(store, "copy") == set()


def listed(source: Source, folder: Path, **bounds: int) -> dict[bytes, bytes]:
    folder.mkdir()
    limits = replace(Limits(), **bounds)
    return Errand(checked_url(source.url), limits).refs(folder)


def test_a_source_with_too_many_refs_is_left(tmp_path: Path, source: Source) -> None:
    source.flood = 4_000_000
    assert len(listed(source, tmp_path / "all")) == 4_001
    with pytest.raises(LimitExceeded, match="too many refs"):
        listed(source, tmp_path / "refs", mirror_refs_max=4_000)
    with pytest.raises(LimitExceeded, match="too large"):
        listed(source, tmp_path / "bytes", mirror_listing_max_bytes=1 << 20)


def test_a_source_that_lists_without_end_fills_no_memory(tmp_path: Path, source: Source) -> None:
    """git takes a list whole before it shows any of it."""
    source.flood = 1 << 30
    with pytest.raises(NotFound, match="could not read") as caught:
        listed(source, tmp_path / "listing", mirror_listing_memory_bytes=64 << 20)
    assert "memory" in str(caught.value)
    assert 4 << 20 < source.sent < 128 << 20


# ---- rounds


def rounds_until_idle(rounds: MirrorRounds, most: int = 5) -> int:
    """Return how many mirrors were looked at before there was nothing to do."""
    for done in range(most):
        if not rounds.sync_next(lambda _: None):
            return done
    return most


def test_a_mirror_that_is_read_only_keeps_no_round_busy(store: Store, source: Source) -> None:
    follow(store, source)
    follow(store, source, "other")
    Configuring(store).update("copy", {"read_only": True, "read_only_why": "moving"})
    assert rounds_until_idle(MirrorRounds(store, NO_CREDENTIALS)) == 2
    assert Mirrors(store).get("other").synced_ms
    state = Mirrors(store).get("copy")
    assert state.due_ms == state.tried_ms + 300_000
    assert "moving" in state.error
    assert rounds_until_idle(MirrorRounds(store, NO_CREDENTIALS)) == 0


def test_a_mirror_that_another_process_syncs_is_left_to_it(store: Store, source: Source) -> None:
    follow(store, source)
    with store.journal.snapshot() as snapshot:
        number = store.repository(snapshot, "copy").id
    turn = store.turns.try_take(f"mirror/{number}")
    assert turn is not None
    assert rounds_until_idle(MirrorRounds(store, NO_CREDENTIALS)) == 1
    assert rounds_until_idle(MirrorRounds(store, NO_CREDENTIALS)) == 0
    state = Mirrors(store).get("copy")
    assert (state.tried_ms, state.failures) == (0, 0)
    with pytest.raises(StoreBusy):
        sync_mirror(store, "copy", NO_CREDENTIALS)
    turn.release()
    assert sync_mirror(store, "copy", NO_CREDENTIALS).synced_ms


def test_a_mistake_of_ours_with_one_mirror_lets_the_others_have_their_turn(
    store: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(store, source)
    monkeypatch.setattr(Errand, "refs", lambda *_: dict[int, int]()[0])
    with pytest.raises(KeyError):
        MirrorRounds(store, NO_CREDENTIALS).sync_next(lambda _: None)
    monkeypatch.undo()
    follow(store, source, "other")
    assert rounds_until_idle(MirrorRounds(store, NO_CREDENTIALS)) == 1
    assert Mirrors(store).get("other").synced_ms


def test_what_cannot_be_noted_rests_all_the_same(
    store: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(store, source)
    source.alone = True
    monkeypatch.setattr(Mirrors, "note", lambda *_: None)
    assert rounds_until_idle(MirrorRounds(store, NO_CREDENTIALS)) == 1


# ---- settings


def test_settings_make_no_mirror_of_a_repository_with_refs(store: Store, source: Source) -> None:
    import_repository(store, "full", str(source.folder))
    settings = Configuring(store)
    with pytest.raises(Refused, match="has refs"):
        settings.update("full", {"mirror.url": source.url})
    assert not settings.get("full").settings.mirror.url
    with pytest.raises(Refused, match="has refs"):
        follow(store, source, "full")
    follow(store, source, "full", overwrite=True)
    settings.update("full", {"mirror.interval_s": 60})  # it is one already
    assert Mirrors(store).get("full").interval_s == 60


def test_a_push_while_a_mirror_is_added_keeps_its_refs(
    store: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    Repositories(store).create("copy")
    commit = store.try_commit
    steps: list[int] = []

    def late(conditions: Sequence[Condition], operations: Sequence[Operation]) -> bool:
        if not steps:
            steps.append(1)
            import_repository(store, "copy", str(source.folder))
        return commit(conditions, operations)

    monkeypatch.setattr(store, "try_commit", late)
    with pytest.raises(Refused, match="has refs"):
        follow(store, source)
    assert steps
    assert refs_of(store, "copy") == {"refs/heads/main", "refs/tags/v1"}
    assert Mirrors(store).all() == []


def test_a_token_in_a_url_is_refused_and_one_of_before_is_told_to_nobody(
    store: Store, source: Source
) -> None:
    for start in ("http://hush@", "https://hush@", "git://hush@", "http://hush:x@"):
        url = f"{start}127.0.0.1/x.git"
        with pytest.raises(InvalidArgument) as caught:
            Mirrors(store).add("copy", MirrorPlan(url), NOTE)
        assert "hush" not in str(caught.value)
    Repositories(store).create("copy")
    with pytest.raises(InvalidArgument):
        Configuring(store).update("copy", {"mirror.url": "http://hush@127.0.0.1/x.git"})
    Configuring(store).update("copy", {"mirror.url": "ssh://git@127.0.0.1/x.git"})
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "copy")
    old = MirrorSettings(url=source.url.replace("://", "://hush@"))
    with pytest.raises(ReadOnly) as told:
        check_record(replace(record, settings=encode_settings(RepositorySettings(mirror=old))))
    assert "hush" not in str(told.value)


def test_a_mirror_that_is_refused_leaves_no_repository_behind(store: Store, source: Source) -> None:
    for plan in (
        MirrorPlan(source.url, interval_s=1),
        MirrorPlan("http://hush@127.0.0.1/x.git"),
        MirrorPlan(source.url, refs=("x" * 10_000,)),
    ):
        with pytest.raises(InvalidArgument):
            Mirrors(store).add("copy", plan, NOTE)
        assert Repositories(store).list() == []


# ---- asked for


def test_who_asks_while_a_mirror_is_synced_is_answered_by_another_sync(
    store: Store, source: Source
) -> None:
    follow(store, source)
    mirrors = Mirrors(store)
    asked: list[Mirror] = []

    def push(_: Progress) -> None:
        """Ask, with something new, once the source was listed."""
        if not asked and source.asked.count("advertisement") == 2:
            git(source.folder, "branch", "late")
            asked.append(mirrors.hasten("copy"))

    state = sync_mirror(store, "copy", NO_CREDENTIALS, progress=push)
    assert asked[0].asked == 1
    assert (state.asked, state.answered, state.due_ms, state.failures) == (1, 0, 0, 0)
    assert rounds_until_idle(MirrorRounds(store, NO_CREDENTIALS)) == 1
    state = mirrors.get("copy")
    assert state.answered == 1
    assert state.due_ms == state.tried_ms + 300_000
    assert "refs/heads/late" in refs_of(store, "copy")


def test_a_failure_answers_who_asked_before_it_alone(store: Store, source: Source) -> None:
    follow(store, source)
    mirrors = Mirrors(store)
    mirrors.hasten("copy")
    source.alone = True
    with pytest.raises(Refused):
        sync_mirror(store, "copy", NO_CREDENTIALS)
    state = mirrors.get("copy")
    assert (state.asked, state.answered, state.failures) == (1, 1, 1)
    assert state.due_ms > state.tried_ms
    with pytest.raises(Refused):
        sync_mirror(store, "copy", NO_CREDENTIALS, progress=lambda _: ask(mirrors))
    state = mirrors.get("copy")
    assert (state.answered, state.due_ms, state.failures) == (1, 0, 2)
    assert state.asked > 1


def ask(mirrors: Mirrors) -> None:
    mirrors.hasten("copy")


def test_a_sync_that_nobody_can_do_is_refused_at_once(tmp_path: Path, source: Source) -> None:
    create_store(tmp_path / "data")
    with serving(
        tmp_path / "data", "--workers", "1", environment={"SHARDGIT_MAINTENANCE": "off"}
    ) as server:
        words = ("--server", server.grpc)
        assert shardgit("mirror", "add", "copy", source.url, *words, cwd=tmp_path).returncode == 0

        def refused() -> str:
            done = shardgit("mirror", "sync", "copy", *words, cwd=tmp_path)
            assert done.returncode == 1
            return done.stderr

        assert "the maintenance is off" in refused()
    with serving(tmp_path / "data", "--workers", "1") as server:
        words = ("--server", server.grpc)
        config = ("repo", "config", "copy", *words)
        assert shardgit(*config, "read_only", "true", cwd=tmp_path).returncode == 0
        assert "repository is read-only" in refused()
        assert shardgit(*config, "read_only", "false", cwd=tmp_path).returncode == 0
        mode = ("store", "read-only", "on", "--reason", "moving", *words)
        assert shardgit(*mode, cwd=tmp_path).returncode == 0
        assert "store is read-only" in refused()


# ---- copies


def copy_of(store: Store) -> Path:
    with store.journal.snapshot() as snapshot:
        return store.scratch / "mirrors" / f"{store.repository(snapshot, 'copy').id}.git"


def test_copies_are_swept_while_mirrors_are_always_due(store: Store, source: Source) -> None:
    follow(store, source)
    busy, gone = (store.scratch / "mirrors" / f"{number}.git" for number in (800, 900))
    for each in (busy, gone):
        (each / "objects" / "pack").mkdir(parents=True)
    turn = store.turns.try_take("mirror/800")
    assert turn is not None
    rounds = MirrorRounds(store, NO_CREDENTIALS)
    assert rounds.sync_next(lambda _: None)
    turn.release()
    assert not gone.exists()
    assert busy.exists()


def test_a_copy_outlives_a_fetch_that_fails_and_not_a_second_one(
    store: Store, source: Source
) -> None:
    follow(store, source)
    sync_mirror(store, "copy", NO_CREDENTIALS)
    copy = copy_of(store)
    source.breaks = True  # after the list
    for left in (True, False):
        git(source.folder, "commit", "-q", "--allow-empty", "-m", "more")
        for name in ("packed-refs.lock", "refs/heads/main.lock", "objects/pack/tmp_pack_x"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).touch()
        with pytest.raises(NotFound):
            sync_mirror(store, "copy", NO_CREDENTIALS)
        assert (copy / "HEAD").exists() == left
        assert not list(copy.rglob("*.lock"))
        assert not list(copy.rglob("tmp_*"))
    source.breaks = False
    sync_mirror(store, "copy", NO_CREDENTIALS)
    assert copy.exists()


def test_a_sync_after_one_that_was_ended_fetches_what_is_new(
    store: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(store, source)
    sync_mirror(store, "copy", NO_CREDENTIALS)
    copy = copy_of(store)
    git(source.folder, "commit", "-q", "--allow-empty", "-m", "more")
    monkeypatch.setattr(Errand, "clone", lambda *_: pytest.fail("copied whole again"))

    def stop(_: Progress) -> None:
        if source.asked.count("advertisement") > 3:
            raise Stopped("stopped")

    for _ in range(2):
        with pytest.raises(Stopped):
            sync_mirror(store, "copy", NO_CREDENTIALS, progress=stop)
        source.asked[:] = ["advertisement"] * 2
    (copy / "packed-refs.lock").touch()
    (copy / "refs" / "heads" / "main.lock").touch()
    sync_mirror(store, "copy", NO_CREDENTIALS)
    with store.journal.snapshot() as snapshot:
        ref = store.refs.get(snapshot, store.repository(snapshot, "copy"), b"refs/heads/main")
    assert ref is not None
    assert ref.target is not None
    assert ref.target.hex() == git(source.folder, "rev-parse", "main")


def test_a_mirror_that_is_brought_back_under_another_name_takes_pushes(
    store: Store, source: Source
) -> None:
    follow(store, source)
    sync_mirror(store, "copy", NO_CREDENTIALS)
    moment = clock.now_ms()
    restore_repository(store, None, "copy", new_name="then", at_ms=moment, control=silent_control())
    assert refs_of(store, "then") == refs_of(store, "copy")
    assert not Configuring(store).get("then").settings.mirror.url
    assert Mirrors(store).get("copy").url == source.url
    Repositories(store).delete("then")


def test_a_mirror_that_is_brought_back_from_a_backup_takes_pushes(
    store: Store, source: Source, tmp_path: Path
) -> None:
    follow(store, source)
    sync_mirror(store, "copy", NO_CREDENTIALS)
    create_backup(store, str(tmp_path / "backups"), control=silent_control())
    target = Target.open(str(tmp_path / "backups"))
    (backup,) = target.cut_ids()
    restore_repository(
        store, target, "copy", new_name="then", backup=backup, control=silent_control()
    )
    assert refs_of(store, "then") == refs_of(store, "copy")
    Repositories(store).delete("then")


def test_a_mirror_without_a_row_of_its_state_can_be_let_go(store: Store, source: Source) -> None:
    follow(store, source)
    with store.journal.snapshot() as snapshot:
        key = mirror_key(store.repository(snapshot, "copy").id)
    store.journal.commit_sync([], [Delete(key)])
    Mirrors(store).remove("copy")
    Repositories(store).delete("copy")
    Repositories(store).create("copy")
    with pytest.raises(MirrorMissing):
        Mirrors(store).remove("copy")
