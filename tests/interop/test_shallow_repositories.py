"""Stock git and repositories on the server that are shallow themselves, beside git's own server."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
from reference.gits import git, make_history, reachable, shallow_copy, shallow_ends
from served import Server, serving, shardgit

from shardgit.node import create_store, open_store
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop
VERSIONS = ["0", "1", "2"]


@pytest.fixture(scope="module", params=["sha1", "sha256"])
def origin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole repository."""
    folder = tmp_path_factory.mktemp("shallow") / "origin"
    return make_history(folder, commits=30, algorithm=str(request.param))


@pytest.fixture(scope="module")
def cut(origin: Path) -> Path:
    """The same repository with a history that ends early."""
    return shallow_copy(origin, origin.with_name("cut.git"), random.Random(3), ends=5)


@pytest.fixture(scope="module")
def server(origin: Path, cut: Path) -> Iterator[Server]:
    data = origin.with_name("data")
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "cut", str(cut))
        import_repository(store, "whole", str(origin))
    with serving(data, "--workers", "1") as running:
        yield running


def at(version: str) -> tuple[str, str]:
    return ("-c", f"protocol.version={version}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("depth", [(), ("--depth=2", "--no-single-branch"), ("--depth=30",)])
def test_clones_end_where_gits_do_and_are_sound(
    server: Server, cut: Path, tmp_path: Path, version: str, depth: tuple[str, ...]
) -> None:
    for name, url in (("ours", server.url("cut")), ("gits", f"file://{cut}")):
        git(tmp_path, *at(version), "clone", "-q", "--bare", *depth, url, name)
    ours, gits = tmp_path / "ours", tmp_path / "gits"
    assert shallow_ends(ours) == shallow_ends(gits)
    assert reachable(ours) == reachable(gits)
    git(ours, "fsck")
    for step in (("--depth=4",), ("--depth=8",), ("--unshallow",)):
        for folder in (ours, gits):
            git(folder, *at(version), "fetch", "-q", *step, "origin", check=False)
        assert shallow_ends(ours) == shallow_ends(gits), step
        assert reachable(ours) == reachable(gits), step
        git(ours, "fsck")


def test_a_whole_clone_takes_new_ends_only_when_it_says_so(
    server: Server, origin: Path, cut: Path, tmp_path: Path
) -> None:
    # Versions 0 and 1 of the protocol are another thing over HTTP, where the client gives up on all refs.
    version = "2"
    for name, url in (("ours", server.url("cut")), ("gits", f"file://{cut}")):
        git(tmp_path, "init", "-q", f"--object-format={format_of(origin)}", name)
        git(tmp_path / name, "remote", "add", "far", url)
        git(tmp_path / name, *at(version), "fetch", "-q", "far", check=False)
    ours, gits = tmp_path / "ours", tmp_path / "gits"
    refs = [git(one, "for-each-ref") for one in (ours, gits)]
    assert refs[0] == refs[1]
    assert not (ours / ".git" / "shallow").exists()
    for one in (ours, gits):
        git(one, *at(version), "fetch", "-q", "--update-shallow", "far")
    assert git(ours, "for-each-ref") == git(gits, "for-each-ref")
    assert shallow_ends(ours / ".git") == shallow_ends(gits / ".git")
    git(ours, "fsck")


def format_of(folder: Path) -> str:
    return git(folder, "rev-parse", "--show-object-format").decode().strip()


@pytest.mark.parametrize("version", VERSIONS)
def test_pushes_from_shallow_and_whole_clones(
    server: Server, origin: Path, tmp_path: Path, version: str
) -> None:
    name = f"pushed{version}"
    data = origin.with_name("data")

    def run(*words: str) -> None:
        done = shardgit(*words, "--data", str(data), cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    run("repo", "create", name, "--object-format", format_of(origin))
    client = tmp_path / "client"
    git(tmp_path, "clone", "-q", "--depth=3", f"file://{origin}", str(client))
    url = server.url(name)
    said = git(client, *at(version), "push", url, "HEAD:refs/heads/main", check=False)
    assert b"shallow update not allowed" in said
    assert not git(client, "ls-remote", url)
    run("repo", "config", name, "receive.shallow_update", "true")
    git(client, *at(version), "push", "-q", url, "HEAD:refs/heads/main")
    git(tmp_path, *at(version), "clone", "-q", "--bare", url, "again")
    assert shallow_ends(tmp_path / "again") == shallow_ends(client / ".git")
    git(tmp_path / "again", "fsck")
    # One who has it all pushes on top of what is shallow here.
    whole = tmp_path / "whole"
    git(tmp_path, "clone", "-q", str(origin), str(whole))
    (whole / "new").write_text("new")
    git(whole, "add", "-A")
    git(whole, "commit", "-qm", "new")
    git(whole, *at(version), "push", "-q", url, "HEAD:refs/heads/main")
    git(tmp_path / "again", *at(version), "fetch", "-q", url, "main:main")
    assert git(tmp_path / "again", "rev-parse", "main") == git(whole, "rev-parse", "HEAD")
    git(tmp_path / "again", "fsck")
    done = shardgit("repo", "verify", name, "--json", "--data", str(data), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["findings"] == []


def test_a_shallow_repository_is_imported_from_a_url(
    server: Server, origin: Path, cut: Path, tmp_path: Path
) -> None:
    data = origin.with_name("data")
    for number, url in enumerate((server.url("cut"), f"file://{cut}")):
        name, out = f"mirror{number}", tmp_path / f"out{number}"
        for words in (("import", name, url), ("export", name, str(out))):
            done = shardgit("repo", *words, "--data", str(data), cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert shallow_ends(out) == shallow_ends(cut)
        assert reachable(out) == reachable(cut)
        git(out, "fsck")


def test_it_is_shown_to_be_shallow(server: Server, cut: Path, tmp_path: Path) -> None:
    for name, ends in (("cut", len(shallow_ends(cut))), ("whole", 0)):
        words = ("repo", "show", name, "--server", server.grpc)
        done = shardgit(*words, "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["shallow_commits"] == ends
        said = shardgit(*words, cwd=tmp_path).stdout
        assert (f"history ends at {ends} commits" in said) == bool(ends)


def test_a_shallow_repository_offers_no_bundle(server: Server, tmp_path: Path) -> None:
    for version in ("0", "2"):
        git(
            tmp_path,
            *at(version),
            *("-c", "transfer.bundleURI=true", "clone", "-q", server.url("cut"), f"v{version}"),
        )
        git(tmp_path / f"v{version}", "fsck")
