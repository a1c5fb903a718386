"""Where a push's journal snapshot is open: while a small one is judged, never over a program, a walk or a settle."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from gcing import MAIN, ME, Made, commit, push

from shardgit.journal.lmdb import LmdbJournal
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.protocol.pktline import Mark, encode
from shardgit.service import intake, signed_push
from shardgit.service import push as push_module
from shardgit.service import store as store_module
from shardgit.service.look import Look
from shardgit.service.receive import ReceiveService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from types import ModuleType

    from shardgit.journal.interface import JournalSnapshot

LIMITS = Limits(recents_settle=10_000, recents_max=2)
SIGNATURE = b"-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"


class Watch:
    """Tells how many snapshots of the journal the calling thread has open when it calls a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._here = threading.local()
        real = LmdbJournal.snapshot

        @contextmanager
        def counted(journal: LmdbJournal) -> Iterator[JournalSnapshot]:
            with real(journal) as snapshot:
                self._here.open = self._open() + 1
                try:
                    yield snapshot
                finally:
                    self._here.open -= 1

        monkeypatch.setattr(LmdbJournal, "snapshot", counted)

    def _open(self) -> int:
        return int(getattr(self._here, "open", 0))

    def at(self, module: ModuleType, name: str) -> list[int]:
        """Return where the counts at each call of a module's function come to stand."""
        found: list[int] = []
        real = getattr(module, name)

        def told(*words: Any, **named: Any) -> Any:
            found.append(self._open())
            return real(*words, **named)

        self._monkeypatch.setattr(module, name, told)
        return found


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture
def first(tmp_path: Path) -> Made:
    """A commit that a store has, which was closed since."""
    create_store(tmp_path / "data")
    made = commit(size=10)
    with open_store(tmp_path / "data", limits=LIMITS) as store:
        store.create_repository("demo", HashKind.SHA1)
        push(store, "demo", MAIN, None, made, made)
    return made


async def received(
    folder: Path, first: Made, *, warm: bool = True, more: int = 0, signed: bool = False
) -> bytes:
    """Push a new branch as edges do, where the look is ``warm`` or not, behind some ``more``; returns the answer."""
    new = commit(first, size=10)
    line = HashKind.SHA1.null.hex().encode() + b" " + new.id.hex().encode() + b" refs/heads/new"
    with open_store(folder, limits=LIMITS, threads=2) as store:
        for number in range(more):
            other = commit(first, size=10)
            push(store, "demo", b"refs/heads/%d" % number, None, other, other)
        if warm:
            assert Look(store, "demo").reachable
        head = [line + b"\0report-status"]
        if signed:
            text = b"certificate version 0.1\npusher A <a@b.c> 1 +0000\n\n" + line + b"\n"
            rows = (text + SIGNATURE).splitlines(keepends=True)
            head = [b"push-cert\0report-status\n", *rows, b"push-cert-end\n"]

        async def pieces() -> AsyncIterator[bytes]:
            yield encode([*head, Mark.FLUSH]) + new.pack

        service = ReceiveService(store, version="1")
        answer = service.receive("demo", pieces(), principal=ME)
        return b"".join([piece async for piece in answer])


async def test_a_small_push_is_judged_in_one_snapshot(
    first: Made, tmp_path: Path, watch: Watch
) -> None:
    judged = watch.at(push_module, "certificate_facts")
    assert b"ok refs/heads/new" in await received(tmp_path / "data", first)
    assert judged == [1]


async def test_none_is_open_while_a_signature_is_checked(
    first: Made, tmp_path: Path, watch: Watch
) -> None:
    checked = watch.at(signed_push, "check_gpg")
    assert b"ok refs/heads/new" in await received(tmp_path / "data", first, signed=True)
    assert checked == [0]


async def test_none_is_open_while_a_repository_is_walked(
    first: Made, tmp_path: Path, watch: Watch
) -> None:
    judged = watch.at(push_module, "certificate_facts")
    walked = watch.at(store_module, "closure")
    assert b"ok refs/heads/new" in await received(tmp_path / "data", first, warm=False)
    assert judged == [0]
    assert walked == [0]


async def test_none_is_open_while_a_full_pool_is_settled(
    first: Made, tmp_path: Path, watch: Watch
) -> None:
    settled = watch.at(intake, "settle")
    assert b"ok refs/heads/new" in await received(tmp_path / "data", first, more=1)
    assert settled == [0]
