"""Transfers of one plan that are under way at once share what they send; alone, nothing is held."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from reference.gits import git, make_history

from shardgit.node import create_store, open_store
from shardgit.oid import BlockId
from shardgit.pool import transfer
from shardgit.pool.manifest import ALONE
from shardgit.pool.sharing import Sharing
from shardgit.pool.trailers import Trailers
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.service.importing import import_repository
from shardgit.service.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

    from shardgit.blocks.interface import BlockStore

T = TypeVar("T")
PARTS = [(BlockId(bytes([number]) * 32), None) for number in range(8)]


class Maker:
    """Counts what it makes."""

    def __init__(self, size: int = 100) -> None:
        self.size = size
        self.made = 0

    def __call__(self) -> list[bytes]:
        self.made += 1
        return [bytes(self.size)]


def test_alone_nothing_is_held() -> None:
    sharing, make = Sharing(), Maker()
    shared = sharing.enter(b"plan")
    for _ in range(3):
        assert shared.frame(PARTS[0], make) == [bytes(100)]
    assert make.made == 3
    assert sharing.enter(b"another") is not shared


def test_two_share_and_the_last_takes_it_away() -> None:
    sharing, make = Sharing(), Maker()
    shared = sharing.enter(b"plan")
    assert sharing.enter(b"plan") is shared
    first = shared.frame(PARTS[0], make)
    assert shared.frame(PARTS[0], make) is first
    assert make.made == 1
    sharing.leave(b"plan")
    sharing.leave(b"plan")
    assert sharing.enter(b"plan") is not shared


def test_who_is_left_alone_holds_nothing() -> None:
    sharing, make = Sharing(), Maker()
    shared = sharing.enter(b"plan")
    sharing.enter(b"plan")
    shared.frame(PARTS[0], make)
    assert sharing.held_bytes == 100
    sharing.leave(b"plan")
    assert sharing.held_bytes == 0
    shared.frame(PARTS[0], make)
    assert (make.made, sharing.held_bytes) == (2, 0)


def test_what_all_plans_hold_is_bounded_and_the_longest_unused_goes() -> None:
    sharing, make = Sharing(most_bytes=300), Maker()
    for plan in (b"one", b"two"):
        sharing.enter(plan)
        shared = sharing.enter(plan)
        for part in PARTS:
            shared.frame(part, make)
    shared = sharing.enter(b"two")
    assert sharing.held_bytes == 300
    assert make.made == 2 * len(PARTS)
    for part in PARTS[-3:]:
        shared.frame(part, make)
    assert make.made == 2 * len(PARTS)
    shared.frame(PARTS[0], make)  # in the place of the last but two
    shared.frame(PARTS[-2], make)
    shared.frame(PARTS[-1], make)
    assert make.made == 2 * len(PARTS) + 1
    for plan in (b"one", b"one", b"two", b"two", b"two"):
        sharing.leave(plan)
    assert sharing.held_bytes == 0


def test_what_is_larger_than_all_is_not_held() -> None:
    sharing, make = Sharing(most_bytes=99), Maker()
    shared = sharing.enter(b"plan")
    sharing.enter(b"plan")
    assert shared.frame(PARTS[0], make) == [bytes(100)]
    assert sharing.held_bytes == 0


def test_what_cannot_be_made_is_made_by_who_wants_it_next() -> None:
    sharing = Sharing()
    shared = sharing.enter(b"plan")
    sharing.enter(b"plan")
    begun, go = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def broken() -> list[bytes]:
        begun.set()
        go.wait(10)
        raise OSError

    def first() -> None:
        try:
            shared.frame(PARTS[0], broken)
        except OSError as error:
            failed.append(error)

    got: list[list[bytes]] = []
    threads = [threading.Thread(target=first)]
    threads[0].start()
    begun.wait(10)
    make = Maker()
    threads.append(threading.Thread(target=lambda: got.append(shared.frame(PARTS[0], make))))
    threads[1].start()
    assert shared.frame(PARTS[1], make) == [bytes(100)]  # nobody else waits
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(failed) == 1
    assert got == [[bytes(100)]]
    assert shared.frame(PARTS[0], make) == [bytes(100)]
    assert sharing.held_bytes in (100, 200)


def test_many_threads_make_one_frame_once() -> None:
    sharing, make = Sharing(), Maker()
    shared = sharing.enter(b"plan")
    sharing.enter(b"plan")
    threads = [threading.Thread(target=shared.frame, args=(PARTS[0], make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.made == 1


def test_transfers_side_by_side_send_what_one_alone_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SMALL_BYTES", 0)
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(make_history(tmp_path / "work", commits=12)))
        reading = Reading(store, "demo")
        assert reading.view is not None
        trailers, sharing = Trailers(), Sharing()

        def begin(*, sideband: bool) -> Transfer:
            assert reading.view is not None
            return Transfer(
                reading.view,
                reading.reachable,
                options=TransferOptions(sideband=sideband),
                trailers=trailers,
                sharing=sharing,
            )

        alone = {sideband: list(begin(sideband=sideband).chunks()) for sideband in (True, False)}
        assert alone[True] != alone[False]
        several = [begin(sideband=sideband).chunks() for sideband in (True, False, True, False)]
        rounds = list(zip(*several, strict=True))
        assert [list(one) for one in zip(*rounds, strict=True)] == [
            alone[True],
            alone[False],
            alone[True],
            alone[False],
        ]
        assert any(first is second for first, _, second, _ in rounds)
        left = begin(sideband=True).chunks()
        next(left)
        next(left)
        del left  # a client that goes away
        assert not sharing._plans


def test_a_crowd_holds_parts_of_long_segments_and_sends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 2 * 65_515
    monkeypatch.setattr(
        transfer, "CHUNK_BYTES", 1
    )  # so that all have begun before the first segment
    monkeypatch.setattr(transfer, "PIECE_BYTES", part)
    monkeypatch.setattr(transfer, "PIECE_PACKETS", 2)
    work = make_history(tmp_path / "work", commits=12)
    (work / "noise").write_bytes(random.Random(1).randbytes(5 * part + 7))
    git(work, "add", "noise")
    git(work, "commit", "-qm", "noise")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(work))
        reading = Reading(store, "demo")
        assert reading.view is not None
        trailers, sharing = Trailers(), Sharing()
        options = TransferOptions(sideband=True)
        one, *crowd = (
            Transfer(
                reading.view,
                reading.reachable,
                options=options,
                trailers=trailers,
                sharing=sharing,
            )
            for _ in range(1 + transfer.CROWD)
        )
        alone = list(one.chunks())
        assert len([piece for piece in alone if len(piece) >= part]) >= 5
        rounds = list(zip(*(each.chunks() for each in crowd), strict=True))
        assert b"".join(first for first, *_ in rounds) == b"".join(alone)
        assert all(
            piece is first for first, *others in rounds for piece in others if len(piece) > part
        )
        assert max(len(first) for first, *_ in rounds) == part + 2 * 5
        # Where blocks may have to be fetched each is used once, by one of them.
        monkeypatch.setattr(type(reading.view.blocks), "in_place", False)
        used = Counter[bytes]()
        use = type(reading.view.blocks).use

        def counted(blocks: BlockStore, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
            used[block] += 1
            return use(blocks, block, job)

        monkeypatch.setattr(type(reading.view.blocks), "use", counted)
        rounds = list(
            zip(
                *(
                    Transfer(
                        reading.view,
                        reading.reachable,
                        options=options,
                        trailers=trailers,
                        sharing=sharing,
                    ).chunks()
                    for _ in range(transfer.CROWD)
                ),
                strict=True,
            )
        )
        assert b"".join(first for first, *_ in rounds) == b"".join(alone)
        assert set(used.values()) == {1}


def test_a_transfer_that_the_collector_ends_meanwhile_is_counted_right() -> None:
    """Whatever is made inside may run Python's collector, which ends transfers that nobody wants any more."""
    sharing = Sharing(most_bytes=1_000)

    class Ends(list[bytes]):
        """Pieces whose lengths are asked for when the collector runs."""

        def __init__(self, plan: bytes) -> None:
            super().__init__([bytes(400)])
            self.plan = plan

        def __iter__(self) -> Iterator[bytes]:
            sharing.leave(self.plan)
            return super().__iter__()

    for plan in (b"other", b"other", b"plan", b"plan"):
        sharing.enter(plan)
    other = sharing.enter(b"other")
    sharing.leave(b"other")
    shared = sharing.enter(b"plan")
    sharing.leave(b"plan")
    other.frame(PARTS[0], Maker(400))
    shared.frame(PARTS[0], lambda: Ends(b"other"))  # another plan loses what it held
    assert sharing.held_bytes == 400
    shared.frame(PARTS[1], lambda: Ends(b"plan"))  # and then this one
    assert sharing.held_bytes == 0
    for plan in (b"plan", b"plan"):
        shared = sharing.enter(plan)
    for part in PARTS:
        shared.frame(part, Maker(400))
    assert sharing.held_bytes == 800


