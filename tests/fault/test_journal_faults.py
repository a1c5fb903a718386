"""The journal on LMDB when processes die, disks fill and bytes rot."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from shardgit.errors import (
    Conflict,
    Internal,
    JournalCorrupt,
    ShardgitError,
    StorageFull,
    StoreBusy,
)
from shardgit.journal.interface import END, Compare, Delete, DeleteRange, Operation, Put
from shardgit.journal.lmdb import LmdbJournal
from shardgit.lmdbenv import PAGE_BYTES, check_size

if TYPE_CHECKING:
    from pathlib import Path

COMMITTER = r"""
import os, sys, threading
from pathlib import Path
from shardgit.journal.interface import Put
from shardgit.journal.lmdb import LmdbJournal
journal = LmdbJournal(Path(sys.argv[1]))
def commit(thread):
    n = 0
    while True:
        rows = [Put(b"%d:%06d:%d" % (thread, n, part), b"%d" % n * 50) for part in range(4)]
        os.write(1, b"%d %d %d\n" % (thread, n, journal.commit_sync([], rows)))
        n += 1
for thread in range(3):
    threading.Thread(target=commit, args=(thread,)).start()
"""

FILLER = """
import resource, sys
from pathlib import Path
from shardgit.errors import StorageFull
from shardgit.journal.interface import Put
from shardgit.journal.lmdb import LmdbJournal
journal = LmdbJournal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
acknowledged = 0
try:
    while True:
        rows = [Put(b"n%04d" % acknowledged, bytes(9_000)), Put(b"last", b"%d" % acknowledged)]
        journal.commit_sync([], rows)
        acknowledged += 1
except StorageFull:
    pass
