"""Turns of a cluster against real members of etcd: one owner at a time, and a lost one commits nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from etcds import running
from hypothesis import given
from hypothesis import strategies as st
from moved import Moved
from waiting import until

from shardgit.cluster.owners import Owners
from shardgit.cluster.records import OwnerRecord, SessionRecord, owner_key, session_key
from shardgit.cluster.session import Session
from shardgit.errors import (
    JournalCorrupt,
    LimitExceeded,
    StoreFormatUnknown,
    Unavailable,
)
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.bundles import MemoryBundles
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import Put
from shardgit.turns import holding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from etcds import Etcds

    from shardgit.etcd.access import Access
    from shardgit.turns import Turn

TAKE_AND_DIE = """
import os, sys
from pathlib import Path
from shardgit.cluster.owners import Owners
from shardgit.cluster.session import Session
from shardgit.etcd.access import Access
from shardgit.journal.bundles import MemoryBundles
from shardgit.journal.etcd import EtcdJournal
urls, folder, prefix = sys.argv[1].split(","), Path(sys.argv[2]), bytes.fromhex(sys.argv[3])
journal = EtcdJournal(folder, Access(tuple(urls)), MemoryBundles(), prefix=prefix)
owners = Owners(journal, Session(journal.etcd, journal.keys, 7, lease_s=2))
assert owners.try_take("job", note=b"mine") is not None
os._exit(9)
"""


class Node:
    """One process's part in a cluster."""

    def __init__(self, folder: Path, access: Access, prefix: bytes, number: int) -> None:
        self.journal = EtcdJournal(folder, access, MemoryBundles(), prefix=prefix)
        self.session = Session(self.journal.etcd, self.journal.keys, number, lease_s=4)
        self.owners = Owners(self.journal, self.session)

    def close(self) -> None:
        self.session.close()
        self.journal.close()


class Cluster:
    """Nodes of one prefix."""

    def __init__(self, folder: Path, access: Access) -> None:
        self.folder, self.access = folder, access
        self.prefix = b"test/" + os.urandom(8).hex().encode() + b"/"
        self.opened = ExitStack()

    def node(self, number: int) -> Node:
        made = Node(self.folder / str(number), self.access, self.prefix, number)
        self.opened.callback(made.close)
        return made


@pytest.fixture
def cluster(etcds: Etcds, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, etcds.access())
    with made.opened:
        yield made


