"""What views hold of small segments: bounded for a store, however many pools it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gcing import MAIN, commit, push

from shardgit.kept import ENTRY_BYTES, Kept
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.service.look import Look

if TYPE_CHECKING:
    from pathlib import Path


def test_the_longest_unused_go_and_what_holding_costs_is_counted() -> None:
    held = Kept(3 * (ENTRY_BYTES + 10), largest_bytes=10)
    ids = [bytes([number]) * 32 for number in range(5)]
    for oid in ids[:3]:
        held.put(oid, bytes(10))
    assert set(held.get_many(ids)) == set(ids[:3])
    held.get(ids[0])
    held.put(ids[3], bytes(10))
    held.put(ids[4], bytes(11))
    assert set(held.get_many(ids)) == {ids[0], ids[2], ids[3]}


def test_all_pools_of_a_store_share_what_is_held(tmp_path: Path) -> None:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data", limits=Limits(recents_settle=100, recents_max=100)) as store:
        held = set()
        for name in ("one", "two"):
            store.create_repository(name, HashKind.SHA1)
            made = commit()
            push(store, name, MAIN, None, made, made)
            look = Look(store, name)
            assert look.view is not None
            options = TransferOptions()
            first = b"".join(Transfer(look.view, look.reachable, options=options).chunks())
            again = b"".join(Transfer(look.view, look.reachable, options=options).chunks())
            assert first == again
            held.add(id(look.view._small))
            blocks = [segment.entry.ref.id for segment in look.view.segments]
            assert set(look.view._small.get_many(blocks)) == set(blocks)
        assert len(held) == 1
