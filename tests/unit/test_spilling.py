"""Values of commits that come together lie in one bundle; who comes alone waits for nobody."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardgit.errors import Unavailable
from shardgit.journal import spilling
from shardgit.journal.bundle_cache import BundleCache
from shardgit.journal.bundles import MemoryBundles
from shardgit.journal.etcd_commit import Commit
from shardgit.journal.interface import Put
from shardgit.journal.spilling import Spiller

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


class Counted(MemoryBundles):
    """Takes its time, and counts."""

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__()
        self.pause_s = pause_s
        self.sizes: list[int] = []
        self.fails = False

    def put(self, bundle: bytes, data: bytes) -> None:
        """See Bundles."""
        time.sleep(self.pause_s)
        if self.fails:
            raise Unavailable("away")
        self.sizes.append(len(data))
        super().put(bundle, data)


class World:
    """A spiller, and who waits for it."""

    def __init__(self, bundles: Counted, folder: Path) -> None:
        self.failed: list[tuple[Commit, BaseException]] = []
        self._done: dict[bytes, threading.Event] = {}
        self.cache = BundleCache(bundles, folder)
        self.spiller = Spiller(bundles, self.cache, self._told, self._fail)

    def _told(self, commit: Commit) -> None:
        self._done[commit.id].set()

    def _fail(self, commit: Commit, error: BaseException) -> None:
        self.failed.append((commit, error))
        self._told(commit)

    def begin(self, value: bytes) -> tuple[Commit, threading.Event]:
        """Hand in a commit with one large value."""
        commit = Commit([], [Put(b"S" + value, value)], lambda _: None, 0.0)
        done = self._done[commit.id] = threading.Event()
        self.spiller.take(commit)
        return commit, done

    def commit(self, value: bytes) -> Commit:
        """The same, and wait."""
        commit, done = self.begin(value)
        assert done.wait(30)
        return commit

    def value(self, commit: Commit) -> bytes:
        """Return what a commit's reference leads to."""
        ((key, reference),) = commit.references.items()
        return self.cache.read(reference, key)


@contextmanager
def world(bundles: Counted, folder: Path) -> Iterator[World]:
    made = World(bundles, folder)
    try:
        yield made
    finally:
        made.spiller.close()
        made.cache.close()


def test_who_is_alone_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling, "WINDOW_S", 1_000.0)
    bundles = Counted()
    with world(bundles, tmp_path) as here:
        made = [here.commit(b"%d" % number) for number in range(20)]
        assert [here.value(one) for one in made] == [b"%d" % number for number in range(20)]
    assert bundles.sizes == [1] * 10 + [2] * 10


def test_those_who_come_together_again_share_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, each = 10, 12
    monkeypatch.setattr(spilling, "WINDOW_S", 2.0)
    monkeypatch.setattr(spilling, "GROUP", clients)
    bundles = Counted(pause_s=0.01)
    with world(bundles, tmp_path) as here:
        wrong: list[bytes] = []
        gate = threading.Barrier(clients)

        def client(number: int) -> None:
            for turn in range(each):
                gate.wait()
                value = b"%d of %d" % (turn, number)
                if here.value(here.commit(value)) != value:
                    wrong.append(value)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
    assert each <= len(bundles.sizes) <= each + 2  # at first nobody is expected


def test_who_was_expected_and_does_not_come_is_waited_for_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "WINDOW_S", 0.2)
    monkeypatch.setattr(spilling, "GROUP", 5)
    with world(Counted(pause_s=0.05), tmp_path) as here:
        for _, done in [here.begin(b"%d" % number) for number in range(5)]:
            assert done.wait(30)
        began = time.monotonic()
        here.commit(b"late")
        assert time.monotonic() - began >= 0.1
        for _ in range(spilling.CROWDS):
            here.commit(b"late")
        monkeypatch.setattr(spilling, "WINDOW_S", 1_000.0)
        here.commit(b"later")


def test_closing_does_not_wait_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(Counted(pause_s=0.05), tmp_path) as here:
        begun = [here.begin(b"%d" % number) for number in range(5)]
        for _, done in begun:
            assert done.wait(30)
        monkeypatch.setattr(spilling, "WINDOW_S", 1_000.0)
        _, last = here.begin(b"last")
    assert last.is_set()


def test_a_bundle_that_cannot_be_put_fails_all_of_its_commits(tmp_path: Path) -> None:
    bundles = Counted(pause_s=0.05)
    with world(bundles, tmp_path) as here:
        bundles.fails = True
        begun = [here.begin(b"%d" % number) for number in range(5)]
        for _, done in begun:
            assert done.wait(30)
        assert {commit.id for commit, _ in here.failed} == {commit.id for commit, _ in begun}
        bundles.fails = False
        assert here.value(here.commit(b"again")) == b"again"


def test_who_waited_while_a_bundle_was_tried_for_long_fails_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of them would be tried for as long again, one behind the other."""
    monkeypatch.setattr(spilling, "AWAY_S", 0.1)
    bundles = Counted(pause_s=0.5)
    bundles.fails = True
    with world(bundles, tmp_path) as here:
        first = here.begin(b"first")
        time.sleep(0.1)
        others = [here.begin(b"other %d" % number) for number in range(5)]
        for _, done in [first, *others]:
            assert done.wait(30)
        assert [commit for commit, _ in here.failed] == [first[0], *(one for one, _ in others)]
        bundles.fails = False
        here.commit(b"later")
    assert len(here.failed) == 6
    assert bundles.sizes == [5]


def test_a_bundle_that_fails_at_once_takes_nobody_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    class Once(Counted):
        def put(self, bundle: bytes, data: bytes) -> None:
            if not self.sizes:
                gate.wait(30)
                self.sizes.append(0)
                raise Unavailable("once")
            super().put(bundle, data)

    monkeypatch.setattr(spilling, "AWAY_S", 1_000.0)
    with world(Once(), tmp_path) as here:
        first = here.begin(b"first")
        time.sleep(0.1)
        second = here.begin(b"second")
        gate.set()
        for _, done in (first, second):
            assert done.wait(30)
        assert [commit for commit, _ in here.failed] == [first[0]]
        assert here.value(second[0]) == b"second"
