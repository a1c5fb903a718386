"""Refs over gRPC: changed by compare-and-set, read back from the log, watched."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from itertools import count
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from reference.gits import git, make_history
from served import Server, serving

import shardgit
import shardgit.aio
from shardgit.client import ANY, RefUpdate
from shardgit.errors import (
    Conflict,
    InvalidArgument,
    InvalidRefName,
    LogPositionUnknown,
    ObjectMissing,
    Refused,
    RepositoryMissing,
    Unavailable,
)
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.service.configuring import Configuring
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories
from shardgit.service.watching import Watches
from shardgit.v1 import ref_pb2, ref_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from shardgit.aio import RefLogEntry
    from shardgit.client import Client, Repo
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
MAIN = b"refs/heads/main"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_history(tmp_path_factory.mktemp("refs") / "work", commits=12)
    git(made, "tag", "-a", "-m", "x", "annotated", "main~1")
    return made


@pytest.fixture(scope="module")
def server(work: Path) -> Iterator[Server]:
    data = work.parent / "data"
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "demo", str(work))
        import_repository(store, "guarded", str(work))
        Configuring(store).update("guarded", {"receive.deny_non_fast_forwards": True})
    with serving(data, "--workers", "2") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with shardgit.connect(server.grpc) as opened:
        yield opened


@pytest.fixture
def repo(client: Client, request: pytest.FixtureRequest) -> Repo:
    name = f"t/{request.node.name.replace('[', '-').strip(']')}"
    client.fork("demo", name)
    return client.repo(name)


def commit(work: Path, revision: str) -> ObjectId:
    return ObjectId(bytes.fromhex(git(work, "rev-parse", revision).decode()))


def test_all_updates_are_made_or_none(repo: Repo, work: Path) -> None:
    head, before = commit(work, "main"), commit(work, "main~3")
    repo.update_refs(
        [RefUpdate(MAIN, head, before), RefUpdate(b"refs/heads/new", None, head)], message="moved"
    )
    assert repo.ref(MAIN.decode()).target == before
    assert repo.ref("refs/heads/new").target == head
    with pytest.raises(Conflict) as lost:
        repo.update_refs([RefUpdate(b"refs/heads/fresh", None, head), RefUpdate(MAIN, head, head)])
    assert lost.value.facts["ref"] == "refs/heads/main"
    assert lost.value.facts["actual"] == before.hex()
    assert {ref.name for ref in repo.refs("refs/heads/")} >= {MAIN, b"refs/heads/new"}
    assert b"refs/heads/fresh" not in {ref.name for ref in repo.refs()}
    repo.update_refs([RefUpdate(b"refs/heads/new", head, None)])
    (last, *_) = repo.ref_log("refs/heads/new")
    assert (last.changes[0].old, last.changes[0].new) == (head, None)


def test_what_can_be_done_is_done_and_the_rest_is_told(repo: Repo, work: Path) -> None:
    head = commit(work, "main")
    results = repo.update_refs(
        [
            RefUpdate(b"refs/heads/a", None, head),
            RefUpdate(b"refs/heads/a/b", None, head),
            RefUpdate(MAIN, None, head),
            RefUpdate(b"refs/heads/..", ANY, head),
            RefUpdate(b"refs/heads/gone", ANY, ObjectId(b"1" * 20)),
            RefUpdate(b"refs/heads/short", ANY, ObjectId(b"1")),
            RefUpdate(b"refs/heads/tree", ANY, commit(work, "main^{tree}")),
            RefUpdate(b"refs/tags/tree", ANY, commit(work, "main^{tree}")),
        ],
        atomic=False,
    )
    assert [type(one.error) for one in results] == [
        type(None),
        Refused,
        Conflict,
        InvalidRefName,
        ObjectMissing,
        InvalidArgument,
        InvalidArgument,
        type(None),
    ]
    assert repo.ref("refs/tags/tree").target == commit(work, "main^{tree}")


def test_symbolic_refs_and_head_are_set_and_compared(repo: Repo, work: Path) -> None:
    head = commit(work, "main")
    repo.update_ref("refs/heads/next", head)
    repo.update_ref("HEAD", None, symbolic=b"refs/heads/next")
    assert repo.ref("HEAD").symbolic == b"refs/heads/next"
    with pytest.raises(Conflict):
        repo.update_refs([RefUpdate(b"HEAD", ANY, None, None, MAIN, old_symbolic=MAIN)])
    repo.update_refs([RefUpdate(b"HEAD", ANY, None, None, MAIN, old_symbolic=b"refs/heads/next")])
    assert repo.ref("HEAD").symbolic == MAIN
    repo.update_ref("refs/remotes/origin/HEAD", None, symbolic=b"refs/heads/unborn")
    assert repo.ref("refs/remotes/origin/HEAD").target is None
    repo.update_ref("HEAD", head)  # detached
    assert (repo.ref("HEAD").symbolic, repo.ref("HEAD").target) == (None, head)
    with pytest.raises(InvalidArgument):
        repo.update_ref("HEAD", None)


def test_an_annotated_tag_is_peeled_by_the_server(repo: Repo, work: Path) -> None:
    tag = repo.ref("refs/tags/annotated")
    assert tag.target is not None
    assert tag.peeled == commit(work, "main~1")
    repo.update_ref("refs/tags/copy", tag.target)
    assert repo.ref("refs/tags/copy").peeled == tag.peeled


def test_the_policy_of_pushes_holds(client: Client, work: Path) -> None:
    guarded = client.repo("guarded")
    with pytest.raises(Refused) as refused:
        guarded.update_ref(MAIN, commit(work, "main~2"))
    assert "non-fast-forward" in str(refused.value)
    with pytest.raises(Refused) as refused:
        guarded.update_ref(MAIN, None)
    assert "deletion of the current branch" in str(refused.value)


def test_restoring_obeys_the_rules_unless_they_are_overridden(
    client: Client, work: Path, tmp_path: Path
) -> None:
    guarded = client.repo("guarded")
    first, tip = commit(work, "main~1"), commit(work, "main")
    guarded.update_refs([RefUpdate(b"refs/heads/back", None, first)])
    guarded.update_refs([RefUpdate(b"refs/heads/back", first, tip)])
    with pytest.raises(Refused, match="non-fast-forward"):
        guarded.restore_ref(b"refs/heads/back", back=1)
    assert guarded.restore_ref(b"refs/heads/back", back=1, override=True).new == first
    rules = [{"pattern": "refs/heads/kept", "create": False, "advice": "ask the release team"}]
    guarded.update_refs([RefUpdate(b"refs/heads/kept", None, tip)])
    guarded.update_refs([RefUpdate(b"refs/heads/kept", tip, None)])
    guarded.update_settings({"receive.protected_refs": rules})
    with pytest.raises(Refused, match="ask the release team"):
        guarded.restore_ref(b"refs/heads/kept", back=1)
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    hooks = [{"kind": "program", "event": "pre_receive", "target": str(hook)}]
    guarded.update_settings({"receive.protected_refs": None, "hooks": hooks})
    with pytest.raises(Refused):
        guarded.restore_ref(b"refs/heads/kept", back=1)
    assert guarded.restore_ref(b"refs/heads/kept", back=1, override=True).new == tip
    guarded.update_settings({"hooks": None})


def test_an_object_of_a_sibling_alone_is_no_target(
    client: Client, server: Server, repo: Repo, work: Path, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", server.url(repo.name), "c")
    clone = tmp_path / "c"
    (clone / "f").write_text("of the fork\n")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "of the fork")
    git(clone, "push", "-q", "origin", "HEAD")
    mine = commit(clone, "HEAD")
    assert repo.ref(MAIN.decode()).target == mine
    messages = []
    for oid in (mine, ObjectId(b"1" * 20)):
        with pytest.raises(ObjectMissing) as missing:
            client.repo("demo").update_ref("refs/heads/stolen", oid)
        messages.append(str(missing.value).replace(oid.hex(), ""))
    assert messages[0] == messages[1]


def test_a_mirror_of_many_refs_goes_in_one_commit(repo: Repo, work: Path) -> None:
    head = commit(work, "main")
    updates = [RefUpdate(b"refs/many/%05d" % n, None, head) for n in range(5_000)]
    results = repo.update_refs(updates)
    assert [one.name for one in results] == [update.name for update in updates]
    (entry,) = repo.ref_log(limit=1)
    assert (entry.change_count, len(entry.changes)) == (5_000, 100)
    (entry,) = repo.ref_log("refs/many/04321")
    assert [change.name for change in entry.changes] == [b"refs/many/04321"]
    assert sum(1 for _ in repo.refs("refs/many/")) == 5_000


def test_streams_that_break_the_rules_are_refused(server: Server) -> None:
    async def run() -> list[str]:
        reasons = []
        header = ref_pb2.UpdateRefsRequest(
            header=ref_pb2.UpdateRefsRequest.Header(repository="demo", atomic=True)
        )
        both = ref_pb2.RefUpdate(name=MAIN, old=b"", old_symbolic=MAIN)
        mixed = ref_pb2.UpdateRefsRequest(data=ref_pb2.UpdateRefsRequest.Data(updates=[both]))
        async with shardgit.aio.connect(server.grpc) as client:
            for requests in ([], [header, header], [mixed], [header, mixed]):

                async def source(
                    some: list[ref_pb2.UpdateRefsRequest] = requests,
                ) -> AsyncIterator[ref_pb2.UpdateRefsRequest]:
                    for one in some:
                        yield one

                with pytest.raises(InvalidArgument) as refused:
                    async for _ in client.stream(
                        ref_pb2_grpc.RefServiceStub, "UpdateRefs", source()
                    ):
                        pass
                reasons.append(str(refused.value))
        return reasons

    reasons = asyncio.run(run())
    assert len(reasons) == 4
    assert "two headers" in reasons[1]
    assert "compares both" in reasons[3]


def test_the_log_tells_who_why_when_and_is_paged(repo: Repo, work: Path) -> None:
    for n in range(5):
        repo.update_ref("refs/heads/x", commit(work, f"main~{n}"), message=f"step {n}")
        repo.update_ref("refs/heads/y", commit(work, f"main~{n}"))
    entries = list(repo.ref_log("refs/heads/x"))
    assert [entry.message for entry in entries] == [f"step {n}" for n in (4, 3, 2, 1, 0)]
    assert [entry.changes[0].new for entry in entries] == [
        commit(work, f"main~{n}") for n in (4, 3, 2, 1, 0)
    ]
    assert all(entry.actor == "anonymous" for entry in entries)
    assert all(entry.address == "127.0.0.1" for entry in entries)
    times = [entry.time_ms for entry in entries]
    assert times == sorted(times, reverse=True)
    assert [entry.sequence for entry in repo.ref_log(limit=3)] == [11, 10, 9]
    everything = list(repo.ref_log())
    assert [entry.sequence for entry in everything] == list(range(11, 0, -1))
    assert everything[-1].message == "fork of demo"


class Watcher(threading.Thread):
    """Watches until it has seen so many change-sets whole."""

    def __init__(
        self,
        server: Server,
        name: str,
        after: int | None,
        wanted: int,
        prefixes: tuple[bytes, ...] = (),
    ) -> None:
        super().__init__()
        self.seen: list[RefLogEntry] = []
        self.error: Exception | None = None
        self.ready = threading.Event()
        self._words = (server, name, after, wanted, prefixes)
        self.start()
        assert self.ready.wait(30)

    def run(self) -> None:
        server, name, after, wanted, prefixes = self._words
        try:
            with shardgit.connect(server.grpc) as client:
                watch = client.repo(name).watch_refs(after, prefixes=prefixes, heartbeats=True)
                with contextlib.closing(watch):
                    for entry in watch:
                        self.ready.set()
                        if entry.sequence:
                            self.seen.append(entry)
                        if sum(not one.more for one in self.seen) == wanted:
                            return
        except Exception as error:
            self.error = error
            self.ready.set()


def test_watchers_get_each_change_once_and_in_order_from_any_place(
    repo: Repo, server: Server, work: Path
) -> None:
    oids = [commit(work, f"main~{n}") for n in range(4)]
    repo.update_ref("refs/heads/x", oids[0])
    watchers = [
        Watcher(server, repo.name, after, wanted) for after, wanted in ((None, 8), (0, 10), (2, 8))
    ]
    for n in range(8):  # clients have two connections, each to a worker of its own
        repo.update_ref("refs/heads/x", oids[(n + 1) % 4])
    for watcher, first in zip(watchers, (3, 1, 3), strict=True):
        watcher.join(30)
        assert watcher.error is None
        assert [entry.sequence for entry in watcher.seen] == list(range(first, 11))
        assert all(entry.resume_token == entry.sequence for entry in watcher.seen)
    moves = [(entry.changes[0].old, entry.changes[0].new) for entry in watchers[0].seen]
    assert moves == [(oids[n % 4], oids[(n + 1) % 4]) for n in range(8)]


def test_a_large_change_comes_in_parts_and_prefixes_leave_the_rest_out(
    repo: Repo, server: Server, work: Path
) -> None:
    head = commit(work, "main")
    whole = Watcher(server, repo.name, None, 1)
    some = Watcher(server, repo.name, None, 2, (b"refs/many/000", MAIN))
    repo.update_refs([RefUpdate(b"refs/many/%05d" % n, None, head) for n in range(2_500)])
    repo.update_ref("refs/heads/y", head)
    repo.update_ref(MAIN, commit(work, "main~1"))
    for watcher in (whole, some):
        watcher.join(30)
        assert watcher.error is None
    assert [len(entry.changes) for entry in whole.seen] == [1_000, 1_000, 500]
    assert [entry.resume_token for entry in whole.seen] == [1, 1, 2]
    assert len({change.name for entry in whole.seen for change in entry.changes}) == 2_500
    assert [len(entry.changes) for entry in some.seen] == [100, 1]
    assert [entry.sequence for entry in some.seen] == [2, 4]


def test_places_that_no_log_has_are_refused(repo: Repo, server: Server) -> None:
    watcher = Watcher(server, repo.name, 99, 1)
    watcher.join(30)
    assert isinstance(watcher.error, LogPositionUnknown)
    watcher = Watcher(server, "no/such", None, 1)
    watcher.join(30)
    assert isinstance(watcher.error, RepositoryMissing)


def test_a_watch_follows_a_rename_and_ends_with_the_repository(
    repo: Repo, client: Client, server: Server, work: Path
) -> None:
    watcher = Watcher(server, repo.name, None, 99)
    client.rename(repo.name, "t/renamed")
    client.repo("t/renamed").update_ref("refs/heads/z", commit(work, "main"))
    client.delete("t/renamed")
    watcher.join(30)
    assert isinstance(watcher.error, RepositoryMissing)
    assert [len(entry.changes) for entry in watcher.seen] == [0, 1, 0]
    assert [entry.message for entry in watcher.seen][2] == "delete"


def test_a_watch_goes_on_from_its_token_behind_a_restart(work: Path, tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        import_repository(store, "r", str(work))
    with serving(tmp_path / "s", "--workers", "1") as first:
        watcher = Watcher(first, "r", 0, 99)
        with shardgit.connect(first.grpc) as client:
            client.repo("r").update_ref("refs/heads/a", commit(work, "main"))
        assert first.stop() == 0
        watcher.join(30)
        assert isinstance(watcher.error, Unavailable)
    token = watcher.seen[-1].resume_token if watcher.seen else 0
    with open_store(tmp_path / "s") as store:
        import_repository(store, "r", str(work), overwrite=True)  # takes refs/heads/a away again
    with serving(tmp_path / "s", "--workers", "1") as second:
        later = Watcher(second, "r", token, 1)
        later.join(30)
    seen = [entry.sequence for entry in [*watcher.seen, *later.seen]]
    assert seen == list(range(1, len(seen) + 1))
    assert later.seen[-1].changes[0].new is None


def test_a_deletion_between_two_looks_is_told_with_its_entry(tmp_path: Path) -> None:
    """Whatever the moment between two jobs of a watch at which the repository goes."""

    async def watched(store: Store, moment: int) -> list[str]:
        repositories = Repositories(store)
        repositories.create("w")
        run, jobs = store.workers.run, count(1)
        told: list[str] = []

        async def deleting(call: Callable[..., object], *words: object) -> object:
            if next(jobs) == moment:
                repositories.delete("w")
            return await run(call, *words)

        with patch.object(store.workers, "run", deleting), pytest.raises(RepositoryMissing):
            async for one in Watches(store).watch("w", heartbeat_s=0.01):
                if one.entry is not None:
                    told.append(one.entry.message)
        return told

    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        for moment in range(2, 8):
            assert asyncio.run(watched(store, moment)) == ["delete"], moment
