"""The flows of the interop matrix. C git judges what every client left behind, here and on the server."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import served
from interop.clients import Client, Failed, GitClient, Unsupported, run

from shardgit.oid import HashKind
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shardgit.service.store import Store

MAIN = "refs/heads/main"


@dataclass(slots=True)
class Stage:
    """Where flows play: a served store, a source repository for each hash, a folder for clones."""

    store: Store
    server: served.Server
    sources: dict[HashKind, Path]
    work: Path
    count: int = 0

    def folder(self) -> Path:
        """Return a new place for a clone."""
        self.count += 1
        return self.work / f"clone-{self.count}"

    def repository(self, kind: HashKind = HashKind.SHA1) -> str:
        """Return the name of a new repository with the source's history."""
        self.count += 1
        name = f"r{self.count}"
        import_repository(self.store, name, str(self.sources[kind]))
        return name

    def url(self, client: Client, name: str) -> str:
        """Return a repository's URL for a client's transport."""
        if client.transport == "ssh":
            return f"ssh://git@{self.server.ssh}/{name}.git"
        if client.transport == "shardgit":
            return f"shardgit://{self.server.grpc}/{name}"
        return self.server.url(name)

    def listed(self, name: str) -> dict[str, str]:
        """Return a repository's refs as the judge sees them."""
        lines = judged("ls-remote", self.server.url(name)).splitlines()
        return {ref: oid for oid, ref in (line.split("\t") for line in lines)}


def judged(*words: str, cwd: Path | None = None) -> str:
    """Run the judge, the machine's own git; Failed with its words."""
    done = run(["git", *words], cwd=cwd)
    if done.returncode:
        raise Failed(f"git {words[0]}: {' / '.join(done.stderr.strip().splitlines()[-2:])}"[:300])
    return done.stdout.strip()


def expect(fact: bool, otherwise: str) -> None:
    """Raise Failed unless it is so."""
    if not fact:
        raise Failed(otherwise)


def whole(folder: Path, *, tip: str) -> None:
    """Check a clone: main's commit, and every object that it needs."""
    expect(judged("rev-parse", "HEAD", cwd=folder) == tip, "HEAD is another commit")
    judged("fsck", "--full", "--strict", cwd=folder)
    expect(not judged("status", "--porcelain", cwd=folder), "the work tree differs from HEAD")


def commit(folder: Path, name: str, text: str = "more\n") -> str:
    """Add a file in a clone; return the commit."""
    (folder / name).write_text(text)
    served.git(folder, "add", name)
    served.git(folder, "commit", "--quiet", "-m", f"add {name}")
    return served.git(folder, "rev-parse", "HEAD")


def as_judge_sees(stage: Stage, name: str, tip: str) -> None:
    """Check that the server has main at a commit, and all of it."""
    expect(stage.listed(name).get(MAIN) == tip, "the server's main is another commit")
    folder = stage.folder()
    judged("clone", "--quiet", stage.server.url(name), str(folder))
    whole(folder, tip=tip)
    shutil.rmtree(folder)


# ---- flows ----


def clone(stage: Stage, client: Client, kind: HashKind = HashKind.SHA1) -> tuple[str, Path]:
    """Clone all."""
    name, folder = stage.repository(kind), stage.folder()
    client.clone(stage.url(client, name), folder)
    whole(folder, tip=served.git(stage.sources[kind], "rev-parse", "main"))
    expect("v1" in judged("tag", cwd=folder).split(), "the tag did not come")
    return name, folder


def fetch(stage: Stage, client: Client) -> None:
    """Fetch what is new."""
    name, folder = clone(stage, client)
    ahead = stage.folder()
    judged("clone", "--quiet", str(stage.sources[HashKind.SHA1]), str(ahead))
    tip = [commit(ahead, f"new{number}.txt") for number in range(3)][-1]
    import_repository(stage.store, name, str(ahead))
    client.fetch(folder)
    expect(judged("rev-parse", "origin/main", cwd=folder) == tip, "origin/main did not move")
    judged("fsck", "--full", cwd=folder)


def push(stage: Stage, client: Client, kind: HashKind = HashKind.SHA1) -> None:
    """Push a commit, then another branch and a tag."""
    name, folder = clone(stage, client, kind)
    tip = commit(folder, "pushed.txt")
    client.push(folder, f"{MAIN}:{MAIN}")
    as_judge_sees(stage, name, tip)
    served.git(folder, "branch", "topic")
    served.git(folder, "tag", "-a", "-m", "second", "v2")
    client.push(folder, "refs/heads/topic:refs/heads/topic", "refs/tags/v2:refs/tags/v2")
    refs = stage.listed(name)
    expect(refs.get("refs/heads/topic") == tip, "the new branch is not there")
    expect(refs.get("refs/tags/v2^{}") == tip, "the new tag is not there")


def shallow(stage: Stage, client: Client) -> None:
    """Clone the last commit, where the client can deepen then the rest."""
    name, folder = stage.repository(), stage.folder()
    url = stage.url(client, name)
    if not isinstance(client, GitClient):
        client.shallow(url, folder, 1)
        expect(judged("rev-list", "--count", "HEAD", cwd=folder) == "1", "not one commit came")
        judged("fsck", "--full", cwd=folder)
        return
    client.shallow(url, folder, 1)
    whole(folder, tip=served.git(stage.sources[HashKind.SHA1], "rev-parse", "main"))