@pytest.mark.cluster
def test_one_node_at_a_time(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    turn = one.owners.try_take("job", note=b"[1]")
    assert turn is not None
    two.journal.fresh_sync()
    assert two.owners.try_take("job") is None
    assert one.owners.try_take("job") is None  # nor another thread of the same process
    assert two.owners.note_of("job") == b"[1]"
    assert two.owners.note_of("other") is None
    held_before = turn.held
    turn.release()
    turn.release()
    assert (held_before, turn.held) == (True, False)
    two.journal.fresh_sync()
    with holding(two.owners, "job") as held:
        assert held
        one.journal.fresh_sync()
        with holding(one.owners, "job") as again:
            assert not again


@pytest.mark.cluster
def test_who_lost_its_turn_commits_nothing_more(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    with holding(one.owners, "job") as held:
        assert held
        one.journal.commit_sync([], [Put(b"Oa", b"1")])
        lost = one.session.now()
        one.journal.etcd.lease_revoke(lost.lease)  # as if etcd had not heard of it for too long
        with ThreadPoolExecutor(1) as apart:  # this thread's commits are one's
            taken = apart.submit(taken_by, two).result()
        moved = Moved()
        with pytest.raises(Unavailable, match="not heard of"):
            one.journal.commit_sync([], [Put(b"Oa", b"2")])
        assert moved("shardgit_journal_transactions_total")["fenced"] == 1
    one.journal.commit_sync([], [Put(b"Ob", b"3")])  # what is not of its turn is committed
    with taken.fence():
        two.journal.commit_sync([], [Put(b"Oa", b"4")])
    with two.journal.snapshot() as snapshot:
        found = [row.value for row in snapshot.range(b"Oa", b"Oc")]
    assert found == [b"4", b"3"]
    until(lambda: alive(one) and not one.session.is_alive(lost.id))  # it has begun anew
    assert two.owners.note_of("job") == b""


@pytest.mark.cluster
def test_the_turn_of_a_dead_process_is_free(cluster: Cluster, etcds: Etcds) -> None:
    two = cluster.node(2)
    urls = ",".join(cluster.access.endpoints)
    words = [urls, str(cluster.folder / "dead"), cluster.prefix.hex()]
    done = subprocess.run([sys.executable, "-c", TAKE_AND_DIE, *words], check=False)
    assert done.returncode == 9
    with two.journal.snapshot() as snapshot:
        assert snapshot.get(owner_key("job")) is not None
    taken_by(two)


@pytest.mark.cluster
def test_a_node_that_is_not_heard_of_has_no_turn(tmp_path: Path) -> None:
    with running(tmp_path / "etcd", count=1) as etcds, ExitStack() as opened:
        node = Node(tmp_path / "node", etcds.access(), b"test/", 1)
        opened.callback(node.close)
        turn = node.owners.try_take("job")
        assert turn is not None
        etcds.members[0].signal(signal.SIGSTOP)
        until(lambda: not turn.held)
        with pytest.raises(Unavailable):
            node.owners.try_take("other")
        turn.release()  # nobody hears of it
        etcds.members[0].signal(signal.SIGCONT)
        until(lambda: alive(node))
        taken_by(node)


def taken_by(node: Node) -> Turn:
    """Wait until a node has the turn; on a busy machine it may lose its session meanwhile."""
    found: list[Turn] = []

    def took() -> bool:
        try:
            node.journal.fresh_sync()
            turn = node.owners.try_take("job")
        except Unavailable:
            return False
        found.extend([turn] if turn else [])
        return bool(found)

    until(took)
    return found[0]


def alive(node: Node) -> bool:
    try:
        node.session.now()
    except Unavailable:
        return False
    return True


@pytest.mark.cluster
def test_a_turn_of_our_own_that_no_thread_has_is_taken_again(cluster: Cluster) -> None:
    node = cluster.node(1)
    mine = node.session.now()
    # As a commit leaves it whose outcome nobody heard.
    node.journal.commit_sync([], [Put(owner_key("job"), OwnerRecord(mine.id).encode())])
    turn = node.owners.try_take("job")
    assert turn is not None
    assert node.owners.try_take("job") is None
    turn.release()
    assert node.owners.note_of("job") is None


@pytest.mark.cluster
@pytest.mark.parametrize("compacted", [False, True])
def test_sessions_that_end_while_nobody_looks_are_not_believed(
    cluster: Cluster, compacted: bool
) -> None:
    one, two = cluster.node(1), cluster.node(2)
    one.journal.fresh_sync()
    key = session_key(two.session.now().id)
    with one.journal.snapshot() as snapshot:
        assert snapshot.get(key) is not None
    one.close()
    two.session.close()  # its lease is revoked, and no commit tells of it
    if compacted:
        etcd = two.journal.etcd
        head = etcd.range(pb.RangeRequest(key=two.journal.keys.head)).header.revision
        etcd.compact(head)
    again = EtcdJournal(
        cluster.folder / "1", cluster.access, MemoryBundles(), prefix=cluster.prefix
    )
    cluster.opened.callback(again.close)

    def gone() -> bool:
        with again.snapshot() as snapshot:
            return snapshot.get(key) is None

    until(gone)


@pytest.mark.cluster
def test_a_note_has_a_bound(cluster: Cluster) -> None:
    with pytest.raises(LimitExceeded):
        cluster.node(1).owners.try_take("job", note=bytes(65_537))


@given(st.integers(0, 65_535), st.integers(0, 2**32 - 1), st.integers(0, 2**63), st.binary())
def test_records_are_read_as_they_were_written(node: int, pid: int, ms: int, note: bytes) -> None:
    session = SessionRecord(node, pid, ms)
    assert SessionRecord.decode(session.encode()) == session
    owner = OwnerRecord(bytes(16), note)
    assert OwnerRecord.decode(owner.encode()) == owner
    assert session_key(bytes(16))[:1] == owner_key("x")[:1] == b"Y"


@given(st.binary(max_size=64))
def test_other_bytes_are_one_clear_error(value: bytes) -> None:
    for kind in (SessionRecord, OwnerRecord):
        try:
            made = kind.decode(value)
        except (JournalCorrupt, StoreFormatUnknown):
            continue
        assert kind.decode(made.encode()) == made
