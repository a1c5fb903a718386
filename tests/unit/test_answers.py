"""Fetches that were answered before: served again, made once for all who ask at once, never past a change."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hooking import move
from reference.gits import git, make_history

from shardgit.errors import DataLoss, ObjectMissing
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.protocol.deepening import Deepening
from shardgit.protocol.filter_spec import Filter, FilterKind
from shardgit.protocol.upload_pack import Fetch
from shardgit.service.answers import ANSWER_BYTES, IDS_MAX, KEEPALIVE, Answers, Place, Whole
from shardgit.service.configuring import Configuring
from shardgit.service.fetch import FetchService
from shardgit.service.forks import fork
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from shardgit.service.negotiation import FetchSession
    from shardgit.service.store import Store


class Counting(FetchService):
    """Counts the fetches that are looked at closely."""

    sessions = 0

    async def session(self, name: str, request: Fetch) -> FetchSession:
        self.sessions += 1
        return await super().session(name, request)


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return make_history(tmp_path / "work", commits=10)


@pytest.fixture
def store(tmp_path: Path, history: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as opened:
        import_repository(opened, "demo", str(history))
        yield opened


def oid(history: Path, revision: str) -> ObjectId:
    return ObjectId(bytes.fromhex(git(history, "rev-parse", revision).decode().strip()))


def fetch(*wants: ObjectId, haves: tuple[ObjectId, ...] = ()) -> Fetch:
    return Fetch(
        2, wants, haves, done=True, thin_pack=True, ofs_delta=True, no_progress=True, sideband=2
    )


async def answer(service: FetchService, request: Fetch, name: str = "demo") -> bytes:
    return b"".join([piece async for piece in service.fetch(name, request)])


async def test_an_answer_is_made_once_and_is_what_it_was(store: Store, history: Path) -> None:
    tip, old = oid(history, "main"), oid(history, "main~4")
    plain = fetch(tip, haves=(old,))
    for request in (
        plain,
        fetch(tip),
        replace(plain, done=False),
        replace(plain, version=0, sideband=1),
        replace(plain, no_progress=False),
        replace(plain, include_tag=True),
        replace(plain, deepening=Deepening(depth=2)),
        replace(plain, filters=(Filter(FilterKind.BLOB_NONE),)),
        replace(plain, want_refs=(b"refs/heads/side",)),
    ):
        service = Counting(store, version="test")
        first = await answer(service, request)
        assert service.sessions == 1
        assert await answer(service, request) == first
        assert await answer(service, replace(request, session_id=b"another")) == first
        assert service.sessions == 1
        assert await answer(FetchService(store, version="test"), request) == first


async def test_different_requests_get_their_own_answers(store: Store, history: Path) -> None:
    service = Counting(store, version="test")
    tip = oid(history, "main")
    answers = {
        await answer(service, fetch(tip, haves=(oid(history, f"main~{n}"),))) for n in range(1, 6)
    }
    assert len(answers) == service.sessions == 5


async def test_those_who_ask_at_once_share_one_making(store: Store, history: Path) -> None:
    service = Counting(store, version="test")
    request = fetch(oid(history, "main"), haves=(oid(history, "main~3"),))
    answers = await asyncio.gather(*(answer(service, request) for _ in range(16)))
    assert len(set(answers)) == 1
    assert service.sessions == 1


async def test_a_client_that_leaves_takes_nothing_from_the_others(
    store: Store, history: Path
) -> None:
    service = Counting(store, version="test")
    request = fetch(oid(history, "main"), haves=(oid(history, "main~3"),))
    async with asyncio.TaskGroup() as group:
        first = group.create_task(answer(service, request))
        others = [group.create_task(answer(service, request)) for _ in range(4)]
        while not service.sessions:
            await asyncio.sleep(0)
        first.cancel()
    assert {one.result() for one in others} == {await answer(service, request)}
    # One of the others made it for all, unless the first had it before it was told to leave.
    assert service.sessions == 1 + first.cancelled()
    with contextlib.suppress(asyncio.CancelledError):
        first.result()


async def test_what_no_ref_reaches_any_more_is_refused(store: Store, history: Path) -> None:
    git(history, "checkout", "-q", "-b", "secret", "main")
    git(history, "commit", "-q", "--allow-empty", "-m", "secret")
    import_repository(store, "demo", str(history))
    service = Counting(store, version="test")
    request = fetch(oid(history, "secret"), haves=(oid(history, "main"),))
    first = await answer(service, request)
    move(store, "refs/heads/secret", None)
    move(store, "HEAD", oid(history, "main"))
    with pytest.raises(ObjectMissing):
        await answer(service, request)
    move(store, "refs/heads/again", oid(history, "secret"))
    assert await answer(service, request) == first


async def test_what_is_hidden_is_refused(store: Store, history: Path) -> None:
    git(history, "checkout", "-q", "-b", "secret", "main")
    git(history, "commit", "-q", "--allow-empty", "-m", "secret")
    git(history, "checkout", "-q", "main")
    import_repository(store, "demo", str(history))
    service = Counting(store, version="test")
    request = fetch(oid(history, "secret"), haves=(oid(history, "main"),))
    await answer(service, request)
    Configuring(store).update("demo", {"fetch.hidden_refs": ["refs/heads/secret"]})
    with pytest.raises(ObjectMissing):
        await answer(service, request)


async def test_a_fork_serves_what_its_own_refs_reach(store: Store, history: Path) -> None:
    tip = oid(history, "main")
    fork(store, "demo", "fork")
    git(history, "commit", "-q", "--allow-empty", "-m", "of demo alone")
    import_repository(store, "demo", str(history))
    service = Counting(store, version="test")
    request = fetch(oid(history, "main"), haves=(tip,))
    await answer(service, request)
    with pytest.raises(ObjectMissing):
        await answer(service, request, "fork")
    shared = fetch(tip, haves=(oid(history, "main~3"),))
    assert await answer(service, shared) == await answer(service, shared, "fork")


async def test_what_follows_from_more_is_not_kept(store: Store, history: Path) -> None:
    service = Counting(store, version="test")
    tip = oid(history, "main")
    blob = b"main:empty"
    sparse = replace(fetch(tip), filters=(Filter(FilterKind.SPARSE, name=blob),))
    uris = replace(fetch(tip), uri_protocols=("https",), sideband_all=True)
    git(history, "checkout", "-q", "-b", "secret", "main")
    git(history, "commit", "-q", "--allow-empty", "-m", "secret")
    git(history, "checkout", "-q", "main")
    import_repository(store, "demo", str(history))
    hiding = {"fetch.hidden_refs": ["refs/heads/secret"], "fetch.hidden_wants": True}
    Configuring(store).update("demo", hiding)
    hidden = fetch(oid(history, "secret"), haves=(tip,))  # looked up beside what the key tells
    many = fetch(tip, haves=tuple(ObjectId(n.to_bytes(20, "big")) for n in range(IDS_MAX)))
    for request in (sparse, uris, hidden, many):
        service.sessions = 0
        assert await answer(service, request) == await answer(service, request)
        assert service.sessions == 2


# ---- Answers by itself ----

PLACE = Place(b"", b"", b"", Fetch(2))


async def source(*pieces: bytes | Exception) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        await asyncio.sleep(0)
        if isinstance(piece, Exception):
            raise piece
        yield piece


def yes() -> bool:
    return True


async def test_a_short_answer_comes_in_one_piece_and_stays() -> None:
    answers = Answers()
    assert [one async for one in answers.keep(PLACE, source(b"a", b"b"), yes)] == [Whole(b"ab")]
    assert answers.get(PLACE) == b"ab"
    assert await answers.awaited(PLACE) is None


@pytest.mark.parametrize(
    "pieces",
    [
        [b"x" * ANSWER_BYTES, b"y", b"z"],
        [b"a", KEEPALIVE, b"b"],
        [b"a", b"y" * ANSWER_BYTES, KEEPALIVE],
    ],
)
async def test_what_is_long_or_slow_passes_and_nobody_waits_for_it(pieces: list[bytes]) -> None:
    answers = Answers()
    kept = answers.keep(PLACE, source(*pieces), yes)
    out = [await anext(kept)]
    assert await answers.awaited(PLACE) is None
    out += [one async for one in kept]
    assert out == pieces
    assert answers.get(PLACE) is None


async def test_an_answer_to_another_state_is_not_kept() -> None:
    answers = Answers()
    assert [one async for one in answers.keep(PLACE, source(b"a"), lambda: False)] == [b"a"]
    assert answers.get(PLACE) is None


async def test_an_error_comes_behind_what_came_before_it() -> None:
    answers = Answers()
    out: list[bytes] = []
    waiting = None
    with pytest.raises(DataLoss):
        async for one in answers.keep(PLACE, source(b"a", b"b", DataLoss("lost")), yes):
            waiting = waiting or await answers.awaited(PLACE)
            out.append(one)
    assert out == [b"a", b"b"]
    assert waiting is None
    assert answers.get(PLACE) is None


async def test_answers_are_bounded() -> None:
    answers = Answers(most_bytes=10_000)
    places = [Place(b"", b"", bytes([n]), Fetch(2)) for n in range(20)]
    for place in places:
        assert [one async for one in answers.keep(place, source(b"a" * 500), yes)]
    kept = [place for place in places if answers.get(place)]
    assert places[-1] in kept
    assert len(kept) < 10
