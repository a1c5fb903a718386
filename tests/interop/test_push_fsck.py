"""A push with mistakes in its objects is refused as git's receive-pack refuses it, line by line."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, serving, shardgit

from shardgit.node import create_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from served import Server

pytestmark = pytest.mark.interop
WHO = b"A <a@b.c> 1700000000 +0000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fsck")
    create_store(folder / "data", shards=2)
    with serving(folder / "data") as running:
        yield running


class Two:
    """One repository here and one of git's, that take the same pushes under the same rules."""

    def __init__(self, server: Server, folder: Path, name: str) -> None:
        self.server, self.folder, self.name = server, folder, name
        self.work, self.bare = folder / "work", folder / "bare.git"
        self.run("repo", "create", name)
        git(folder, "init", "--quiet", str(self.work))
        git(folder, "init", "--quiet", "--bare", str(self.bare))
        for key, value in (("fsckObjects", "true"), ("unpackLimit", "1")):
            git(self.bare, "config", f"receive.{key}", value)

    def run(self, *words: str) -> None:
        done = shardgit(*words, "--server", self.server.grpc, cwd=self.folder)
        assert done.returncode == 0, done.stderr

    def override(self, message: str, severity: str) -> None:
        git(self.bare, "config", f"receive.fsck.{message}", severity)
        self.run("repo", "config", self.name, f"fsck.severities.{message}", severity)

    def skip(self, *oids: str) -> None:
        (self.folder / "skip").write_text("# known\n" + "\n".join(oids) + "\n")
        git(self.bare, "config", "receive.fsck.skipList", str(self.folder / "skip"))
        self.run("repo", "config", self.name, "fsck.skip_list", ",".join(oids))

    def store(self, type: str, data: bytes) -> str:
        words = ["git", "hash-object", "-t", type, "-w", "--literally", "--stdin"]
        done = subprocess.run(
            words,
            cwd=self.work,
            input=data,
            capture_output=True,
            check=True,
            env=clean_environment(),
        )
        return done.stdout.decode().strip()

    def commit(self, tree: str, author: bytes = WHO) -> str:
        """Store a commit of a tree."""
        lines = [b"tree " + tree.encode(), b"author " + author, b"committer " + WHO, b"", b"m\n"]
        return self.store("commit", b"\n".join(lines))

    def tree(self, *rows: tuple[str, bytes, str]) -> str:
        """Store a tree of (mode, name, id)."""
        return self.store(
            "tree",
            b"".join(
                mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in rows
            ),
        )

    def push(self, oid: str, ref: str = "refs/heads/main") -> bool:
        """Push to both and return whether they took it; they have to agree, in words too."""
        answers = []
        for url in (self.server.url(self.name), str(self.bare)):
            done = subprocess.run(
                ["git", "push", url, f"{oid}:{ref}"],
                cwd=self.work,
                env=clean_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            said = re.findall(r"^remote: (?:error|warning): (.*?) *$", done.stderr, re.M)
            answers.append((done.returncode, said))
            if done.returncode:
                assert "fsck error in packed object" in done.stderr, done.stderr
        assert answers[0] == answers[1]
        return answers[0][0] == 0


@pytest.fixture
def two(server: Server, request: pytest.FixtureRequest, tmp_path: Path) -> Two:
    return Two(server, tmp_path, f"f{abs(hash(request.node.nodeid))}")


def test_broken_objects_are_refused_in_gits_words(two: Two) -> None:
    blob = two.store("blob", b"text\n")
    good = two.tree(("100644", b"file", blob))
    bad_trees = [
        two.tree(("40000", b".GIT", good)),
        two.tree(("100644", b"a", blob), ("100644", b"a.b", blob), ("40000", b"a", good)),
        two.tree(("100644", b"b", blob), ("100644", b"a", blob)),
        two.tree(("040000", b"a", good)),
        two.tree(("120000", b".gitmodules", blob)),
    ]
    commits = [two.commit(tree) for tree in bad_trees]
    commits += [
        two.commit(good, b"A <a@b.c 1 +0000"),
        two.commit(good, b"A <a@b.c> 01700000000 +0000"),
        two.commit(good, b"A <a@b.c>1700000000 +0000"),
    ]
    for number, commit in enumerate(commits):
        assert not two.push(commit, f"refs/heads/b{number}")
    assert two.push(two.commit(good))


def test_attacks_by_gitmodules_are_refused_in_gits_words(two: Two) -> None:
    for number, text in enumerate(
        (b'[submodule "../x"]\n\turl = ../y\n', b'[submodule "x"]\n\turl = -u\n\tpath = -p\n')
    ):
        blob = two.store("blob", text)
        commit = two.commit(two.tree(("100644", b".gitmodules", blob)))
        assert not two.push(commit, f"refs/heads/m{number}")
    fine = two.store("blob", b'[submodule "x"]\n\turl = ../y\n\tpath = x\n')
    assert two.push(two.commit(two.tree(("100644", b".gitmodules", fine))))


def test_a_repository_says_what_it_lets_pass(two: Two) -> None:
    blob = two.store("blob", b"text\n")
    good = two.tree(("100644", b"file", blob))
    dateless = two.commit(good, b"A <a@b.c>1700000000 +0000")
    dotted = two.commit(two.tree(("40000", b".git", good)))
    assert not two.push(dateless)
    two.override("missingSpaceBeforeDate", "warn")
    assert two.push(dateless)
    assert not two.push(dotted, "refs/heads/dots")
    two.skip(git(two.work, "rev-parse", f"{dotted}^{{tree}}").strip())
    assert two.push(dotted, "refs/heads/dots")


def test_settings_that_git_would_not_take_are_refused(server: Server, two: Two) -> None:
    for key, value in (("noSuchThing", "warn"), ("hasDot", "info"), ("nulInHeader", "ignore")):
        words = ("repo", "config", two.name, f"fsck.severities.{key}", value)
        done = shardgit(*words, "--server", server.grpc, cwd=two.folder)
        assert done.returncode != 0