with journal.snapshot() as snapshot:
    assert snapshot.get(b"last").value == b"%d" % (acknowledged - 1)
    assert snapshot.get(b"n%04d" % acknowledged) is None
    assert len(list(snapshot.range(b"n", b"o"))) == acknowledged > 10
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.commit_sync([], [Put(b"after", b"")])
print(acknowledged)
"""


def keys_of(journal: LmdbJournal) -> list[bytes]:
    with journal.snapshot() as snapshot:
        return [row.key for row in snapshot.range(b"\0", END)]


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", [0.05, 0.2, 0.5])
def test_sigkill_loses_nothing_acknowledged_and_leaves_nothing_half(
    tmp_path: Path, wait_s: float
) -> None:
    LmdbJournal(tmp_path / "j", create=True).close()
    child = subprocess.Popen(
        [sys.executable, "-c", COMMITTER, str(tmp_path / "j")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(wait_s)
    child.send_signal(signal.SIGKILL)
    printed = (first + child.stdout.read()).splitlines()
    child.wait()
    child.stdout.close()
    journal = LmdbJournal(tmp_path / "j")
    with journal.snapshot() as snapshot:
        rows = {row.key: row for row in snapshot.range(b"\0", END)}
        last = snapshot.revision
    acknowledged = [tuple(map(int, line.split())) for line in printed if line.count(b" ") == 2]
    assert acknowledged
    for thread, n, revision in acknowledged:
        for part in range(4):
            row = rows[b"%d:%06d:%d" % (thread, n, part)]
            assert (row.value, row.revision) == (b"%d" % n * 50, revision)
        assert revision <= last
    commits = {key[:-2] for key in rows}
    assert len(rows) == 4 * len(commits)
    assert {key + b":%d" % part for key in commits for part in range(4)} == set(rows)
    assert journal.commit_sync([], [Put(b"later", b"")]) > last
    assert journal.reader_check() >= 0
    journal.close()


def test_two_processes_see_each_others_commits(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True)
    before = journal.commit_sync([], [Put(b"mine", b"1")])
    code = (
        "import sys; from pathlib import Path; from shardgit.journal.lmdb import LmdbJournal\n"
        "from shardgit.journal.interface import Compare, Put\n"
        "journal = LmdbJournal(Path(sys.argv[1]))\n"
        f"print(journal.commit_sync([Compare(b'mine', {before})], [Put(b'mine', b'2')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "j")], check=True, capture_output=True
    )
    assert journal.revision() == int(done.stdout) > before
    with pytest.raises(Conflict):
        journal.commit_sync([Compare(b"mine", before)], [Put(b"mine", b"3")])
    journal.close()


def test_a_forked_child_is_refused_and_its_close_does_no_harm(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True)
    journal.commit_sync([], [Put(b"a", b"1")])
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (
            lambda: journal.commit_sync([], [Put(b"a", b"2")]),
            journal.revision,
            lambda: journal.snapshot().__enter__(),
        ):
            try:
                call()
            except Internal:
                refused += 1
        journal.close()
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    journal.commit_sync([], [Put(b"b", b"")])
    assert keys_of(journal) == [b"a", b"b"]
    journal.close()


def enqueue(journal: LmdbJournal, operation: Operation) -> Future[int]:
    answer: Future[int] = Future()

    def take(outcome: int | BaseException) -> None:
        if isinstance(outcome, int):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)

    journal.commit_soon([], [operation], take)
    return answer


def test_commits_that_wait_together_share_a_transaction(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True)
    with journal._environment.write():  # the writer thread waits for LMDB's lock
        answers = [enqueue(journal, Put(b"%03d" % n, b"")) for n in range(40)]
    assert len({answer.result() for answer in answers}) <= 2  # what it took first, and the rest
    assert len(keys_of(journal)) == 40
    journal.close()


def test_a_commit_too_large_for_the_map_fails_alone(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True, map_bytes=1 << 20)
    sizes = [1_000_000 if n % 10 == 5 else 10 for n in range(20)]
    with journal._environment.write():
        answers = [enqueue(journal, Put(b"%03d" % n, bytes(size))) for n, size in enumerate(sizes)]
    full = [n for n, answer in enumerate(answers) if isinstance(answer.exception(), StorageFull)]
    assert full
    assert set(full) <= {5, 15}
    assert keys_of(journal) == [b"%03d" % n for n in range(20) if n not in full]
    journal.close()


def test_a_full_map_changes_nothing_and_deletes_make_room(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True, map_bytes=512 << 10)
    done = 0
    with pytest.raises(StorageFull):
        while True:
            journal.commit_sync([], [Put(b"%04d" % done, bytes(5_000)), Put(b"n", b"%d" % done)])
            done += 1
    assert done > 20
    with journal.snapshot() as snapshot:
        row = snapshot.get(b"n")
        assert row is not None
        assert row.value == b"%d" % (done - 1)
        assert snapshot.get(b"%04d" % done) is None
    journal.commit_sync([], [DeleteRange(b"0000", b"0020")])
    journal.commit_sync([], [Put(b"room", b"")])
    journal.commit_sync([], [Put(b"more", bytes(5_000))])
    journal.close()


def test_a_full_disk_changes_nothing_and_reads_go_on(tmp_path: Path) -> None:
    LmdbJournal(tmp_path / "j", create=True).close()
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path / "j")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    journal = LmdbJournal(tmp_path / "j")
    assert len(keys_of(journal)) == int(done.stdout) + 2
    journal.close()


def filled(folder: Path, rows: int = 600) -> Path:
    journal = LmdbJournal(folder, create=True)
    for start in range(0, rows, 100):
        journal.commit_sync(
            [], [Put(b"row%05d" % n, b"value %d " % n * 12) for n in range(start, start + 100)]
        )
    journal.close()
    return folder / "data.mdb"


@pytest.mark.parametrize("keep", [0, 100, PAGE_BYTES, 2 * PAGE_BYTES, 5 * PAGE_BYTES, 20_000])
def test_a_truncated_file_is_corrupt_not_a_dead_process(tmp_path: Path, keep: int) -> None:
    file = filled(tmp_path / "j")
    os.truncate(file, keep)
    with pytest.raises(JournalCorrupt):
        LmdbJournal(tmp_path / "j")


def test_a_missing_file_is_corrupt_and_not_begun_anew(tmp_path: Path) -> None:
    file = filled(tmp_path / "j")
    file.unlink()
    with pytest.raises(JournalCorrupt):
        LmdbJournal(tmp_path / "j")
    assert not file.exists()


def test_a_file_that_is_not_lmdbs_is_corrupt(tmp_path: Path) -> None:
    file = filled(tmp_path / "j")
    file.write_bytes(random.Random(1).randbytes(100_000))
    with pytest.raises(JournalCorrupt):
        LmdbJournal(tmp_path / "j")


def test_opening_twice_in_one_process_is_busy(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True)
    with pytest.raises(StoreBusy):
        LmdbJournal(tmp_path / "j")
    journal.close()


def test_a_healthy_file_whose_free_tail_was_never_written_opens(tmp_path: Path) -> None:
    """LMDB does not write a page that one transaction took and gave back; groups meet it."""
    chance = random.Random(1)
    journal = LmdbJournal(tmp_path / "j", create=True)
    file = tmp_path / "j" / "data.mdb"
    short = 0
    for _ in range(300):
        operations: list[Operation] = []
        for _ in range(chance.randrange(1, 40)):
            key = b"%04d" % chance.randrange(400)
            size = chance.choice([50, 200, 3_000, 20_000])
            operations.append(Put(key, bytes(size)) if chance.random() < 0.5 else Delete(key))
        if chance.random() < 0.05:
            operations.append(DeleteRange(b"0", b"9"))
        with journal._environment.write():
            answers = [enqueue(journal, operation) for operation in operations]
        for answer in answers:
            answer.result()
        check_size(file)
        short += file.stat().st_size < journal.stats()[1]
    assert short, "the seed no longer shows what this test is about"
    journal.close()


def test_a_flipped_bit_in_a_row_is_never_an_answer(tmp_path: Path) -> None:
    """Any bit of a row's key, frame or value: JournalCorrupt, or still the truth."""
    file = filled(tmp_path / "j")
    whole = file.read_bytes()
    truth = {b"row%05d" % n: b"value %d " % n * 12 for n in range(600)}
    chance = random.Random(2)
    caught = 0
    for _ in range(150):
        key = chance.choice(list(truth))
        copies = [at for at in range(2 * PAGE_BYTES, len(whole)) if whole.startswith(key, at)]
        flipped = bytearray(whole)
        offset = chance.randrange(len(key) + 16 + len(truth[key]))
        for at in copies:
            flipped[at + offset] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        journal = LmdbJournal(tmp_path / "j")
        try:
            with journal.snapshot() as snapshot:
                row = snapshot.get(key)
            assert row is not None
            assert row.value == truth[key]
        except JournalCorrupt:
            caught += 1
        try:
            with journal.snapshot() as snapshot:
                assert {row.key: row.value for row in snapshot.range(b"\0", END)} == truth
        except JournalCorrupt:
            caught += 1
        with pytest.raises(ShardgitError):  # a compare does not pass on rotten rows either
            journal.commit_sync([Compare(key, 0)], [Put(b"x", b"")])
        journal.close()
    assert caught > 250


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_the_pages_is_never_a_wrong_answer(tmp_path: Path) -> None:
    """Keys, pointers and branch pages too; in a child process, as LMDB may not survive it."""
    truth = {b"R%07d/refs/heads/topic" % n: b"v%d" % n * 8 for n in range(2_000)}
    journal = LmdbJournal(tmp_path / "j", create=True)
    keys = list(truth)
    for start in range(0, len(keys), 100):
        journal.commit_sync([], [Put(key, truth[key]) for key in keys[start : start + 100]])
    journal.close()
    file = tmp_path / "j" / "data.mdb"
    whole = file.read_bytes()
    chance = random.Random(3)
    outcomes: dict[int, int] = {}
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[chance.randrange(2 * PAGE_BYTES, len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        child = os.fork()
        if child == 0:
            try:
                os._exit(answers_of(tmp_path / "j", truth, keys[::7]))
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
        outcome = os.waitstatus_to_exitcode(status)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert set(outcomes) <= {0, 1}, outcomes
    assert outcomes[1] > 50


def answers_of(folder: Path, truth: dict[bytes, bytes], keys: list[bytes]) -> int:
    """Return 0 when all is as it was, 1 when damage was reported, 2 for a wrong answer."""
    reported = 0
    try:
        journal = LmdbJournal(folder)
        with journal.snapshot() as snapshot:
            for key in keys:
                try:
                    row = snapshot.get(key)
                    if row is None or row.value != truth[key]:
                        return 2
                except ShardgitError:
                    reported = 1
            if {row.key: row.value for row in snapshot.range(b"\0", END)} != truth:
                return 2
    except ShardgitError:
        reported = 1
    return reported


def test_commits_are_synced_and_the_file_is_not_written_through_the_map(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "j", create=True)
    flags = journal._environment._environment.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert journal._environment._environment.info()["map_size"] == 1 << 40
    assert journal._environment._environment.max_readers() >= 1_000
    journal.close()
