"""Pushes at the edges of what is allowed: aliases, deletions of nothing, leftovers, names that go away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from shardgit.node import create_store, open_store
from shardgit.objects import object_id
from shardgit.oid import HashKind, ObjectId
from shardgit.pack.builder import PackBuilder
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service.access import Principal
from shardgit.service.configuring import Configuring
from shardgit.service.look import Look
from shardgit.service.push import Push
from shardgit.service.ref_updates import update_refs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

COMMIT, TREE, BLOB = 1, 2, 3
ME = Principal("tester")
NOTE = LogNote("tester", "test")
MAIN = b"refs/heads/main"
NOWHERE = ObjectId(b"\x12" * 20)


def oid(kind: int, data: bytes) -> ObjectId:
    return object_id(kind, [data], len(data), HashKind.SHA1)


def tree(**entries: ObjectId) -> bytes:
    return b"".join(b"100644 " + name.encode() + b"\0" + entries[name] for name in sorted(entries))


def commit(of: ObjectId, *parents: ObjectId, text: str = "x") -> bytes:
    lines = [f"tree {of.hex()}", *(f"parent {p.hex()}" for p in parents)]
    lines += ["author A <a@b.c> 1 +0000", "committer A <a@b.c> 1 +0000", "", text]
    return "\n".join(lines).encode()


def pack(*objects: tuple[int, bytes]) -> bytes:
    builder = PackBuilder(HashKind.SHA1)
    for kind, data in objects:
        builder.add(kind, data)
    return builder.finish()


def push(store: Store, *commands: Command, data: bytes | None = None) -> list[str | None]:
    made = Push(store, "demo", PushRequest(commands), principal=ME)
    if data is not None:
        made.take(data)
    made.check()
    return [one.error for one in made.commit().results]


def set_keys(store: Store, **values: Any) -> None:
    Configuring(store).update("demo", {f"receive.{key}": value for key, value in values.items()})


def target(store: Store, name: bytes) -> ObjectId | None:
    with store.journal.snapshot() as snapshot:
        now = store.refs.get(snapshot, store.repository(snapshot, "demo"), name)
    return now.target if now else None


FIRST_TREE = tree(readme=oid(BLOB, b"hello\n"))
FIRST = commit(oid(TREE, FIRST_TREE))
TIP = oid(COMMIT, FIRST)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        opened.create_repository("demo")
        data = pack((BLOB, b"hello\n"), (TREE, FIRST_TREE), (COMMIT, FIRST))
        assert push(opened, Command(MAIN, None, TIP), data=data) == [None]
        yield opened


def test_a_deletion_that_names_no_old_id_is_a_deletion(store: Store) -> None:
    blind = Command(MAIN, None, None)
    assert push(store, blind) == ["deletion of the current branch prohibited"]
    assert push(store, Command(b"refs/heads/x", None, TIP)) == [None]
    set_keys(store, deny_deletes=True)
    assert push(store, Command(b"refs/heads/x", None, None)) == ["deletion prohibited"]
    assert target(store, b"refs/heads/x") == TIP
    assert push(store, Command(b"refs/heads/nothing", None, None)) == [None]


def test_a_symbolic_ref_is_no_way_round_the_rules_of_its_branch(store: Store) -> None:
    alias = RefUpdate(b"refs/alias/x", ANY, None, symbolic=MAIN)
    update_refs(store, "demo", [alias], atomic=True, note=NOTE, principal=ME)
    blob = oid(BLOB, b"hello\n")
    set_keys(store, deny_non_fast_forwards=True)
    assert push(store, Command(b"refs/alias/x", TIP, blob)) == ["non-fast-forward"]
    set_keys(store, deny_non_fast_forwards=False)
    assert push(store, Command(b"refs/alias/x", TIP, blob)) == ["invalid new value provided"]
    gone = Command(b"refs/alias/x", TIP, None)
    assert push(store, gone) == ["deletion of the current branch prohibited"]
    assert target(store, MAIN) == TIP
    new = commit(oid(TREE, FIRST_TREE), TIP, text="next")
    moved = Command(b"refs/alias/x", TIP, oid(COMMIT, new))
    assert push(store, moved, data=pack((COMMIT, new))) == [None]
    assert target(store, MAIN) == oid(COMMIT, new)


def test_what_only_a_refused_command_brought_is_not_kept(store: Store) -> None:
    """It may link to what is not there, and would stay broken for whoever pushes it whole later."""
    assert push(store, Command(b"refs/heads/x", None, TIP)) == [None]
    leaf = oid(BLOB, b"later\n")
    holder = tree(later=leaf)
    tip = commit(oid(TREE, holder), TIP, text="broken")
    set_keys(
        store, deny_deletes=False, protected_refs=[{"pattern": "refs/heads/p*", "create": False}]
    )
    commands = (
        Command(b"refs/heads/x", TIP, None),
        Command(b"refs/heads/p", None, oid(COMMIT, tip)),
    )
    first, second = push(store, *commands, data=pack((TREE, holder), (COMMIT, tip)))
    assert first is None
    assert second is not None
    assert second.startswith("protected by refs/heads/p*")
    look = Look(store, "demo")
    assert look.view is not None
    assert look.view.positions([oid(COMMIT, tip), oid(TREE, holder)]) == [-1, -1]
    whole = pack((BLOB, b"later\n"), (TREE, holder), (COMMIT, tip))
    assert push(store, Command(b"refs/heads/y", None, oid(COMMIT, tip)), data=whole) == [None]
