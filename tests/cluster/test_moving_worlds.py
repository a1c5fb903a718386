"""Between one machine and a cluster: backups of either are restored into the other, also as of an earlier moment."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster.nodes import Nodes
from served import git, serving, shardgit, small_repository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcds import Etcds

pytestmark = pytest.mark.cluster


@pytest.fixture
def nodes(etcds: Etcds, s3_url: str, tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as opened:
        yield Nodes(tmp_path, etcds.endpoints, s3_url, opened)


def run(tmp_path: Path, *words: str) -> str:
    done = shardgit(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def into_cluster(tmp_path: Path, node: str, target: str, config: str, *words: str) -> None:
    """Restore a backup into the cluster of a node."""
    done = shardgit(
        *("backup", "restore", target, "--config", config, *words),
        cwd=tmp_path,
        environment={"SHARDGIT_DATA": str(tmp_path / node)},
    )
    assert done.returncode == 0, done.stderr


def refs(url: str) -> str:
    return git(Path("."), "ls-remote", url)


def test_from_one_machine_to_a_cluster_and_back(nodes: Nodes, tmp_path: Path) -> None:
    work = small_repository(tmp_path / "work", commits=20)
    run(tmp_path, "init", "data")
    for name in ("one", "two"):
        run(tmp_path, "repo", "import", name, str(work), "--data", "data")
    config, target = str(nodes.config("node")), str(tmp_path / "backups")
    with serving(tmp_path / "data") as server:
        run(tmp_path, "backup", "create", target, "--data", "data")
        # The long part, while it is served; then what has changed since.
        into_cluster(tmp_path, "node", target, config, "--prepare")
        git(work, "commit", "-q", "--allow-empty", "-m", "late")
        git(work, "push", "-q", server.url("one"), "main")
        expected = {name: refs(server.url(name)) for name in ("one", "two")}
    run(tmp_path, "backup", "create", target, "--data", "data")
    into_cluster(tmp_path, "node", target, config)
    node = nodes.start("node")
    assert {name: refs(node.url(name)) for name in ("one", "two")} == expected
    for name in ("one", "two"):
        git(tmp_path, "clone", "-q", node.url(name), f"clone-{name}")
        git(tmp_path / f"clone-{name}", "fsck", "--strict")
    # The log came, too; and pushes go on.
    assert run(tmp_path, "ref", "log", "one", "--server", node.grpc).count("\n") >= 2
    git(work, "commit", "-q", "--allow-empty", "-m", "in the cluster")
    git(work, "push", "-q", node.url("one"), "main")
    now = refs(node.url("one"))
    # And back.
    back = str(tmp_path / "back")
    nodes.command("node", "backup", "create", back)
    run(tmp_path, "backup", "restore", back, "--data", str(tmp_path / "again"))
    with serving(tmp_path / "again") as server:
        assert refs(server.url("one")) == now
        git(tmp_path, "clone", "-q", server.url("one"), "clone-again")
        git(tmp_path / "clone-again", "fsck", "--strict")


def test_a_cluster_and_one_of_its_repositories_as_they_were(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.start("node")
    work = small_repository(tmp_path / "work")
    nodes.command("node", "repo", "import", "demo", str(work))
    then_refs = refs(node.url("demo"))
    time.sleep(1.1)
    then = time.time()
    time.sleep(1.1)
    git(work, "commit", "-q", "--allow-empty", "-m", "later")
    git(work, "push", "-q", node.url("demo"), "main")
    assert refs(node.url("demo")) != then_refs
    target = str(tmp_path / "backups")
    nodes.command("node", "backup", "create", target)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(then))
    nodes.command(
        "node", "backup", "restore", target, "--repository", "demo", "--as", "then", "--at", at
    )
    assert refs(node.url("then")) == then_refs
    # The whole of it, into a cluster of another name.
    other = Nodes(tmp_path, nodes.endpoints, f"{nodes.url}/other", nodes._opened)
    config = str(other.config("other"))
    into_cluster(tmp_path, "other", target, config, "--at", at)
    served = other.start("other")
    assert refs(served.url("demo")) == then_refs
    again = shardgit(
        *("backup", "restore", target, "--config", config),
        cwd=tmp_path,
        environment={"SHARDGIT_DATA": str(tmp_path / "other")},
    )
    assert again.returncode == 1
    assert "not empty" in again.stderr
