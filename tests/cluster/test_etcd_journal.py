"""The journal on etcd beyond what every journal promises: nodes, bundles, replicas, a cluster that is away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from cluster.links import Link
from etcds import binary, running, turn_on_passwords
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moved import Moved
from waiting import until

from shardgit.clock import replaced
from shardgit.errors import (
    Conflict,
    InvalidArgument,
    JournalCorrupt,
    LimitExceeded,
    StorageFull,
    Unavailable,
)
from shardgit.etcd.access import Access
from shardgit.etcd.client import Etcd
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal import committing
from shardgit.journal.bundle_garbage import BundleGarbage
from shardgit.journal.bundles import MemoryBundles
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.etcd_rows import LEASED
from shardgit.journal.interface import (
    END,
    Compare,
    CompareRange,
    Condition,
    Delete,
    DeleteRange,
    Operation,
    Put,
    Row,
    end_of,
)
from shardgit.journal.memory import MemoryJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from etcds import Etcds

pytestmark = pytest.mark.cluster


class Node:
    """Opens journals of one prefix, each with a folder of its own."""

    def __init__(self, folder: Path, access: Access) -> None:
        self.folder, self.access = folder, access
        self.prefix = b"test/" + os.urandom(8).hex().encode() + b"/"
        self.bundles = MemoryBundles()
        self.opened = ExitStack()

    def open(self, name: str, access: Access | None = None) -> EtcdJournal:
        journal = EtcdJournal(
            self.folder / name, access or self.access, self.bundles, prefix=self.prefix
        )
        self.opened.callback(journal.close)
        return journal


@pytest.fixture
def nodes(etcds: Etcds, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, etcds.access())
    with made.opened:
        yield made


def all_of(journal: EtcdJournal) -> list[Row]:
    with journal.snapshot() as snapshot:
        return list(snapshot.range(b"\0", END))


def get(journal: EtcdJournal, key: bytes) -> bytes | None:
    with journal.snapshot() as snapshot:
        row = snapshot.get(key)
    return None if row is None else row.value


# -- as the one in memory

# A comparison of a session's row says more than others: who loses it is told that the session is gone.
KEYS = st.binary(min_size=1, max_size=3).filter(
    lambda key: key[0] != 0xFF and not key.startswith(LEASED)
)
STEPS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=4)),
    st.builds(Delete, KEYS),
    st.builds(DeleteRange, KEYS, KEYS),
)
CONDITIONS = st.one_of(
    st.builds(Compare, KEYS, st.integers(0, 6)),
    st.builds(CompareRange, KEYS, KEYS, st.integers(0, 6)),
)
COMMITS = st.tuples(st.lists(CONDITIONS, max_size=2), st.lists(STEPS, max_size=6))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(commits=st.lists(COMMITS, max_size=12))
def test_etcd_answers_as_the_journal_in_memory(
    etcds: Etcds,
    tmp_path_factory: pytest.TempPathFactory,
    commits: list[tuple[list[Condition], list[Operation]]],
) -> None:
    memory, nodes = MemoryJournal(), Node(tmp_path_factory.mktemp("n"), etcds.access())
    there = [0]  # etcd's revision of each of the one in memory

    def translated(one: Condition) -> Condition:
        at = there[one.revision] if one.revision < len(there) else there[-1] + one.revision
        if isinstance(one, Compare):
            return Compare(one.key, at)
        return CompareRange(one.low, one.high, at)

    with nodes.opened:
        stored = nodes.open("a")
        for conditions, operations in commits:
            theirs = [translated(one) for one in conditions]
            try:
                wanted = memory.commit_sync(conditions, operations)
            except (Conflict, InvalidArgument, LimitExceeded) as error:
                with pytest.raises(type(error)):
                    stored.commit_sync(theirs, operations)
                continue
            revision = stored.commit_sync(theirs, operations)
            if wanted == len(there):
                assert revision > there[-1]
                there.append(revision)
            assert revision == there[wanted] == stored.revision()
        with memory.snapshot() as snapshot:
            rows = list(snapshot.range(b"\0", END))
        assert [Row(row.key, row.value, there[row.revision]) for row in rows] == all_of(stored)


# -- nodes


def test_a_commit_is_seen_on_another_node_once_it_is_fresh(nodes: Node) -> None:
    one, other = nodes.open("a"), nodes.open("b")
    for number in range(50):
        writer, reader = (one, other) if number % 2 else (other, one)
        writer.commit_sync([], [Put(b"k", b"%d" % number)])
        reader.fresh_sync()
        assert get(reader, b"k") == b"%d" % number


async def test_callers_that_wait_together_share_questions(nodes: Node) -> None:
    one, other = nodes.open("a"), nodes.open("b")
    asked = 0
    ask = other._freshness._ask_soon

    def counted(answer: Callable[[int | Exception], None]) -> None:
        nonlocal asked
        asked += 1
        ask(answer)

    other._freshness._ask_soon = counted
    await one.commit([], [Put(b"k", b"v")])
    await asyncio.gather(*(other.fresh() for _ in range(200)))
    assert get(other, b"k") == b"v"
    assert 0 < asked < 100


def test_a_commit_of_one_node_loses_to_another_and_then_sees_to_what(nodes: Node) -> None:
    one, other = nodes.open("a"), nodes.open("b")
    moved = Moved()
    first = one.commit_sync([Compare(b"k", 0)], [Put(b"k", b"1")])
    with pytest.raises(Conflict):
        other.commit_sync([Compare(b"k", 0)], [Put(b"k", b"2")])
    assert other.revision() >= first
    assert get(other, b"k") == b"1"
    came = moved("shardgit_journal_transactions_total")
    assert (came["committed"], came["lost"]) == (1, 1)


def test_a_node_that_comes_back_goes_on_from_where_it_was(nodes: Node) -> None:
    one = nodes.open("a")
    other = nodes.open("b")
    one.commit_sync([], [Put(b"k%d" % n, b"1") for n in range(100)])
    other.close()
    one.commit_sync([], [Delete(b"k0"), Put(b"k1", b"2")])
    again = nodes.open("b")
    again.fresh_sync()
    assert all_of(again) == all_of(one)
    assert again._replica.status.generation == 1


def test_a_node_that_missed_what_was_compacted_begins_anew(nodes: Node) -> None:
    moved = Moved()
    one = nodes.open("a")
    one.commit_sync([], [Put(b"k%d" % n, b"1") for n in range(100)])
    other = nodes.open("b")
    other.close()
    last = one.commit_sync([], [Delete(b"k0"), Put(b"k1", b"2")])
    one.etcd.compact(last)
    assert moved("shardgit_journal_replica_loads_total") == {"": 2}  # each node's first
    again = nodes.open("b")
    again.fresh_sync()
    assert all_of(again) == all_of(one)
    assert again._replica.status.generation == 2
    assert moved("shardgit_journal_replica_loads_total") == {"": 3}


def test_a_compaction_of_others_history_costs_a_node_nothing(nodes: Node, etcd: Etcd) -> None:
    one = nodes.open("a")
    one.commit_sync([], [Put(b"k", b"1")])
    one.close()
    put = pb.RequestOp(request_put=pb.PutRequest(key=b"others"))
    revisions = [etcd.txn(pb.TxnRequest(success=[put])).header.revision for _ in range(3)]
    etcd.compact(revisions[-1])
    again = nodes.open("a")
    until(lambda: again._feeder._state.watched >= revisions[-1])
    again.commit_sync([], [Put(b"k", b"2")])
    assert get(again, b"k") == b"2"
    assert again._replica.status.generation == 1


def test_a_watch_that_was_lost_over_a_compaction_is_made_up_for(nodes: Node, etcds: Etcds) -> None:
    one = nodes.open("a")
    link = Link(etcds.members[0].client)
    nodes.opened.callback(link.close)
    other = nodes.open("b", Access((link.target,)))
    one.commit_sync([], [Put(b"k%d" % n, b"1") for n in range(50)])
    other.fresh_sync()
    with other.snapshot() as snapshot:
        before = list(snapshot.range(b"\0", END))
        oldest = snapshot.revision
        link.cut()
        last = one.commit_sync([], [DeleteRange(b"k1", b"k3"), Put(b"z", b"2")])
        one.etcd.compact(last)
        link.mend()
        other.fresh_sync()
        assert all_of(other) == all_of(one)
        assert list(snapshot.range(b"\0", END)) == before  # readers keep what they have
        assert other.oldest_snapshot() == oldest
    until(lambda: other.oldest_snapshot() >= last)
    assert len(list(other._replica.status.folders())) == 1


def test_a_row_that_was_damaged_in_the_replica_is_fetched_again(nodes: Node) -> None:
    one = nodes.open("a")
    one.commit_sync([], [Put(b"k", b"value")])
    environment = one._replica.environment(one._replica.status.generation)
    with environment.write() as transaction:
        framed = bytearray(transaction.get(b"k") or b"")
        framed[-1] ^= 1
        transaction.put(b"k", bytes(framed))
    with pytest.raises(JournalCorrupt):
        get(one, b"k")

    def is_whole() -> bool:
        try:
            return get(one, b"k") == b"value"
        except JournalCorrupt:
            return False

    until(is_whole)
    one.commit_sync([], [Put(b"k", b"other")])
    assert get(one, b"k") == b"other"


def test_a_row_that_is_damaged_in_etcd_is_data_loss_and_no_other_is(
    nodes: Node, etcd: Etcd
) -> None:
    one = nodes.open("a")
    one.commit_sync([], [Put(b"a", b"1"), Put(b"b", b"2")])
    there = nodes.prefix + b"ra"
    stored = bytearray(etcd.range(pb.RangeRequest(key=there)).kvs[0].value)
    stored[-1] ^= 1
    put = pb.RequestOp(request_put=pb.PutRequest(key=there, value=bytes(stored)))
    etcd.txn(pb.TxnRequest(success=[put]))
    one.commit_sync([], [Put(b"c", b"3")])
    with pytest.raises(JournalCorrupt):
        get(one, b"a")
    assert (get(one, b"b"), get(one, b"c")) == (b"2", b"3")
    assert one._replica.status.generation == 1


# -- bundles


def test_large_values_lie_in_few_bundles_and_are_read_on_every_node(nodes: Node) -> None:
    one, other = nodes.open("a"), nodes.open("b")
    values = {b"S%03d" % n: os.urandom(50_000) for n in range(60)}
    slow = nodes.bundles.put

    def put(bundle: bytes, data: bytes) -> None:
        time.sleep(0.02)
        slow(bundle, data)

    nodes.bundles.put = put  # type: ignore[method-assign]

    async def all_at_once() -> None:
        await asyncio.gather(*(one.commit([], [Put(*item)]) for item in values.items()))

    moved = Moved()
    asyncio.run(all_at_once())
    bundles = len(list(nodes.bundles.scan()))
    assert bundles < 30
    assert moved("shardgit_journal_bundles_total") == {"done": bundles}
    assert moved("shardgit_journal_group_commits_sum") == {"": 60}
    stored = one.etcd.range(pb.RangeRequest(key=nodes.prefix + b"r", range_end=nodes.prefix + b"s"))
    assert max(len(row.value) for row in stored.kvs) < 100
    other.fresh_sync()
    for journal in (one, other):
        assert {row.key: row.value for row in all_of(journal)} == values


def test_values_that_a_node_lacks_are_fetched_side_by_side(nodes: Node) -> None:
    one, other = nodes.open("a"), nodes.open("b")
    for number in range(40):
        one.commit_sync([], [Put(b"S%02d" % number, b"%d" % number), Put(b"T%02d" % number, b"")])
    other.fresh_sync()
    read, lock, under_way, most = nodes.bundles.read, threading.Lock(), 0, 0

    def counted(bundle: bytes, offset: int, length: int) -> bytes | None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return read(bundle, offset, length)

    nodes.bundles.read = counted  # type: ignore[method-assign]
    with other.snapshot() as snapshot:
        assert [row.value for row in snapshot.range(b"S", b"T")] == [b"%d" % n for n in range(40)]
        rows = snapshot.range(b"S", b"T")
        for _ in range(10):
            next(rows)
    with pytest.raises(Unavailable):
        next(rows)
    assert 1 < most <= 8


def test_only_recents_and_long_log_rows_are_spilled(nodes: Node) -> None:
    one = nodes.open("a")
    one.commit_sync([], [Put(b"L1", bytes(4_096)), Put(b"P1", bytes(100_000))])
    assert not list(nodes.bundles.scan())
    one.commit_sync([], [Put(b"L2", bytes(4_097)), Put(b"S", b""), Put(b"S2", b"x")])
    assert len(list(nodes.bundles.scan())) == 1
    sizes = {row.key: len(row.value) for row in all_of(one)}
    assert sizes == {b"L1": 4_096, b"L2": 4_097, b"P1": 100_000, b"S": 0, b"S2": 1}


def test_a_bundle_that_is_missing_or_damaged_is_data_loss(nodes: Node) -> None:
    one, other = nodes.open("a"), nodes.open("b")
    for key in (b"S1", b"S2"):
        one.commit_sync([], [Put(key, key * 1_000)])
    other.fresh_sync()
    (first, _), (second, _) = nodes.bundles.scan()
    nodes.bundles.put(first, b"x" * 2_000)
    nodes.bundles.delete([second])
    for key in (b"S1", b"S2"):
        assert get(one, key) == key * 1_000  # it has its own
        with pytest.raises(JournalCorrupt):
            get(other, key)
    with pytest.raises(JournalCorrupt):
        all_of(other)
    assert other._replica.status.generation == 1


def test_a_commit_whose_bundle_is_not_put_fails_and_leaves_nothing(nodes: Node) -> None:
    one = nodes.open("a")

    def put(bundle: bytes, data: bytes) -> None:
        raise StorageFull("bucket is full")

    nodes.bundles.put = put  # type: ignore[method-assign]
    moved = Moved()
    with pytest.raises(StorageFull):
        one.commit_sync([], [Put(b"S1", b"x"), Put(b"a", b"1")])
    assert moved("shardgit_journal_bundles_total") == {"failed": 1}
    assert moved("shardgit_journal_transactions_total") == {}
    one.commit_sync([], [Put(b"b", b"1")])
    assert [row.key for row in all_of(one)] == [b"b"]


class HandClock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.at_s = time.time()

    def now_ms(self) -> int:
        return round(self.at_s * 1_000)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def test_bundles_go_a_grace_after_no_row_names_them(nodes: Node) -> None:
    one = nodes.open("a")
    garbage = BundleGarbage(one, nodes.bundles, grace_s=3_600)
    hand = HandClock()
    with replaced(hand):
        one.commit_sync([], [Put(b"S1", b"x"), Put(b"S2", b"y")])
        one.commit_sync([], [Put(b"S3", b"z")])
        nodes.bundles.put(os.urandom(16), b"orphan")
        one.commit_sync([], [Delete(b"S1"), Delete(b"S3")])
        assert garbage.sweep() == 0  # all are young
        hand.at_s += 3_601
        assert garbage.sweep() == 0  # two are seen without a name
        hand.at_s += 3_599
        assert garbage.sweep() == 0
        hand.at_s += 2
        assert garbage.sweep() == 2
        assert garbage.sweep() == 0
    assert {bundle for bundle, _ in nodes.bundles.scan()} == one.bundles_named()
    assert get(one, b"S2") == b"y"


# -- processes of one node

CHILD = """
import sys, time
from pathlib import Path
from shardgit.etcd.access import Access
from shardgit.journal.bundles import FileBundles
from shardgit.journal.etcd import EtcdJournal
from shardgit.journal.interface import Put
from shardgit import telemetry
telemetry.configure()
folder, bundles, prefix, *endpoints = sys.argv[1:]
journal = EtcdJournal(Path(folder), Access(tuple(endpoints)), FileBundles(Path(bundles)), prefix=prefix.encode())
print(journal._replica.is_fed_here, flush=True)
for line in sys.stdin:
    with journal.snapshot() as snapshot:
        row = snapshot.get(line.strip().encode())
    revision = journal.commit_sync([], [Put(b"child", b"x" if row is None else row.value)])
    with journal.snapshot() as snapshot:
        assert snapshot.revision >= revision
    print(revision, flush=True)
