"""Rows of the journal, as verify reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gcing import MAIN, commit, push

from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.operate.operation import silent_control
from shardgit.operate.verifying import verify
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from pathlib import Path


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
