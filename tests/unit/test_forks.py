"""Forks: the refs of another repository in one commit, and a life of their own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1
from itertools import count
from typing import TYPE_CHECKING

import pytest

from shardgit.errors import (
    Conflict,
    InvalidArgument,
    InvalidRepositoryName,
    RepositoryExists,
    RepositoryMissing,
)
from shardgit.journal.records import log_range, refs_head_key
from shardgit.node import create_store, open_store
from shardgit.objects import ObjectType
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.settle import settle
from shardgit.refs.log import LogNote
from shardgit.refs.ref import Ref
from shardgit.refs.update import ANY, RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.service.configuring import Configuring
from shardgit.service.forks import fork
from shardgit.service.look import Look
from shardgit.service.reading import Reading
from shardgit.service.repositories import Repositories
from shardgit.service.settings import settings_of
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.journal.records import RepositoryRecord
    from shardgit.service.store import Store


def oid(n: int) -> ObjectId:
    return ObjectId(n.to_bytes(20, "big"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "s")
    with open_store(tmp_path / "s") as opened:
        yield opened


def refs_of(store: Store, name: str) -> list[Ref]:
    with store.journal.snapshot() as snapshot:
        record = store.repository(snapshot, name)
        head = store.refs.get(snapshot, record, b"HEAD")
        assert head is not None
        return [head, *store.refs.list(snapshot, record)]


def write(store: Store, record: RepositoryRecord, updates: Sequence[RefUpdate]) -> None:
    RefWriter(store.refs, store.journal, store.workers).update_sync(record, updates)


def blocks(store: Store) -> int:
    return sum(1 for _ in store.blocks.scan_sync())


def test_a_fork_begins_with_all_refs_and_head_and_then_lives_alone(store: Store) -> None:
    source = store.create_repository("a", HashKind.SHA1)
    updates = [RefUpdate(b"refs/heads/%d" % n, None, oid(n + 1)) for n in range(150)]
    write(store, source, [*updates, RefUpdate(b"HEAD", ANY, None, symbolic=b"refs/heads/7")])
    write(
        store,
        source,
        [RefUpdate(b"refs/heads/3", ANY, None), RefUpdate(b"refs/tags/t", ANY, oid(9))],
    )
    before = refs_of(store, "a")
    made = fork(store, "a", "x/b", LogNote("ann", "fork of a"))
    assert refs_of(store, "x/b") == refs_of(store, "a") == before
    assert (made.parent, made.pool, made.hash_kind) == (source.id, source.pool, source.hash_kind)
    assert Repositories(store).get("x/b").forked_from == source.id
    write(store, made, [RefUpdate(b"refs/heads/5", oid(6), oid(600))])
    write(store, source, [RefUpdate(b"refs/heads/6", oid(7), None)])
    changed = {ref.name: ref for ref in refs_of(store, "x/b")}
    assert changed[b"refs/heads/5"].target == oid(600)
    assert changed[b"refs/heads/6"].target == oid(7)
    assert refs_of(store, "a") == [ref for ref in before if ref.name != b"refs/heads/6"]
    Repositories(store).delete("a")
    assert len(refs_of(store, "x/b")) == len(before)


def test_the_log_of_a_fork_begins_with_all_that_it_got(store: Store) -> None:
    source = store.create_repository("a")
    write(store, source, [RefUpdate(b"refs/heads/main", None, oid(1))])
    made = fork(store, "a", "b", LogNote("ann", "fork of a", "10.1.1.1"))
    with store.journal.snapshot() as snapshot:
        (entry,) = store.refs.changes_since(snapshot, made, 0)
        assert [one.sequence for one in store.refs.log(snapshot, source)] == [2, 1]
    assert (entry.actor, entry.message, entry.address) == ("ann", "fork of a", "10.1.1.1")
    assert [(change.name, change.new) for change in entry.changes] == [
        (ref.name, ref) for ref in refs_of(store, "b")
    ]


def test_loose_refs_are_made_shareable_once(store: Store) -> None:
    source = store.create_repository("a")
    for n in range(10):
        write(
            store, source, [RefUpdate(b"refs/heads/%d-%d" % (n, m), ANY, oid(7)) for m in range(90)]
        )
    expected = refs_of(store, "a")
    fork(store, "a", "b0")
    after_first = blocks(store)
    with store.journal.snapshot() as snapshot:
        head = store.refs.head(snapshot, source)
        revision = snapshot.get(refs_head_key(source.id))
        assert (head.loose, head.count, head.sequence) == (0, 900, 11)
    for n in range(1, 20):
        fork(store, "a", f"b{n}")
    assert blocks(store) == after_first
    with store.journal.snapshot() as snapshot:
        assert snapshot.get(refs_head_key(source.id)) == revision
        keys = {
            store.refs.state_key(snapshot, store.repository(snapshot, name))
            for name in ["a", *(f"b{n}" for n in range(20))]
        }
        assert len(keys) == 1  # what is cached for one serves all
    assert all(refs_of(store, f"b{n}") == expected for n in range(20))


def test_the_commit_of_a_fork_is_small_whatever_the_source_has(store: Store) -> None:
    source = store.create_repository("a")
    refs = [Ref(b"refs/pull/%06d/head" % n, oid(n + 1)) for n in range(50_000)]
    writer = RefWriter(store.refs, store.journal, store.workers)
    writer.replace_all_sync(source, refs, None)
    made = fork(store, "a", "b")
    with store.journal.snapshot() as snapshot:
        rows = list(snapshot.range(*log_range(made.id)))
        assert len(rows) == 1
        assert len(rows[0].value) < 200
        assert (
            sum(len(row.value) for row in snapshot.range(b"R" + made.id.to_bytes(8, "big"), b"S"))
            < 60
        )
    assert refs_of(store, "b")[1:] == refs


def test_an_empty_repository_is_forked_too(store: Store) -> None:
    store.create_repository("a", HashKind.SHA256)
    made = fork(store, "a", "b")
    assert refs_of(store, "b") == [Ref(b"HEAD", symbolic=b"refs/heads/main")]
    assert made.hash_kind is HashKind.SHA256
    third = fork(store, "b", "c")
    assert third.parent == made.id


def test_what_cannot_be_forked_is_refused_and_changes_nothing(store: Store) -> None:
    store.create_repository("a")
    store.create_repository("b")
    revision = store.journal.revision()
    for error, source, target in (
        (RepositoryExists, "a", "b"),
        (RepositoryExists, "a", "a"),
        (RepositoryMissing, "no", "c"),
        (InvalidRepositoryName, "a", "../c"),
    ):
        with pytest.raises(error):
            fork(store, source, target)
    assert store.journal.revision() == revision


def test_a_fork_hides_what_its_source_hides_and_begins_with_defaults_else(store: Store) -> None:
    store.create_repository("a")
    changes = {
        "transfer.hidden_refs": ["refs/internal/"],
        "fetch.hidden_refs": ["refs/pull/"],
        "receive.deny_deletes": True,
    }
    Configuring(store).update("a", changes)
    made = settings_of(fork(store, "a", "b"))
    assert made.transfer.hidden_refs == ("refs/internal/",)
    assert made.fetch.hidden_refs == ("refs/pull/",)
    assert not made.receive.deny_deletes


def test_forks_and_pushes_side_by_side_lose_nothing(store: Store) -> None:
    source = store.create_repository("a")
    write(store, source, [RefUpdate(b"refs/heads/main", None, oid(1))])

    def push(n: int) -> None:
        write(store, source, [RefUpdate(b"refs/heads/%d" % n, None, oid(n + 1))])

    with ThreadPoolExecutor(8) as pool:
        done = [
            pool.submit(push, n) if n % 2 else pool.submit(fork, store, "a", f"f{n}")
            for n in range(40)
        ]
        for one in done:
            one.result()
    assert len(refs_of(store, "a")) == 22
    for n in range(0, 40, 2):
        names = {ref.name for ref in refs_of(store, f"f{n}")}
        assert {b"HEAD", b"refs/heads/main"} <= names
    with store.journal.snapshot() as snapshot:
        numbers = [store.repository(snapshot, f"f{n}").id for n in range(0, 40, 2)]
    assert len(set(numbers)) == 20


async def test_two_forks_of_one_name_make_one(store: Store) -> None:
    store.create_repository("a")
    outcomes = await asyncio.gather(
        *(store.workers.run(fork, store, "a", "b") for _ in range(6)), return_exceptions=True
    )
    refused = [one for one in outcomes if isinstance(one, RepositoryExists | Conflict)]
    assert len(refused) == 5


def test_a_short_id_is_found_however_many_of_a_siblings_objects_start_so(store: Store) -> None:
    store.create_repository("base", HashKind.SHA1)
    fork(store, "base", "other")
    blobs: dict[bytes, bytes] = {}
    for number in count():
        data = b"%d" % number
        name = sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).digest()
        if name[:2] == b"\xab\xcd":
            blobs[name] = data
            if len(blobs) == 20:
                break
    *theirs, mine = sorted(blobs)
    put_objects(store, "other", [(ObjectType.BLOB, blobs[name]) for name in theirs])
    put_objects(store, "base", [(ObjectType.BLOB, blobs[mine])])
    for settled in (False, True):
        if settled:
            assert settle(store, Look(store, "base").record.pool)
        reading = Reading(store, "base")
        assert reading.infos([ObjectId(mine)])[0] is not None
        assert reading.resolve("abcd") == reading.position(ObjectId(mine))
        with pytest.raises(InvalidArgument, match="ambiguous"):
            Reading(store, "other").resolve("abcd")
