"""A repository goes in, real clients take it out again: git over v0 and v2, dulwich, libgit2, and gRPC."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from reference.gits import extend_history, git, make_history, reachable, refs

import shardgit
from shardgit.errors import ObjectMissing, RefMissing, RepositoryMissing
from shardgit.node import create_store, open_store
from shardgit.operate.verify import verify_repository
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop


class Server:
    """A server process on free ports."""

    def __init__(self, store: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "shardgit",
            "serve",
            "--data",
            str(store),
            "--workers",
            "2",
        ]
        addresses = [
            word for key in ("http", "ssh", "grpc", "admin") for word in (f"--{key}", "127.0.0.1:0")
        ]
        self.process = subprocess.Popen(
            [*command, *addresses], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        text = ""
        deadline = time.monotonic() + 60
        assert self.process.stdout is not None
        while "gRPC" not in text:
            assert time.monotonic() < deadline, text
            if select.select([self.process.stdout], [], [], 1)[0]:
                text += os.read(self.process.stdout.fileno(), 4096).decode()
            assert self.process.poll() is None, (
                self.process.stderr and self.process.stderr.read().decode()
            )
        self.http, self.ssh, self.grpc, self.admin = re.findall(r"127\.0\.0\.1:\d+", text)[:4]

    def url(self, name: str) -> str:
        return f"http://{self.http}/{name}.git"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module", params=["sha1", "sha256"])
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(algorithm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_history(tmp_path_factory.mktemp("source") / "work", algorithm=algorithm)
    git(folder, "repack", "-dq", "--depth=30")  # some packed, some loose
    (folder / "late").write_text("late")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "late", date=1_701_000_000)
    return folder


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "data"
    create_store(folder, shards=3)
    with open_store(folder) as opened:
        done = import_repository(opened, "team/demo", str(source))
        assert done.created
        assert done.objects == len(reachable(source))
    return folder


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    running = Server(store)
    yield running
    running.stop()


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_git_clones_the_same_objects_and_refs(
    server: Server, source: Path, tmp_path: Path, version: str
) -> None:
    git(
        tmp_path,
        "-c",
        f"protocol.version={version}",
        "clone",
        "-q",
        "--mirror",
        server.url("team/demo"),
        "c.git",
    )
    clone = tmp_path / "c.git"
    assert reachable(clone) == reachable(source)
    assert refs(clone) == refs(source)
    assert git(clone, "symbolic-ref", "HEAD") == git(source, "symbolic-ref", "HEAD")
    git(clone, "fsck", "--strict", "--full")


def test_a_work_tree_clone_checks_out(server: Server, source: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", server.url("team/demo"), "work")
    assert git(tmp_path / "work", "ls-tree", "-r", "HEAD") == git(source, "ls-tree", "-r", "HEAD")
    assert git(tmp_path / "work", "status", "--porcelain") == b""


@pytest.mark.parametrize("version", ["0", "2"])
def test_a_single_branch_clone_holds_exactly_its_closure(
    server: Server, source: Path, tmp_path: Path, version: str
) -> None:
    words = [
        "clone",
        "-q",
        "--bare",
        "--single-branch",
        "--no-tags",
        "-b",
        "other",
        server.url("team/demo"),
        "one.git",
    ]
    git(tmp_path, "-c", f"protocol.version={version}", *words)
    lines = git(source, "rev-list", "--objects", "refs/heads/other").splitlines()
    everything = git(
        tmp_path / "one.git", "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"
    ).split()
    assert set(everything) == {line.split(b" ")[0] for line in lines}


@pytest.mark.parametrize("version", ["0", "2"])
def test_fetch_after_a_second_import_brings_only_what_is_new(
    algorithm: str, tmp_path: Path, version: str
) -> None:
    origin = make_history(tmp_path / "origin", algorithm=algorithm, seed=7)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        import_repository(opened, "demo", str(origin))
    running = Server(tmp_path / "data")
    try:
        git(
            tmp_path,
            "-c",
            f"protocol.version={version}",
            "clone",
            "-q",
            "--mirror",
            running.url("demo"),
            "c.git",
        )
        before = reachable(tmp_path / "c.git")
        extend_history(origin, commits=10, rand=random.Random(5), first=1000)
        git(origin, "tag", "-am", "new", "v2.0")
        git(origin, "branch", "-D", "-q", "other")
        with open_store(tmp_path / "data") as opened:
            done = import_repository(opened, "demo", str(origin))
            assert done.objects == len(reachable(origin) - before)
        shown = git(
            tmp_path / "c.git",
            "-c",
            f"protocol.version={version}",
            "-c",
            "fetch.unpackLimit=1",
            "fetch",
            "-p",
            "--progress",
            check=False,
        )
        clone = tmp_path / "c.git"
        assert reachable(clone) >= reachable(origin)
        assert refs(clone) == refs(origin)
        git(clone, "fsck", "--strict")
        total = re.search(rb"Total (\d+)", shown)
        assert total is not None, shown
        assert int(total[1]) <= len(reachable(origin) - before) + 30, shown
        again = git(clone, "-c", f"protocol.version={version}", "fetch", "--progress", check=False)
        assert b"Total" not in again
    finally:
        running.stop()


def test_ls_remote_shows_head_peeled_tags_and_prefixes(
    server: Server, source: Path, tmp_path: Path
) -> None:
    shown = git(tmp_path, "ls-remote", server.url("team/demo")).decode().splitlines()
    want = git(source, "ls-remote", ".").decode().splitlines()
    assert sorted(shown) == sorted(want)
    only = (
        git(tmp_path, "ls-remote", "--tags", server.url("team/demo"), "v1*").decode().splitlines()
    )
    assert [line.split("\t")[1] for line in only] == ["refs/tags/v1.0", "refs/tags/v1.0^{}"]
    symbolic = git(tmp_path, "ls-remote", "--symref", server.url("team/demo"), "HEAD").decode()
    assert "ref: refs/heads/main\tHEAD" in symbolic


def test_an_empty_repository_clones_with_its_unborn_head(
    store: Path, server: Server, algorithm: str, tmp_path: Path
) -> None:
    with shardgit.connect(server.grpc) as client:
        client.create("empty", object_format=algorithm)
    for version in ("0", "2"):
        shown = git(
            tmp_path,
            "-c",
            f"protocol.version={version}",
            "clone",
            server.url("empty"),
            f"e{version}",
            check=False,
        )
        assert b"empty repository" in shown
    assert git(tmp_path / "e2", "symbolic-ref", "HEAD") == b"refs/heads/main\n"


def test_dulwich_clones(server: Server, source: Path, algorithm: str, tmp_path: Path) -> None:
    if algorithm != "sha1":
        pytest.skip("dulwich's client speaks SHA-1")
    from dulwich import porcelain

    with open(os.devnull, "wb") as nowhere:
        porcelain.clone(
            server.url("team/demo"), str(tmp_path / "d.git"), bare=True, errstream=nowhere
        ).close()
    head = git(source, "rev-parse", "main")
    assert git(tmp_path / "d.git", "rev-parse", "HEAD") == head
    git(tmp_path / "d.git", "fsck", "--strict")


def test_libgit2_clones(server: Server, source: Path, algorithm: str, tmp_path: Path) -> None:
    if algorithm != "sha1":
        pytest.skip("libgit2 speaks SHA-1")
    import pygit2

    pygit2.clone_repository(server.url("team/demo"), str(tmp_path / "p.git"), bare=True)
    assert git(tmp_path / "p.git", "rev-parse", "HEAD") == git(source, "rev-parse", "main")
    git(tmp_path / "p.git", "fsck", "--strict")


def test_objects_over_grpc_are_those_of_cat_file(server: Server, source: Path) -> None:
    ids = sorted(bytes.fromhex(line.decode()) for line in reachable(source))
    names = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
    asked = b"".join(oid.hex().encode() + b"\n" for oid in ids)
    want = git(source, "cat-file", "--batch", stdin=asked)
    with shardgit.connect(server.grpc) as client:
        repo = client.repo("team/demo")
        got = []
        for found in repo.objects(ids):
            assert found is not None
            got.append(
                b"%s %s %d\n%s\n"
                % (found.id.hex().encode(), names[found.type], found.size, found.data)
            )
        assert b"".join(got) == want
        absent = bytes(len(ids[0]))
        assert [one is None for one in repo.objects([absent, ids[0], absent])] == [
            True,
            False,
            True,
        ]
        assert {fact.id for fact in repo.list_objects()} == set(ids)
        facts = repo.info([*ids, absent])
        assert facts[-1] is None
        assert [fact.id for fact in facts if fact] == ids


def test_commits_trees_and_paths_over_grpc_are_gits(server: Server, source: Path) -> None:
    with shardgit.connect(server.grpc) as client:
        repo = client.repo("team/demo")
        log = [commit.id.hex() for commit in repo.log("main")]
        assert log == git(source, "log", "--format=%H", "main").decode().split()
        few = [commit.id.hex() for commit in repo.log("main", "^main~4", limit=7)]
        assert few == git(source, "log", "-7", "--format=%H", "main", "^main~4").decode().split()
        for revision in ("HEAD", "v1.0"):
            deep = git(source, "ls-tree", "-r", "--name-only", revision, "sub").decode().split()[-1]
            assert repo.read(revision, deep) == git(source, "show", f"{revision}:{deep}")
        rows = [
            f"{row.mode:06o} {row.id.hex()}\t{row.path.decode()}"
            for row in repo.tree("HEAD", recursive=True)
        ]
        shown = git(source, "ls-tree", "-rz", "HEAD").decode().rstrip("\0").split("\0")
        assert rows == [line.replace(" blob ", " ") for line in shown]
        bases = [oid.hex() for oid in repo.merge_base("side", "other")]
        assert bases == git(source, "merge-base", "--all", "side", "other").decode().split()
        assert repo.is_ancestor("main~3", "main")
        assert not repo.is_ancestor("main", "main~3")
        for text in (
            "main~2^{tree}",
            "v1.0^{commit}",
            "nested",
            "HEAD:sub",
            "@~1",
            "refs/heads/side^",
            git(source, "rev-parse", "main~7").decode()[:12],
        ):
            facts, _ = repo.open(text)
            assert facts.id.hex() == git(source, "rev-parse", text).decode().strip(), text
        with pytest.raises(RefMissing):
            repo.open("nothing-there")
        with pytest.raises(ObjectMissing):
            repo.open("0" * len(log[0]))
        with pytest.raises(RepositoryMissing):
            client.repo("nobody").stats()


def test_export_is_a_repository_that_fsck_accepts(
    store: Path, source: Path, tmp_path: Path
) -> None:
    from shardgit.service.exporting import export_repository

    with open_store(store) as opened:
        done = export_repository(opened, "team/demo", tmp_path / "out.git")
    git(tmp_path / "out.git", "fsck", "--strict", "--full")
    assert done.objects == len(reachable(source))
    assert reachable(tmp_path / "out.git") == reachable(source)
    assert refs(tmp_path / "out.git") == refs(source)


def test_verify_finds_everything_whole(store: Path, source: Path) -> None:
    from shardgit.operate.verify import verify_repository

    with open_store(store) as opened:
        report = verify_repository(opened, "team/demo")
    assert report.objects == len(reachable(source))
    assert report.bad == ()


def test_unreachable_objects_of_the_source_are_left_out(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    git(origin, "checkout", "-q", "-b", "gone")
    (origin / "secret").write_text("secret")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "secret")
    secret = git(origin, "rev-parse", "HEAD:secret").decode().strip()
    git(origin, "checkout", "-q", "main")
    git(origin, "branch", "-qD", "gone")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        done = import_repository(opened, "demo", str(origin))
        assert done.objects == len(reachable(origin))
        assert done.objects_unreachable >= 3
        from shardgit.service.reading import Reading

        with pytest.raises(ObjectMissing):
            Reading(opened, "demo").resolve(secret)


def test_an_object_that_no_ref_reaches_any_more_is_not_served(tmp_path: Path) -> None:
    origin = make_history(tmp_path / "origin", commits=12)
    git(origin, "checkout", "-q", "-b", "gone")
    (origin / "secret").write_text("secret")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "secret")
    secret = git(origin, "rev-parse", "HEAD").decode().strip()
    git(origin, "checkout", "-q", "main")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        import_repository(opened, "demo", str(origin))
        git(origin, "branch", "-qD", "gone")
        import_repository(opened, "demo", str(origin))
    running = Server(tmp_path / "data")
    try:
        git(tmp_path, "init", "-q", "--bare", "c.git")
        for version in ("0", "2"):
            shown = git(
                tmp_path / "c.git",
                "-c",
                f"protocol.version={version}",
                "fetch",
                running.url("demo"),
                secret,
                check=False,
            )
            assert b"not our ref" in shown or b"unadvertised" in shown, shown
        git(tmp_path, "clone", "-q", "--mirror", running.url("demo"), "m.git")
        assert secret.encode() not in git(
            tmp_path / "m.git", "cat-file", "--batch-all-objects", "--batch-check"
        )
        with shardgit.connect(running.grpc) as client:
            assert list(client.repo("demo").objects([bytes.fromhex(secret)])) == [None]
    finally:
        running.stop()


def test_a_blob_larger_than_a_block_comes_back(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    noise = random.Random(3).randbytes(20 << 20)
    (origin / "big").write_bytes(noise)
    (origin / "zeros").write_bytes(bytes(40 << 20))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "big")
    (origin / "big").write_bytes(noise + b"a little more")
    git(origin, "commit", "-qam", "bigger")
    git(origin, "repack", "-adfq")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        import_repository(opened, "demo", str(origin))
    running = Server(tmp_path / "data")
    try:
        git(tmp_path, "clone", "-q", "--mirror", running.url("demo"), "c.git")
        git(tmp_path / "c.git", "fsck", "--strict")
        assert reachable(tmp_path / "c.git") == reachable(origin)
        with shardgit.connect(running.grpc) as client:
            assert client.repo("demo").read("HEAD~1", "big") == noise
            assert client.repo("demo").read("HEAD", "big") == noise + b"a little more"
            ids = [
                bytes.fromhex(git(origin, "rev-parse", f"HEAD:{name}").decode())
                for name in ("zeros", "big")
            ]
            assert [one.size for one in client.repo("demo").objects(ids) if one] == [
                40 << 20,
                (20 << 20) + 13,
            ]
    finally:
        running.stop()


def test_a_delta_outlives_its_unreachable_base(tmp_path: Path) -> None:
    """Git packs the newest version whole; once that is unreachable, what rests on it is written whole."""
    origin = make_history(tmp_path / "origin", commits=12)
    text = "\n".join(f"line {number} {number * number}" for number in range(2_000))
    (origin / "large").write_text(text)
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "kept")
    (origin / "large").write_text(text + "\nand more\n")
    git(origin, "commit", "-qam", "dropped")
    git(origin, "repack", "-adfq")
    git(origin, "reset", "-q", "--hard", "HEAD~1")
    git(origin, "reflog", "expire", "--expire=now", "--all")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        result = import_repository(store, "demo", str(origin))
        assert result.objects_unreachable >= 3
        assert verify_repository(store, "demo").bad == ()
