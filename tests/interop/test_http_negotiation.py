"""Real git with a history of its own: many rounds, and what only some clients ask."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest
from reference.gits import extend_history, git, make_history, reachable
from served import Server, serving

from shardgit.node import create_store, open_store
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, and beside it a clone from before its last 10 commits with 400 of its own."""
    folder = make_history(tmp_path_factory.mktemp("rounds") / "origin", commits=15)
    git(folder.parent, "clone", "-q", str(folder), "own")
    own = folder.parent / "own"
    for branch in range(4):  # each with more than the client says in its first rounds
        git(own, "checkout", "-q", "-B", f"own{branch}", "origin/main")
        stream = b"".join(
            b"commit refs/heads/own%d\ncommitter A <a@b.c> %d +0000\ndata 1\nx\n%sM 644 inline f\ndata %d\n%d\n\n"
            % (
                branch,
                1_705_000_000 + n,
                b"" if n else b"from refs/heads/own%d^0\n" % branch,
                len(str(n)),
                n,
            )
            for n in range(100)
        )
        git(own, "fast-import", "--quiet", "--force", stdin=stream)
    extend_history(folder, commits=10, rand=random.Random(9), first=2_000)
    git(folder, "tag", "-am", "late", "late")
    return folder


@pytest.fixture(scope="module")
def server(source: Path) -> Iterator[Server]:
    data = source.parent / "data"
    create_store(data)
    with open_store(data) as store:
        import_repository(store, "demo", str(source))
    with serving(data, "--workers", "1") as running:
        yield running


@pytest.mark.parametrize("algorithm", ["consecutive", "skipping", "noop"])
@pytest.mark.parametrize("version", ["0", "2"])
def test_a_client_with_a_history_of_its_own_gets_what_it_lacks(
    server: Server, source: Path, tmp_path: Path, version: str, algorithm: str
) -> None:
    git(tmp_path, "clone", "-q", "--mirror", str(source.parent / "own"), "c.git")
    clone = tmp_path / "c.git"
    before = reachable(clone)
    words = ["-c", f"protocol.version={version}", "-c", f"fetch.negotiationAlgorithm={algorithm}"]
    words += ["-c", "fetch.unpackLimit=1", "fetch", "--progress", server.url("demo")]
    shown = git(clone, *words, "+refs/heads/*:refs/remotes/new/*", check=False)
    total = re.search(rb"Total (\d+)", shown)
    assert total is not None, shown
    wanted = reachable(source)
    assert wanted <= reachable(clone)
    if algorithm == "consecutive":  # the others say less of what they have, or nothing
        assert int(total[1]) <= len(wanted - before) + 5
    tag = git(source, "rev-parse", "late")  # followed by itself: its commit was sent
    assert git(clone, "rev-parse", "refs/tags/late") == tag
    git(clone, "fsck", "--strict")


def test_negotiation_alone_names_what_is_common(server: Server, source: Path) -> None:
    own = source.parent / "own"
    git(own, "config", "remote.shardgit.url", server.url("demo"))
    words = ("fetch", "--negotiate-only", "--negotiation-tip=own0", "shardgit")
    common = git(own, "-c", "protocol.version=2", *words).decode().split()
    assert git(own, "rev-parse", "origin/main").decode().strip() in common
    assert set(common) <= set(git(source, "rev-list", "--all").decode().split())


def test_server_options_are_taken(server: Server, tmp_path: Path) -> None:
    shown = git(tmp_path, "ls-remote", "-o", "a=b", "-o", "c", server.url("demo"), "HEAD")
    assert b"HEAD" in shown


def test_many_clones_at_once_are_all_whole(server: Server, source: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def clone(number: int) -> set[bytes]:
        version = number % 3
        words = ["-c", f"protocol.version={version}", "clone", "-q", "--mirror"]
        git(tmp_path, *words, server.url("demo"), f"c{number}")
        return reachable(tmp_path / f"c{number}")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(clone, range(16)))
    assert all(one == reachable(source) for one in found)
