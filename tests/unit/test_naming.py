"""Which blocks the rows of the journal lead to, for verify, backups and gc."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import TYPE_CHECKING

import pytest
from gcing import MAIN, ME, commit, followed, push

from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.operate.named import named_blocks
from shardgit.operate.operation import silent_control
from shardgit.operate.settle import settle
from shardgit.operate.verifying import verify
from shardgit.refs.log import LogNote
from shardgit.refs.update import RefUpdate
from shardgit.service.forks import fork
from shardgit.service.lfs import LfsObjects
from shardgit.service.ref_updates import update_refs
from shardgit.service.repositories import Repositories
from shardgit.service.uploading import put_objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def test_gc_and_verify_agree_on_what_every_table_leads_to(tmp_path: Path) -> None:
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data", threads=2) as store:
        record = store.create_repository("demo")
        one = commit(size=3_000_000)  # its blob takes parts
        push(store, "demo", MAIN, None, one, one)
        assert settle(store, record.pool)
        two = commit(one, size=600_000)
        push(store, "demo", MAIN, one, two, two)  # a recent that has blocks
        put_objects(store, "demo", [(3, b"%d" % number) for number in range(3_000)])
        updates = [RefUpdate(b"refs/tags/%05d" % n, None, two.id) for n in range(9_000)]
        update_refs(store, "demo", updates, atomic=True, note=LogNote("me", "many"), principal=ME)
        large = random.Random(1).randbytes(3_000_000)
        oid = hashlib.sha256(large).digest()
        asyncio.run(LfsObjects(store).put("demo", oid, len(large), _pieces(large)))
        fork(store, "demo", "fork")
        Repositories(store).delete("fork")
        told = followed(store)
        assert {table for table, _ in told} == {b"P", b"S", b"H", b"L", b"U", b"F"}
        assert {block for _, block in told} == named_blocks(store, control=silent_control()).blocks


@pytest.mark.parametrize("lost", [False, True])
def test_a_deleted_repository_is_no_damage_and_is_told_of_where_it_has_lost_blocks(
    tmp_path: Path, *, lost: bool
) -> None:
    create_store(tmp_path / "data", shards=2)
    with open_store(tmp_path / "data", threads=2) as store:
        store.create_repository("gone", HashKind.SHA1)
        one = commit(size=600_000)  # a recent that has blocks
        push(store, "gone", MAIN, None, one, one)
        if lost:
            store.blocks.delete_many_sync([block for block, _ in store.blocks.scan_sync()])
        Repositories(store).delete("gone")
        done = verify(store, control=silent_control())
    assert done.clean is not lost
    assert {name for one in done.findings for name in one.repositories} == (
        {"gone (deleted)"} if lost else set()
    )
