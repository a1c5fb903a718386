"""The desk: a worker's HTTP over a socket file that only the supervisor reaches.

Its threads are its own: while requests keep the worker's busy, or one waits for a disk, the others answer all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from shardgit import telemetry
from shardgit.desk.listing import Sizes, page
from shardgit.desk.surveying import survey
from shardgit.errors import InvalidArgument, PermissionRefused, ShardgitError
from shardgit.limits import DEFAULT
from shardgit.service.access import Action
from shardgit.service.doorkeeper import Shown
from shardgit.survey import Answer, Asking, socket_path
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from shardgit.service.doorkeeper import Doorkeeper
    from shardgit.service.store import Store
    from shardgit.survey import Survey

ASKING_MAX_BYTES = 32 << 10
WORDS_MAX = 200
CLOSE_MAX_S = 1.0


class Desk:
    """Answers the supervisor. ``doorkeeper`` says who visitors of the admin port are; all must show it."""

    def __init__(self, store: Store, doorkeeper: Doorkeeper) -> None:
        self._store = store
        self._doorkeeper = doorkeeper
        self._sizes = Sizes(store)
        self._looking = Workers(1)
        self._listing = Workers(
            1
        )  # of the journal alone: a shard's disk that hangs does not hold it up
        self._measuring = Workers(1)
        self._turn = asyncio.Lock()  # to measure; one who waits for it can go
        self._survey_made: asyncio.Task[Survey] | None = None

    @contextlib.asynccontextmanager
    async def serving(self, folder: Path, number: int) -> AsyncIterator[None]:
        """Answer at the socket of a worker's number until the block is left."""
        app = web.Application(client_max_size=ASKING_MAX_BYTES, middlewares=[_telling])
        app.router.add_post("/visitor", self._visitor)
        app.router.add_get("/survey", self._survey)
        app.router.add_get("/repositories", self._repositories)
        app.router.add_get("/size", self._size)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_MAX_S
        )
        await runner.setup()
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            path = socket_path(folder, number, opened=opened)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a worker that was killed  # noqa: PTH108 - through a descriptor
            await web.UnixSite(runner, path).start()
            yield
        finally:
            await runner.cleanup()
            os.close(opened)
            self._looking.close()
            self._listing.close()
            self._measuring.close()

    async def _visitor(self, request: web.Request) -> web.Response:
        """Say who shows what; the answer is of one who may administer the store, or has a code."""
        shown = msgspec.json.decode(await request.read(), type=Asking)
        told = Shown(
            address=shown.address,
            authorization=shown.authorization,
            certificate=shown.certificate,
            actor=shown.actor,
            for_address=shown.for_address,
        )
        try:
            if shown.again:
                found = self._doorkeeper.principal(told, again=True)
            else:
                found = await self._doorkeeper.admit(told)
            if not found.rights.allow(Action.ADMIN, None):
                raise PermissionRefused("not allowed", action="admin", actor=found.name)
        except ShardgitError as error:
            wait = error.facts.get("retry_after_s", 0)
            return _json(
                Answer("", error.code, error.message, wait if isinstance(wait, int) else 0)
            )
        return _json(Answer(found.name))

    async def _survey(self, _: web.Request) -> web.Response:
        """Survey the store; who asks while somebody else's survey is under way has that one."""
        made = self._survey_made
        if made is None or made.done():
            made = self._survey_made = asyncio.create_task(self._looking.run(survey, self._store))
            made.add_done_callback(_seen)  # also when all who asked are gone
        return _json(await asyncio.shield(made))

    async def _repositories(self, request: web.Request) -> web.Response:
        words, after = _word(request, "words"), _word(request, "after")
        return _json(await self._listing.run(page, self._store, words=words, after=after))

    async def _size(self, request: web.Request) -> web.Response:
        name = _word(request, "name")
        async with self._turn:  # a job that waits in a thread's queue would be done for nobody
            return _json(await self._measuring.run(self._sizes.of, name))


def _seen(ended: asyncio.Task[Survey]) -> None:
    if not ended.cancelled():
        ended.exception()


def _word(request: web.Request, key: str) -> str:
    text = request.query.get(key, "")
    most = WORDS_MAX if key == "words" else DEFAULT.repository_name_max_bytes
    if len(text.encode("utf-8", "replace")) > most or not (text.isprintable() or not text):
        raise InvalidArgument("not a name, or too long a one", key=key, limit=most)
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise InvalidArgument("not a name", key=key) from cause
    return text


@web.middleware
async def _telling(
    request: web.Request, handler: Callable[[web.Request], object]
) -> web.StreamResponse:
    """Answer with an error's code and words."""
    try:
        return await handler(request)  # type: ignore[misc, no-any-return]
    except ShardgitError as error:
        return _json(Answer("", error.code, str(error)), status=409)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception as error:
        telemetry.log().error("desk_failed", what=request.path, exc_info=error)
        return _json(Answer("", "INTERNAL", "internal error"), status=409)


def _json(body: msgspec.Struct, *, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )
