"""Answers to fetches that were made before, for fleets that all fetch the same: made once, then sent as they are.

An answer follows from the request and from what a repository shows: its refs, the pool's view (with grafts), its
settings. All of them are in the key, as the journal shows them when the request is looked at, so an answer is found
only where making it anew would give the same. A request whose answer follows from more is never kept.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit.kept import Kept
from shardgit.protocol.filter_spec import FilterKind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from shardgit.kept import Looked
    from shardgit.protocol.upload_pack import Fetch
    from shardgit.service.store import RepositoryState

# Of one: more is held back for no client, and the first piece of a large clone is over it.
ANSWER_BYTES = 512 << 10
ANSWERS_BYTES = 32 << 20
IDS_MAX = 512  # in a request whose answer is kept
KEY_BYTES, ID_BYTES = 1_000, 100  # that a key costs, and each id in it
KEEPALIVE = b"0005\x01"  # an empty packet of band 1


class Whole(bytes):
    """A piece that is an answer by itself."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of an answer: it is here, or it is not one that is kept; or whoever made it has ``left``."""

    answer: Whole | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What an answer follows from."""

    settings: bytes
    refs: bytes
    view: bytes
    request: Fetch

    @property
    def size_bytes(self) -> int:
        """About what this costs as a key."""
        names = sum(map(len, (*self.request.want_refs, *self.request.deepening.without)))
        return KEY_BYTES + ID_BYTES * _ids_in(self.request) + names


def place_of(state: RepositoryState, request: Fetch) -> Place | None:
    """Return what the answer to a request follows from, None where that is more than a repository's state.

    A pack at a URI comes and goes by itself, and a sparse filter names a blob by a revision that is read later.
    """
    sparse = any(each.kind is FilterKind.SPARSE for each in request.filters)
    if request.uri_protocols or sparse or _ids_in(request) > IDS_MAX:
        return None
    asked = replace(request, session_id=b"")
    return Place(state.record.settings, state.refs_key, state.pool.view.id, asked)


def _ids_in(request: Fetch) -> int:
    deepening = request.deepening
    named = len(request.want_refs) + len(deepening.without)
    return len(request.wants) + len(request.haves) + len(deepening.shallows) + named


class Answers:
    """The answers of one process. Coroutines run on its event loop; ``get`` in any thread."""

    def __init__(self, most_bytes: int = ANSWERS_BYTES) -> None:
        self._kept = Kept(most_bytes, largest_bytes=ANSWER_BYTES)
        self._making: dict[Place, asyncio.Future[_Outcome]] = {}

    @property
    def looked(self) -> Looked:
        """What can be told of the answers that are kept."""
        return self._kept

    def get(self, place: Place) -> Whole | None:
        """Return an answer that is kept."""
        found = self._kept.get(place)
        return found if isinstance(found, Whole) else None

    async def awaited(self, place: Place) -> Whole | None:
        """Return the answer that is being made for another client; None when nobody makes one that is kept."""
        while (making := self._making.get(place)) is not None:
            outcome = await asyncio.shield(making)
            if not outcome.left:
                return outcome.answer
        return None  # its maker was left by its client: the first who hears of it makes it

    async def keep(
        self, place: Place, source: AsyncGenerator[bytes, None], still: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        """Pass an answer on, and keep it when it is short and ``still`` says at its end that it is the place's.

        It is held back until it is whole, or too long to be kept, or takes its time: others wait for it, who should
        not have to wait for this client. What the source raises goes through, behind what came before.
        """
        held: list[bytes] = []
        answer = None
        making: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        self._making.setdefault(place, making)
        async with aclosing(source):
            try:
                answer = await _short(source, held)
            except Exception:
                self._tell(place, making, _Outcome())
                for piece in held:
                    yield piece
                raise
            except BaseException:  # cancelled, or closed
                self._tell(place, making, _Outcome(left=True))
                raise
            if answer is not None and still():
                self._kept.put(place, answer, place.size_bytes)
                self._tell(place, making, _Outcome(answer))
            else:
                self._tell(place, making, _Outcome())
            if answer is not None:
                yield answer
                return
            for piece in held:
                yield piece
            held.clear()
            async for piece in source:
                yield piece

    def _tell(self, place: Place, making: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
        if self._making.get(place) is making:
            del self._making[place]
        if not making.done():
            making.set_result(outcome)


async def _short(source: AsyncGenerator[bytes, None], held: list[bytes]) -> Whole | None:
    """Return the whole of a short answer; None with its start in ``held`` when it is not one, or not soon."""
    size = 0
    async for piece in source:
        held.append(piece)
        size += len(piece)
        if size > ANSWER_BYTES or piece is KEEPALIVE:
            return None
    return Whole(b"".join(held))
