"""Pushes into one fork that lean on what only another fork has: refused, in the words for what is nowhere."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import TYPE_CHECKING

import pytest

from shardgit.errors import MalformedPack
from shardgit.node import create_store, open_store
from shardgit.objects import object_id
from shardgit.oid import HashKind, ObjectId
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.refs.log import LogNote
from shardgit.service.access import trusted
from shardgit.service.forks import fork
from shardgit.service.look import Look
from shardgit.service.push import Push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

COMMIT, TREE, BLOB = 1, 2, 3
ME = trusted("tester")


def oid(kind: int, data: bytes) -> ObjectId:
    return object_id(kind, [data], len(data), HashKind.SHA1)


def tree(**entries: ObjectId) -> bytes:
    rows = [b"100644 " + name.encode() + b"\0" + entries[name] for name in sorted(entries)]
    return b"".join(rows)


def commit(of: ObjectId, *parents: ObjectId, text: str = "x") -> bytes:
    lines = [f"tree {of.hex()}", *(f"parent {p.hex()}" for p in parents)]
    lines += ["author A <a@b.c> 1 +0000", "committer A <a@b.c> 1 +0000", "", text]
    return "\n".join(lines).encode()


def header(kind: int, size: int) -> bytes:
    first = kind << 4 | size & 15
    size >>= 4
    out = bytearray()
    while size:
        out.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    return bytes([*out, first])


def pack(*objects: tuple[int, bytes], deltas: tuple[tuple[ObjectId, bytes], ...] = ()) -> bytes:
    out = b"PACK" + struct.pack(">II", 2, len(objects) + len(deltas))
    for kind, data in objects:
        out += header(kind, len(data)) + zlib.compress(data)
    for base, delta in deltas:
        out += header(7, len(delta)) + base + zlib.compress(delta)
    return out + hashlib.sha1(out).digest()


def push(store: Store, name: str, ref: bytes, new: ObjectId, data: bytes | None) -> str | None:
    made = Push(store, name, PushRequest((Command(ref, None, new),)), principal=ME)
    if data is not None:
        made.take(data)
    made.check()
    return made.commit().results[0].error


SECRET = b"the secret of one fork, long enough to be worth a delta\n" * 4
SECRET_TREE = tree(secret=oid(BLOB, SECRET))
SECRET_COMMIT = commit(oid(TREE, SECRET_TREE), text="secret")
NOWHERE = ObjectId(b"\x12" * 20)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        opened.create_repository("parent")
        shown = tree(readme=oid(BLOB, b"hello\n"))
        first = commit(oid(TREE, shown))
        data = pack((BLOB, b"hello\n"), (TREE, shown), (COMMIT, first))
        assert push(opened, "parent", b"refs/heads/main", oid(COMMIT, first), data) is None
        fork(opened, "parent", "child", LogNote("", "fork"))
        secret = pack((BLOB, SECRET), (TREE, SECRET_TREE), (COMMIT, SECRET_COMMIT))
        tip = oid(COMMIT, SECRET_COMMIT)
        assert push(opened, "child", b"refs/heads/secret", tip, secret) is None
        assert Look(opened, "child").positions([oid(BLOB, SECRET)])[0] >= 0
        assert Look(opened, "parent").positions([oid(BLOB, SECRET)]) == [-1]
        yield opened


def unseen(store: Store) -> None:
    found = Look(store, "parent").positions(
        [oid(BLOB, SECRET), oid(TREE, SECRET_TREE), oid(COMMIT, SECRET_COMMIT)]
    )
    assert found == [-1, -1, -1]


def test_a_ref_to_a_siblings_commit_is_refused_as_one_to_nothing(store: Store) -> None:
    answers = {
        push(store, "parent", b"refs/heads/x", new, None)
        for new in (oid(COMMIT, SECRET_COMMIT), NOWHERE)
    }
    assert answers == {"missing necessary objects"}
    unseen(store)


@pytest.mark.parametrize("of", [oid(TREE, SECRET_TREE), NOWHERE])
def test_a_commit_on_a_tree_that_is_not_pushed_is_refused(store: Store, of: ObjectId) -> None:
    made = commit(of, text="mine")
    answer = push(store, "parent", b"refs/heads/x", oid(COMMIT, made), pack((COMMIT, made)))
    assert answer == "missing necessary objects"
    unseen(store)


@pytest.mark.parametrize("parent", [oid(COMMIT, SECRET_COMMIT), NOWHERE])
def test_a_parent_that_is_not_pushed_is_refused(store: Store, parent: ObjectId) -> None:
    empty = tree()
    made = commit(oid(TREE, empty), parent, text="mine")
    data = pack((TREE, empty), (COMMIT, made))
    answer = push(store, "parent", b"refs/heads/x", oid(COMMIT, made), data)
    assert answer == "missing necessary objects"
    unseen(store)


@pytest.mark.parametrize("of", [oid(BLOB, SECRET), NOWHERE])
def test_a_known_tree_does_not_stand_for_what_it_holds(store: Store, of: ObjectId) -> None:
    """The pool has the tree already, but whoever pushes it must push, or have, its blobs too."""
    holder = tree(secret=of)
    made = commit(oid(TREE, holder), text="mine")
    data = pack((TREE, holder), (COMMIT, made))
    answer = push(store, "parent", b"refs/heads/x", oid(COMMIT, made), data)
    assert answer == "missing necessary objects"
    unseen(store)


@pytest.mark.parametrize("base", [oid(BLOB, SECRET), NOWHERE])
def test_a_delta_on_a_siblings_blob_has_no_base(store: Store, base: ObjectId) -> None:
    # Copies all of the base: whoever could push it would read the secret back.
    size = len(SECRET)
    varint = bytes([size & 0x7F | 0x80, size >> 7])
    delta = varint + varint + bytes([0x80 | 0x10 | 0x20, size & 0xFF, size >> 8])
    push_of = Push(
        store,
        "parent",
        PushRequest((Command(b"refs/heads/x", None, oid(COMMIT, SECRET_COMMIT)),)),
        principal=ME,
    )
    data = pack((TREE, SECRET_TREE), (COMMIT, SECRET_COMMIT), deltas=((base, delta),))
    with pytest.raises(MalformedPack, match="delta base is missing"):
        push_of.take(data)
    unseen(store)


def test_who_brings_the_bytes_may_have_them(store: Store) -> None:
    data = pack((BLOB, SECRET), (TREE, SECRET_TREE), (COMMIT, SECRET_COMMIT))
    tip = oid(COMMIT, SECRET_COMMIT)
    assert push(store, "parent", b"refs/heads/x", tip, data) is None
    assert min(Look(store, "parent").positions([oid(BLOB, SECRET), tip])) >= 0


def test_a_deleted_branch_takes_its_objects_with_it(store: Store) -> None:
    tip = oid(COMMIT, SECRET_COMMIT)
    made = Push(
        store, "child", PushRequest((Command(b"refs/heads/secret", tip, None),)), principal=ME
    )
    made.check()
    assert made.commit().results[0].error is None
    assert Look(store, "child").positions([tip, oid(BLOB, SECRET)]) == [-1, -1]
