"""Commits made of changed paths: git makes the same trees and reads the commits."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from served import IDENTITY, clean_environment, git

from shardgit.errors import InvalidArgument, PathMissing
from shardgit.objects import GITLINK, ObjectType, TreeEntry, parse_commit, parse_tree
from shardgit.oid import HashKind, ObjectId
from shardgit.pack.builder import PackBuilder
from shardgit.service.composing import (
    EXECUTABLE,
    FILE,
    SYMLINK,
    FileChange,
    check_path,
    commit_bytes,
    compose_tree,
    person,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SHA1 = HashKind.SHA1


def text(data: bytes, mode: int = 0) -> FileChange:
    return FileChange(data, mode=mode)


GONE = FileChange()


def composed(
    root: Mapping[bytes, bytes], changes: Mapping[bytes, FileChange]
) -> dict[bytes, tuple[int, bytes]]:
    """Return the files (mode, bytes) of what changes make of a tree that holds ``root``."""
    first = compose_tree(
        SHA1, [], {path: text(data) for path, data in root.items()}, lambda _: pytest.fail()
    )
    held = {one.id: one for one in first.objects}

    def read(oid: ObjectId) -> list[TreeEntry]:
        return parse_tree(held[oid].data, SHA1)

    second = compose_tree(SHA1, read(first.id), changes, read)
    held |= {one.id: one for one in second.objects}
    out: dict[bytes, tuple[int, bytes]] = {}
    stack = [(b"", second.id)]
    while stack:
        above, oid = stack.pop()
        for entry in read(oid):
            if entry.is_tree:
                assert held[entry.id].data, "an empty folder"
                stack.append((above + entry.name + b"/", entry.id))
            else:
                out[above + entry.name] = (entry.mode, held[entry.id].data)
    return out


BASE = {b"a": b"1", b"d/b": b"2", b"d/e/c": b"3", b"x/y/z": b"4"}


@pytest.mark.parametrize(
    ("changes", "gone", "new"),
    [
        ({b"n": text(b"5")}, (), {b"n": b"5"}),
        ({b"q/r/s": text(b"5")}, (), {b"q/r/s": b"5"}),
        ({b"d/b": text(b"5")}, (), {b"d/b": b"5"}),
        ({b"a": GONE}, (b"a",), {}),
        ({b"x/y/z": GONE}, (b"x/y/z",), {}),
        ({b"d": GONE}, (b"d/b", b"d/e/c"), {}),
        ({b"d": GONE, b"d/b": text(b"5")}, (b"d/e/c",), {b"d/b": b"5"}),
        ({b"d": GONE, b"d/e/c": GONE}, (b"d/b", b"d/e/c"), {}),
        ({b"d/e/c": GONE, b"d": GONE}, (b"d/b", b"d/e/c"), {}),
        ({b"d": text(b"5"), b"d/e": GONE, b"d/b": GONE}, (b"d/b", b"d/e/c"), {b"d": b"5"}),
        ({b"x": text(b"5"), b"x/y/z": GONE}, (b"x/y/z",), {b"x": b"5"}),
        ({b"a/b": text(b"5"), b"a": GONE}, (b"a",), {b"a/b": b"5"}),
        ({b"x/y/z": GONE, b"x/w": text(b"5")}, (b"x/y/z",), {b"x/w": b"5"}),
        ({b"a-b": text(b"5"), b"a.b": text(b"6")}, (), {b"a-b": b"5", b"a.b": b"6"}),
    ],
)
def test_changes_make_the_files_that_are_meant(
    changes: dict[bytes, FileChange], gone: tuple[bytes, ...], new: dict[bytes, bytes]
) -> None:
    expected = {path: data for path, data in BASE.items() if path not in gone} | new
    assert composed(BASE, changes) == {path: (FILE, data) for path, data in expected.items()}


def test_modes_stay_and_change() -> None:
    changes = {b"d/b": text(b"5", EXECUTABLE), b"l": text(b"a", SYMLINK)}
    found = composed(BASE, changes)
    assert (found[b"d/b"], found[b"l"]) == ((EXECUTABLE, b"5"), (SYMLINK, b"a"))
    for before, after in ((EXECUTABLE, EXECUTABLE), (SYMLINK, SYMLINK), (GITLINK, FILE)):
        tree = [TreeEntry(before, b"run", ObjectId(bytes(20)))]
        made = compose_tree(SHA1, tree, {b"run": text(b"new")}, lambda _: [])
        root = next(one for one in made.objects if one.id == made.id)
        assert parse_tree(root.data, SHA1)[0].mode == after


def test_an_object_that_is_there_is_named_by_id() -> None:
    oid = ObjectId(b"\x07" * 20)
    changes = {b"big": FileChange(id=oid), b"sub": FileChange(id=oid, mode=GITLINK)}
    made = compose_tree(SHA1, [], changes, lambda _: [])
    assert [one.type for one in made.objects] == [ObjectType.TREE]
    assert parse_tree(made.objects[0].data, SHA1) == [
        TreeEntry(FILE, b"big", oid),
        TreeEntry(GITLINK, b"sub", oid),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {b"a/b": text(b"")},
        {b"a/b/c": text(b"")},
        {b"d": text(b"")},
        {b"d": text(b""), b"d/b": GONE},
        {b"n": text(b""), b"n/m": text(b"")},
        {b"n/m": text(b""), b"n": text(b"")},
        {b"a": text(b"", 0o40000)},
        {b"a": text(b"", 0o100600)},
        {b"a": text(b"", GITLINK)},
    ],
)
def test_what_cannot_be_is_refused(changes: dict[bytes, FileChange]) -> None:
    with pytest.raises(InvalidArgument):
        composed(BASE, changes)


@pytest.mark.parametrize("path", [b"nothing", b"d/nothing", b"a/b", b"nothing/b", b"d/e/c/f"])
def test_nothing_can_be_deleted_where_nothing_is(path: bytes) -> None:
    with pytest.raises(PathMissing):
        composed(BASE, {path: GONE})


@pytest.mark.parametrize(
    "path",
    [b"", b"/a", b"a/", b"a//b", b".", b"a/../b", b".git/config", b"a/.GIT", b"a\0", b"a" * 4_097],
)
def test_impossible_paths_are_refused(path: bytes) -> None:
    with pytest.raises(InvalidArgument):
        check_path(path)


@pytest.mark.interop
@pytest.mark.parametrize("kind", list(HashKind))
def test_git_makes_the_same_commit(kind: HashKind, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", f"--object-format={kind.git_name}")
    chance = random.Random(5)
    names = [b"a", b"b", b"ab", b"a.b", b"a-b", b"\xc3\xa9", b"b0"]
    files: dict[bytes, FileChange] = {}
    for number in range(60):
        path = b"/".join(chance.choice(names) for _ in range(chance.randint(1, 4)))
        others = {one for one in files if one.startswith(path + b"/")}
        if not others and not any(path.startswith(one + b"/") for one in files):
            files[path] = text(b"%d\n" % number)
    made = compose_tree(kind, [], files, lambda _: [])
    for path, change in files.items():
        file = folder / path.decode()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(change.data or b"")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all of it")
    assert git(folder, "rev-parse", "HEAD^{tree}") == made.id.hex()
    who = [
        person(
            f"{IDENTITY[f'GIT_{role}_NAME']} <{IDENTITY[f'GIT_{role}_EMAIL']}>".encode(),
            seconds=1_700_000_000,
        )
        for role in ("AUTHOR", "COMMITTER")
    ]
    data = commit_bytes(made.id, [], author=who[0], committer=who[1], message=b"all of it")
    assert parse_commit(data, kind).message == b"all of it\n"
    head = subprocess.run(
        ["git", "cat-file", "commit", "HEAD"], cwd=folder, capture_output=True, check=True
    )
    assert head.stdout == data


@pytest.mark.interop
@pytest.mark.parametrize("kind", list(HashKind))
def test_git_reads_what_is_packed(kind: HashKind, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", f"--object-format={kind.git_name}")
    builder = PackBuilder(kind)
    sizes = [0, 1, 15, 16, 2_047, 2_048, 300_000]
    for size in sizes:
        builder.add(ObjectType.BLOB, random.Random(size).randbytes(size))
    data = builder.finish()
    assert len(data) == builder.length
    assert builder.raw_bytes == sum(sizes)
    done = subprocess.run(
        ["git", "index-pack", "--stdin", "--strict"],
        cwd=tmp_path,
        env=clean_environment(),
        input=data,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    listed = git(tmp_path, "cat-file", "--batch-all-objects", "--batch-check=%(objectsize)")
    assert sorted(map(int, listed.split())) == sizes


@pytest.mark.parametrize(
    "who", [b"", b"A", b"A a@b.c", b"<a@b.c>", b"A\n <a@b.c>", b"A <a\0b>", b"A <a> b"]
)
def test_a_person_has_a_name_and_a_mail(who: bytes) -> None:
    with pytest.raises(InvalidArgument):
        person(who, seconds=0)


@pytest.mark.parametrize(("seconds", "zone"), [(-1, b"+0000"), (1 << 62, b"+0000"), (0, b"UTC")])
def test_a_time_is_possible(seconds: int, zone: bytes) -> None:
    with pytest.raises(InvalidArgument):
        person(b"A <a@b.c>", seconds=seconds, zone=zone)


@pytest.mark.parametrize("message", [b"a\0b", b"x" * ((1 << 20) + 1)])
def test_messages_are_bounded(message: bytes) -> None:
    who = person(b"A <a@b.c>", seconds=0)
    with pytest.raises(InvalidArgument):
        commit_bytes(ObjectId(bytes(20)), [], author=who, committer=who, message=message)