def test_an_object_in_blocks_of_its_own_is_sent_the_same_by_a_crowd_that_dissolves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    work = make_history(tmp_path / "work", commits=12)
    (work / "noise").write_bytes(random.Random(1).randbytes(9 << 20))
    git(work, "add", "noise")
    git(work, "commit", "-qm", "noise")
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as store:
        import_repository(store, "demo", str(work))
        reading = Reading(store, "demo")
        view = reading.view
        assert view is not None
        assert any(segment.entry.flags & ALONE for segment in view.segments)
        trailers, sharing = Trailers(), Sharing()

        def begin() -> Iterator[bytes]:
            options = TransferOptions(sideband=True)
            words = {"options": options, "trailers": trailers, "sharing": sharing}
            return Transfer(view, reading.reachable, **words).chunks()  # type: ignore[arg-type]

        alone = list(begin())
        whole = b"".join(alone)
        crowd = [begin() for _ in range(transfer.CROWD)]
        rounds = list(zip(*crowd, strict=True))
        assert b"".join(first for first, *_ in rounds) == whole
        assert sum(first is last for first, *_, last in rounds if len(first) > 1 << 19) >= 8
        stays, *others = [begin() for _ in range(transfer.CROWD)]
        got = []
        for piece in stays:
            got.append(piece)
            for each in others:
                next(each)
            if others and sum(map(len, got)) > 3 << 20:  # in the middle of a block
                for each in others:
                    each.close()  # type: ignore[attr-defined]
                others = []
        assert b"".join(got) == whole
        assert not sharing._plans
        assert sharing.held_bytes == 0
