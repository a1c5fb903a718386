"""Threads that read and commit to the embedded journal see one order of all commits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cluster.history.checker import check
from cluster.history.recorder import Recorder
from cluster.history.rows import RowClients

from shardgit.journal.lmdb import LmdbJournal

if TYPE_CHECKING:
    from pathlib import Path


def test_the_embedded_journal_is_linearizable(tmp_path: Path) -> None:
    recorder = Recorder()
    journal = LmdbJournal(tmp_path / "journal", create=True)
    try:
        clients = RowClients([journal], recorder, 1)
        clients.start(6)
        while recorder.counts["done"] < 100 and not clients.errors:
            time.sleep(0.01)
        clients.stop()
        clients.last()
    finally:
        journal.close()
    verdict = check(recorder.history)
    assert not verdict.violations, str(verdict.violations[0])
    assert verdict.good
    assert not recorder.counts["unknown"]
