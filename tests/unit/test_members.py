"""Nodes join, change and leave: numbers, zones and the ring stay whole whatever the order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgit.cluster.members import Membership, NodeRecord, join, membership, node_key, remove
from shardgit.cluster.records import SessionRecord, session_key
from shardgit.errors import (
    InvalidArgument,
    JournalCorrupt,
    NodeMissing,
    Refused,
    StoreFormatUnknown,
)
from shardgit.journal.interface import Delete, Put
from shardgit.journal.memory import MemoryJournal
from shardgit.ring.ring import PARTITIONS

AT = "10.0.0.{}:7424"


def seen(journal: MemoryJournal) -> Membership:
    with journal.snapshot() as snapshot:
        return membership(snapshot)


def test_the_first_node_has_all_and_later_ones_nothing_yet() -> None:
    journal = MemoryJournal()
    assert join(journal, "a", AT.format(1), zone="x", first=(Put(b"M", b"store"),)) == 0
    assert join(journal, "b", AT.format(2), zone="y", weight=2.0) == 1
    now = seen(journal)
    assert [(one.number, one.partitions) for one in now.members] == [(0, PARTITIONS), (1, 0)]
    assert dict(now.ring.addresses) == {0: AT.format(1), 1: AT.format(2)}
    assert now.ring.epoch == 2
    assert {shard.number: shard.zone for shard in now.ring.ring.shards} == {0: 1, 1: 2}
    with journal.snapshot() as snapshot:
        assert snapshot.get(b"M") is not None


def test_who_joins_again_has_its_number_and_changes_nothing() -> None:
    journal = MemoryJournal()
    join(journal, "a", AT.format(1))
    join(journal, "b", AT.format(2))
    before = journal.revision()
    assert join(journal, "b", AT.format(2)) == 1
    assert journal.revision() == before
    assert join(journal, "b", AT.format(3), weight=0.5) == 1
    now = seen(journal)
    assert now.ring.addresses[1] == AT.format(3)
    assert now.ring.ring.shards[1].weight == 0.5
    assert now.ring.epoch == 3


def test_the_number_of_a_node_that_left_and_runs_on_is_not_given_away() -> None:
    journal = MemoryJournal()
    join(journal, "a", AT.format(1))
    join(journal, "b", AT.format(2))
    session = session_key(b"s" * 16)
    journal.commit_sync([], [Put(session, SessionRecord(1, 7, 0).encode())])
    remove(journal, "b", force=True)
    assert join(journal, "c", AT.format(3)) == 2
    journal.commit_sync([], [Delete(session)])
    assert join(journal, "d", AT.format(4)) == 1


def test_two_nodes_of_one_address_are_refused() -> None:
    journal = MemoryJournal()
    join(journal, "a", AT.format(1))
    with pytest.raises(Refused, match="another node has that address"):
        join(journal, "b", AT.format(1))


@pytest.mark.parametrize(
    ("name", "address", "weight"),
    [("", AT.format(1), 1.0), ("a", "nowhere", 1.0), ("a", AT.format(1), 0.0)],
)
def test_what_makes_no_node_is_refused(name: str, address: str, weight: float) -> None:
    with pytest.raises(InvalidArgument):
        join(MemoryJournal(), name, address, weight=weight)


def test_a_node_that_is_removed_leaves_its_partitions_to_the_others() -> None:
    journal = MemoryJournal()
    for number, name in enumerate("abc"):
        join(journal, name, AT.format(number), zone=name)
    with pytest.raises(NodeMissing):
        remove(journal, "d")
    assert remove(journal, "a") == 4
    now = seen(journal)
    assert {one.record.name: one.partitions > 0 for one in now.members} == {"b": True, "c": True}
    assert sum(one.partitions for one in now.members) == PARTITIONS
    assert join(journal, "d", AT.format(9), zone="d") == 0  # the number and the zone are free again
    remove(journal, "b")
    remove(journal, "c")
    with pytest.raises(Refused, match="last node"):
        remove(journal, "d")


def test_a_running_node_is_removed_by_force_only() -> None:
    journal = MemoryJournal()
    join(journal, "a", AT.format(1))
    join(journal, "b", AT.format(2))
    journal.commit_sync([], [Put(session_key(bytes(16)), SessionRecord(1, 5, 0).encode())])
    assert [one.processes for one in seen(journal).members] == [0, 1]
    with pytest.raises(Refused, match="stop it first"):
        remove(journal, "b")
    remove(journal, "b", force=True)


def test_a_cluster_without_a_node_says_so() -> None:
    with pytest.raises(NodeMissing, match="no node yet"):
        seen(MemoryJournal())


STEP = st.tuples(st.sampled_from("jr"), st.integers(0, 5), st.integers(0, 3))


@settings(max_examples=15, deadline=None)
@given(st.lists(STEP, max_size=8))
def test_names_numbers_and_ring_agree(steps: list[tuple[str, int, int]]) -> None:
    journal = MemoryJournal()
    zones: dict[str, str] = {}
    for verb, who, where in steps:
        name, zone = f"n{who}", "" if where == 0 else f"z{where}"
        if verb == "j":
            join(journal, name, AT.format(who), zone=zone)
            zones[name] = zone
        else:
            try:
                remove(journal, name)
            except (NodeMissing, Refused):
                continue
            del zones[name]
    if not zones:
        return
    now = seen(journal)
    assert {one.record.name: one.record.zone for one in now.members} == zones
    shards = {shard.number: shard.zone for shard in now.ring.ring.shards}
    assert shards == {one.number: one.record.zone_number for one in now.members}
    numbers = {(one.record.zone, one.record.zone_number) for one in now.members}
    assert len({number for _, number in numbers}) == len(numbers)  # one number a zone
    assert sum(one.partitions for one in now.members) == PARTITIONS


@given(st.binary(max_size=64))
def test_other_bytes_are_one_clear_error(value: bytes) -> None:
    try:
        NodeRecord.decode(value)
    except (JournalCorrupt, StoreFormatUnknown):
        return


def test_a_record_is_read_as_it_was_written() -> None:
    record = NodeRecord(name="a", address=AT.format(1), zone="z", zone_number=3, weight=0.5)
    assert NodeRecord.decode(record.encode()) == record
    assert node_key(258) == b"Yn\x01\x02"