"""


@contextmanager
def child(nodes: Node, name: str) -> Iterator[subprocess.Popen[str]]:
    words = [str(nodes.folder / name), str(nodes.folder / "shared"), nodes.prefix.decode()]
    command = [sys.executable, "-c", CHILD, *words, *nodes.access.endpoints]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_processes_of_a_node_share_a_replica_and_one_takes_over(
    nodes: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(nodes, "a") as feeds:
        assert feeds.stdout is not None
        assert feeds.stdout.readline().strip() == "True"
        one = nodes.open("a")
        one.commit_sync([], [Put(b"k", b"1")])
        assert int(say(feeds, "k")) == one.revision()
        one.fresh_sync()
        assert get(one, b"child") == b"1"
        feeds.send_signal(signal.SIGSTOP)  # nobody feeds the replica meanwhile
        monkeypatch.setattr(committing, "SHOWN_S", 0.2)
        moved = Moved()
        one.commit_sync([], [Put(b"j", b"1")])
        assert moved("shardgit_journal_commits_behind_total") == {"": 1}
        assert get(one, b"j") is None
        monkeypatch.undo()
        feeds.send_signal(signal.SIGKILL)
        feeds.wait()
        one.commit_sync([], [Put(b"k", b"2")])
        one.fresh_sync()
        assert (get(one, b"k"), get(one, b"j")) == (b"2", b"1")
        assert one._replica.status.generation == 1


# -- a cluster that is away


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Etcds, Node]]:
    """Members that the test may stop and kill, and nodes of theirs."""
    if binary() is None:
        pytest.skip("etcd is not there")
    with running(tmp_path / "etcd") as etcds:
        made = Node(tmp_path, etcds.access())
        try:
            yield etcds, made
        finally:
            for member in etcds.members:
                if member.process is not None and member.process.poll() is None:
                    member.signal(signal.SIGCONT)
            made.opened.close()


def test_reads_go_on_while_etcd_is_away(own: tuple[Etcds, Node]) -> None:
    etcds, nodes = own
    one = nodes.open("a")
    one.commit_sync([], [Put(b"k", b"1")])
    for member in etcds.members:
        member.signal(signal.SIGSTOP)
    assert get(one, b"k") == b"1"
    moved = Moved()
    for _ in range(20):
        one.fresh_sync(stale_ok=True)
    assert get(one, b"k") == b"1"
    with pytest.raises(Unavailable):
        one.fresh_sync()
    assert moved("shardgit_journal_stale_reads_total") == {"": 20}
    for member in etcds.members:
        member.signal(signal.SIGCONT)

    def is_back() -> bool:
        try:
            one.commit_sync([], [Put(b"k", b"2")])
            one.fresh_sync()
        except Unavailable:
            return False
        return True

    until(is_back)
    assert get(one, b"k") == b"2"


STALL_S = 5.0  # that a commit may wait for etcd
NOISE_S = 1.0  # of a machine that does other things, too


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("with_slots", [True, False], ids=["slots", "no slots"])
def test_commits_without_etcd_are_told_so_in_time(
    own: tuple[Etcds, Node], number: signal.Signals, with_slots: bool
) -> None:
    """All of them, more than there are slots, and in the time of one."""
    etcds, nodes = own
    one = nodes.open("a")
    one.commit_sync([], [Put(b"k", b"1")])
    if not with_slots:
        slots = one._committer._slots
        with slots._changed:
            slots._lost(slots._lease)
    for member in etcds.members:
        member.signal(number)
    told: list[float] = []

    def commit(key: bytes) -> None:
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            one.commit_sync([], [Put(key, b"")])
        told.append(time.monotonic() - begun)

    threads = [threading.Thread(target=commit, args=(b"k%d" % n,)) for n in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 100
    assert max(told) < STALL_S + NOISE_S


def test_slots_whose_lease_has_ended_are_made_anew(nodes: Node, etcd: Etcd) -> None:
    one = nodes.open("a")
    one.commit_sync([], [Put(b"k", b"1")])
    slots = etcd.range(pb.RangeRequest(key=nodes.prefix + b"s", range_end=nodes.prefix + b"t")).kvs
    etcd.lease_revoke(slots[0].lease)
    for number in range(5):
        one.commit_sync([], [Put(b"k", b"%d" % number)])
    assert get(one, b"k") == b"4"


def test_a_commit_whose_answer_is_lost_is_told_its_own_revision(nodes: Node, etcds: Etcds) -> None:
    link = Link(etcds.members[0].client)
    nodes.opened.callback(link.close)
    one = nodes.open("a", Access((link.target, etcds.members[1].target)))
    other = nodes.open("b")
    first = one.commit_sync([], [Put(b"k", b"1")])
    link.hold(back=True)
    moved = Moved()
    revision = one.commit_sync([Compare(b"k", first)], [Put(b"k", b"2")])
    other.fresh_sync()
    assert all_of(other) == [Row(b"k", b"2", revision)]
    came = moved("shardgit_journal_transactions_total")
    assert came["unanswered"] >= 1
    assert came["committed"] == 1  # as the look-up said


def test_a_commit_that_is_held_up_is_cancelled_and_sent_anew(nodes: Node, etcds: Etcds) -> None:
    link = Link(etcds.members[0].client)
    nodes.opened.callback(link.close)
    one = nodes.open("a", Access((link.target, etcds.members[1].target)))
    other = nodes.open("b")
    first = one.commit_sync([], [Put(b"k", b"1")])
    link.hold(there=True)
    revision = one.commit_sync([Compare(b"k", first)], [Put(b"k", b"2")])
    link.mend()  # what was held up comes now, and must not count
    last = one.commit_sync([Compare(b"k", revision)], [Put(b"k", b"3")])
    other.fresh_sync()
    assert all_of(other) == [Row(b"k", b"3", last)]


def test_members_that_forget_their_tokens_give_new_ones(tmp_path: Path) -> None:
    if binary("etcdctl") is None:
        pytest.skip("etcdctl is not there")
    with running(tmp_path / "etcd", count=1) as etcds:
        nodes = Node(tmp_path, turn_on_passwords(etcds))
        with nodes.opened:
            one, other = nodes.open("a"), nodes.open("b")
            one.commit_sync([], [Put(b"k", b"1")])
            etcds.members[0].signal(signal.SIGKILL)
            etcds.start()
            one.commit_sync([], [Put(b"k", b"2")])
            until(lambda: get(other, b"k") == b"2")  # which has asked for nothing meanwhile


def test_a_full_etcd_says_so_and_what_it_took_is_there(tmp_path: Path) -> None:
    if binary() is None:
        pytest.skip("etcd is not there")
    with running(
        tmp_path / "etcd", count=1, extra=["--quota-backend-bytes", str(4 << 20)]
    ) as etcds:
        nodes = Node(tmp_path, etcds.access())
        with nodes.opened:
            one = nodes.open("a")
            taken: set[bytes] = set()
            moved = Moved()
            with pytest.raises(StorageFull):
                for number in range(100):
                    one.commit_sync([], [Put(b"P%02d" % number, bytes(300_000))])
                    taken.add(b"P%02d" % number)
            one.fresh_sync()
            assert {row.key for row in all_of(one)} == taken
            assert taken
            came = moved("shardgit_journal_transactions_total")
            assert (came["committed"], came["refused"]) == (len(taken), 1)


def _add(
    journal: EtcdJournal,
    key: bytes,
    ended: threading.Event,
    told: list[bytes],
    took: list[float],
) -> None:
    """Add to a counter until told to end; each commit puts a row of its own too."""
    while not ended.is_set():
        mine = os.urandom(8)
        with journal.snapshot() as snapshot:
            row = snapshot.get(key)
        value, revision = (int(row.value), row.revision) if row else (0, 0)
        begun = time.monotonic()
        try:
            journal.commit_sync(
                [Compare(key, revision)],
                [Put(key, b"%d" % (value + 1)), Put(b"x" + key + mine, b"")],
            )
            told.append(b"won " + mine)
        except Conflict:
            told.append(b"lost" + mine)
        except Unavailable as error:
            told.append((b"lost" if type(error) is Unavailable else b"open") + mine)
        took.append(time.monotonic() - begun)


def wins(words: list[bytes]) -> int:
    return sum(word.startswith(b"won") for word in words)


def _all_over(told: dict[bytes, list[bytes]], counts: list[int]) -> bool:
    return all(wins(one) > count for one, count in zip(told.values(), counts, strict=True))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_nothing_is_lost_or_told_twice_when_the_leader_goes(
    own: tuple[Etcds, Node], number: signal.Signals
) -> None:
    etcds, nodes = own
    journals = [nodes.open("a"), nodes.open("b")]
    ended = threading.Event()
    told: dict[bytes, list[bytes]] = {b"c%d" % n: [] for n in range(3)}
    took: list[float] = []
    threads = [
        threading.Thread(
            target=_add,
            args=(journals[n % 2], b"c%d" % (n % 3), ended, told[b"c%d" % (n % 3)], took),
        )
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    etcd = Etcd(nodes.access)
    try:
        for _ in range(2):
            until(lambda: all(len(one) > 5 for one in told.values()))
            leader = etcds.leader(etcd)
            leader.signal(number)
            counts = [wins(one) + 5 for one in told.values()]
            until(partial(_all_over, told, counts))
            if number == signal.SIGSTOP:
                leader.signal(signal.SIGCONT)
            else:
                etcds.start(leader)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        etcd.close()
    assert max(took) < STALL_S + NOISE_S
    for journal in journals:
        journal.fresh_sync()
    assert all_of(journals[0]) == all_of(journals[1])
    for key, words in told.items():
        with journals[0].snapshot() as snapshot:
            rows = list(snapshot.range(b"x" + key, end_of(b"x" + key)))
            counter = snapshot.get(key)
        assert counter is not None
        there = {row.key[len(key) + 1 :] for row in rows}
        won = {word[4:] for word in words if word.startswith(b"won")}
        lost = {word[4:] for word in words if word.startswith(b"lost")}
        assert won <= there
        assert not lost & there
        assert int(counter.value) == len(there) == len({row.revision for row in rows})
