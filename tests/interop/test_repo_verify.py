"""repo verify says of a repository what git fsck says, and what git cannot know besides."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, small_repository

from shardgit.journal.interface import Put
from shardgit.journal.records import ref_key, refs_head_key
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.verify import verify_repository
from shardgit.refs.ref import Ref, encode_row
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

PERSON = "A <a@b.c> 1700000000 +0000"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data") as opened:
        yield opened


def fsck(folder: Path) -> tuple[set[str], set[str]]:
    """Return what git fsck prints, and what it prints to standard error."""
    done = subprocess.run(
        ["git", "-C", str(folder), "fsck", "--full", "--no-reflogs", "--no-progress"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return set(done.stdout.splitlines()), set(done.stderr.splitlines())


def put(folder: Path, kind: str, data: bytes) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "hash-object", "-w", "--literally", "-t", kind, "--stdin"],
        input=data,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


def broken_repository(folder: Path) -> Path:
    """Make a repository with objects that fsck complains of, each reached by a ref."""
    source = small_repository(folder)
    tree = git(source, "rev-parse", "HEAD^{tree}")
    blob = git(source, "rev-parse", "HEAD:README.md")
    commits = [
        f"tree {tree}\nauthor A 1700000000 +0000\ncommitter {PERSON}\n\nno mail\n",
        f"tree {tree}\nauthor {PERSON}\ncommitter A <a@b.c> 01700000000 +0000\n\nzero\n",
        f"tree {tree}\nauthor {PERSON}\nauthor {PERSON}\ncommitter {PERSON}\n\ntwo\n",
    ]
    trees = [
        b"0100644 a\0" + bytes.fromhex(blob),
        b"100644 .git\0" + bytes.fromhex(blob),
        b"100644 b\0" + bytes.fromhex(blob) + b"100644 a\0" + bytes.fromhex(blob),
    ]
    evil = put(source, "blob", b'[submodule "../x"]\n\tpath = x\n\turl = -y\n')
    trees.append(b"100644 .gitmodules\0" + bytes.fromhex(evil))
    for data in trees:
        made = put(source, "tree", data)
        commits.append(f"tree {made}\nauthor {PERSON}\ncommitter {PERSON}\n\ntree\n")
    for number, text in enumerate(commits):
        made = put(source, "commit", text.encode())
        git(source, "update-ref", f"refs/heads/b{number}", made)
    head = git(source, "rev-parse", "HEAD")
    tag = put(source, "tag", f"object {head}\ntype commit\ntag x\n\nno tagger\n".encode())
    git(source, "update-ref", "refs/tags/x", tag)
    return source


def test_a_sound_repository_is_whole(store: Store, tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    import_repository(store, "demo", str(source))
    report = verify_repository(store, "demo")
    assert (report.findings, report.counts, report.bad) == ((), {}, ())
    assert report.refs == 2
    assert report.log_entries > 0


def test_fsck_messages_are_those_of_git(store: Store, tmp_path: Path) -> None:
    source = broken_repository(tmp_path / "source")
    import_repository(store, "demo", str(source))
    _, told = fsck(source)
    report = verify_repository(store, "demo")
    ours = {one.line for one in report.findings}
    assert len(ours) >= 8
    assert ours == {line for line in told if line.startswith(("error in", "warning in"))}
    assert not report.clean
    assert report.bad == ()  # nothing is damaged or missing


def test_what_dangles_is_what_git_says(store: Store, tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    git(source, "checkout", "--quiet", "-b", "gone")
    for number in range(2):
        (source / "new").mkdir(exist_ok=True)
        (source / "new" / f"{number}").write_text(f"new {number}\n")
        git(source, "add", ".")
        git(source, "commit", "--quiet", "-m", f"gone {number}")
    import_repository(store, "demo", str(source))
    git(source, "checkout", "--quiet", "main")
    git(source, "branch", "--quiet", "-D", "gone")
    import_repository(store, "demo", str(source), overwrite=True)
    told, _ = fsck(source)
    report = verify_repository(store, "demo")
    assert {one.line for one in report.findings} == told
    assert len(told) == 1
    assert report.clean


def test_refs_that_lead_nowhere_and_past_their_log_are_told(store: Store, tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    import_repository(store, "demo", str(source))
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, "demo")
        head = snapshot.get(refs_head_key(record.id))
    assert head is not None
    lost = ObjectId(b"\7" * 20)
    blob = ObjectId(bytes.fromhex(git(source, "rev-parse", "HEAD:README.md")))
    rows = [Ref(b"refs/heads/lost", target=lost), Ref(b"refs/heads/blob", target=blob)]
    store.journal.commit_sync(
        [],
        [
            *(Put(ref_key(record.id, ref.name), encode_row(ref, HashKind.SHA1)) for ref in rows),
            Put(refs_head_key(record.id), head.value),
        ],
    )
    report = verify_repository(store, "demo")
    lines = {one.line for one in report.findings}
    assert f"error: refs/heads/lost: invalid sha1 pointer {lost.hex()}" in lines
    assert "error: refs/heads/blob: not a commit" in lines
    logs = {one.line for one in report.findings if one.kind == "bad_log"}
    assert len(logs) == 2
    assert report.counts["error"] == 4
