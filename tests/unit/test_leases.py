"""Leases: the oldest of each process stands in shared memory until it is let go, or the process dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardgit.journal.leases import FILE_BYTES, Leases
from shardgit.processes import drop_left, own_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLDER = """
import sys
from pathlib import Path
from shardgit.journal.leases import Leases
leases = Leases(Path(sys.argv[1]))
lease = leases.take(7)
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def opened(path: Path) -> Iterator[Leases]:
    leases = Leases(path)
    try:
        yield leases
    finally:
        leases.close()


def revisions(leases: Leases) -> list[int]:
    return [held.revision for held in leases.all()]


def test_the_oldest_lease_of_a_process_is_told(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    assert revisions(leases) == []
    first, second = leases.take(5), leases.take(9)
    assert revisions(leases) == [5]
    first.end()
    first.end()
    assert revisions(leases) == [9]
    third = leases.take(3)
    assert revisions(leases) == [3]
    del third, second
    assert revisions(leases) == []
    leases.close()


def test_a_lease_that_is_forgotten_has_ended(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    leases.take(4)
    assert revisions(leases) == []
    with leases.take(6):
        assert revisions(leases) == [6]
    assert revisions(leases) == []
    leases.close()


def test_another_process_is_seen_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    leases = Leases(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert [(held.pid, held.revision) for held in leases.all()] == [(holder.pid, 7)]
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody was told yet
        assert revisions(leases) == []
        holder.wait()
        assert revisions(leases) == []
    with opened(path) as reused:  # a slot of the dead is free again
        held = reused.take(11)
        assert revisions(leases) == [11]
        held.end()
    leases.close()


def test_a_file_of_other_bytes_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    path.write_bytes(b"\xff" * 100)
    with opened(path) as leases:
        assert path.stat().st_size == FILE_BYTES
        assert revisions(leases) == []
    path.write_bytes(b"\xff" * FILE_BYTES)
    with opened(path) as leases:
        assert revisions(leases) == []


def test_many_threads_take_and_let_go(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    base = leases.take(1_000)

    def churn(start: int) -> None:
        for number in range(500):
            leases.take(start + number)

    threads = [threading.Thread(target=churn, args=(2_000 + 1_000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert revisions(leases) == [1_000]
    base.end()
    assert revisions(leases) == []
    leases.close()


def test_folders_of_killed_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    mine = tmp_path / f"{own_prefix('push')}x"
    dead = tmp_path / f"push-{os.getpid()}-7-y"  # of one that had our number before
    others = [tmp_path / "push-x", tmp_path / "pushed-1-2-z"]
    for folder in (mine, dead, *others):
        folder.mkdir()
        (folder / "file").touch()
    drop_left(tmp_path, "push")
    assert set(tmp_path.iterdir()) == {mine, *others}