def partial(stage: Stage, client: Client) -> None:
    """Clone without blobs; then C git brings those that a checkout needs, lazily."""
    name, folder = stage.repository(), stage.folder()
    client.partial(stage.url(client, name), folder)
    words = ("rev-list", "--objects", "--all", "--missing=print")
    found = run(["git", "-c", "extensions.partialClone=origin", *words], cwd=folder)
    expect(found.returncode == 0, "the clone is broken")
    expect("\n?" in found.stdout, "blobs came though they were filtered out")
    if isinstance(client, GitClient):
        client.git("checkout", "--quiet", "main", cwd=folder)
        expect((folder / "README.md").is_file(), "the checkout brought no file")


def atomic(stage: Stage, client: Client) -> None:
    """Push two refs of which the server must refuse one: neither moves."""
    name, folder = clone(stage, client)
    before = stage.listed(name)
    commit(folder, "atomic.txt")
    try:
        # The server has refs/heads/main, so nothing can stand below it.
        client.push(folder, f"{MAIN}:{MAIN}", f"{MAIN}:{MAIN}/below", atomic=True)
    except Failed:
        expect(stage.listed(name) == before, "a ref moved though another was refused")
        tip = served.git(folder, "rev-parse", "HEAD")
        client.push(folder, f"{MAIN}:{MAIN}", f"{MAIN}:refs/heads/beside", atomic=True)
        after = stage.listed(name)
        expect(after.get(MAIN) == tip == after.get("refs/heads/beside"), "both should have moved")
        return
    raise Failed("the push was taken")


def delete(stage: Stage, client: Client) -> None:
    """Delete a branch."""
    name, folder = clone(stage, client)
    judged("push", "--quiet", stage.server.url(name), "HEAD:refs/heads/gone", cwd=folder)
    expect("refs/heads/gone" in stage.listed(name), "the branch to delete is not there")
    client.push(folder, ":refs/heads/gone")
    expect("refs/heads/gone" not in stage.listed(name), "the branch is still there")


def fork(stage: Stage, client: Client) -> None:
    """Clone a fork, push to it: the parent shows nothing of that and serves nothing of it."""
    parent = stage.repository()
    name = f"{parent}-fork"
    done = served.shardgit(
        "repo", "fork", parent, name, "--server", stage.server.grpc, cwd=stage.work
    )
    expect(done.returncode == 0, f"repo fork: {done.stderr.strip()[-200:]}")
    before, folder = stage.listed(parent), stage.folder()
    client.clone(stage.url(client, name), folder)
    tip = commit(folder, "forked.txt")
    client.push(folder, f"{MAIN}:{MAIN}")
    as_judge_sees(stage, name, tip)
    expect(stage.listed(parent) == before, "the parent's refs moved")
    probe = stage.folder()
    judged("init", "--quiet", str(probe))
    found = run(["git", "fetch", "--quiet", stage.server.url(parent), tip], cwd=probe)
    expect(found.returncode != 0, "the parent serves what only the fork has")


def sha256(stage: Stage, client: Client) -> None:
    """Clone and push a SHA-256 repository."""
    client.variables["OBJECT_FORMAT"] = "sha256"
    try:
        push(stage, client, HashKind.SHA256)
    finally:
        del client.variables["OBJECT_FORMAT"]


def lfs(stage: Stage, client: Client) -> None:
    """Push a file through Git LFS, clone it elsewhere, lock and unlock it."""
    if not isinstance(client, GitClient):
        raise Unsupported(f"{client.name} has no LFS of its own")
    name, folder = clone(stage, client)
    data = os.urandom(300_000).hex()
    client.git("lfs", "install", "--local", cwd=folder)
    client.git("lfs", "track", "*.bin", cwd=folder)
    (folder / "large.bin").write_text(data)
    tree = {"HOME": str(folder)}
    for words in (("add", "."), ("commit", "--quiet", "-m", "large")):
        done = run([client.program, *words], cwd=folder, more={**client.variables, **tree})
        expect(done.returncode == 0, done.stderr[-200:])
    expect("oid sha256:" in judged("show", "HEAD:large.bin", cwd=folder), "not a pointer")
    client.push(folder, f"{MAIN}:{MAIN}")
    again = stage.folder()
    smudge = {"GIT_LFS_SKIP_SMUDGE": "1"}
    done = run(
        [client.program, "clone", "--quiet", stage.url(client, name), str(again)],
        more={**client.variables, **smudge},
    )
    expect(done.returncode == 0, done.stderr[-200:])
    client.git("lfs", "install", "--local", cwd=again)
    client.git("lfs", "pull", cwd=again)
    expect((again / "large.bin").read_text() == data, "the file came back changed")
    client.git("lfs", "lock", "large.bin", cwd=again)
    expect("large.bin" in client.git("lfs", "locks", cwd=folder), "the lock is not shown")
    client.git("lfs", "unlock", "large.bin", cwd=again)


FLOWS: dict[str, Callable[[Stage, Client], object]] = {
    "clone": clone,
    "fetch": fetch,
    "push": push,
    "shallow": shallow,
    "partial": partial,
    "atomic": atomic,
    "delete": delete,
    "fork": fork,
    "SHA-256": sha256,
    "LFS": lfs,
}
