"""The Git LFS edge: batch API, basic transfers and locks, beside each repository's Git routes."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from shardgit import telemetry
from shardgit.errors import (
    AlreadyExists,
    Conflict,
    Internal,
    InvalidArgument,
    LfsObjectRefused,
    LimitExceeded,
    LockExists,
    NotFound,
    Overloaded,
    PermissionRefused,
    RateLimited,
    ReadOnly,
    ShardgitError,
    StorageFull,
    Unauthenticated,
    Unavailable,
)
from shardgit.http.body import body_pieces
from shardgit.http.edge import current, headers_of, note
from shardgit.http.request import base_url, repository_name
from shardgit.http.stream import PackResponse
from shardgit.service.access import Action, authorize, caller
from shardgit.service.lfs import LfsObjects
from shardgit.service.locks import Locks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shardgit.journal.lfs_records import LfsRecord, LockRecord
    from shardgit.service.access import Principal
    from shardgit.service.locks import LockPage
    from shardgit.service.store import Store

    Handler = Callable[["LfsHttp", web.Request], Awaitable[web.StreamResponse]]

T = TypeVar("T")
MEDIA_TYPE = "application/vnd.git-lfs+json"
ACCEPTED = (MEDIA_TYPE, "application/json", "application/*", "*/*")
DOCUMENTATION = "https://github.com/git-lfs/git-lfs/tree/main/docs/api"
PREFIX = "/{name:.+}/info/lfs"
STATUS = (
    (StorageFull, 507),
    # Not 422: git-lfs takes that on a PUT for a quarrel about content types, and exits with 0.
    (LfsObjectRefused, 400),
    (NotFound, 404),
    (Unauthenticated, 401),
    (PermissionRefused, 403),
    (Overloaded, 503),
    (RateLimited, 429),
    (LimitExceeded, 413),
    (InvalidArgument, 422),
    (AlreadyExists, 409),
    (Conflict, 409),
    (ReadOnly, 409),
    (Unavailable, 503),
)
_OID = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


class _Ref(msgspec.Struct):
    name: str = ""


class _Object(msgspec.Struct):
    oid: str
    size: int


class _Batch(msgspec.Struct):
    operation: str
    objects: list[_Object]
    transfers: list[str] | None = None
    ref: _Ref | None = None
    hash_algo: str = "sha256"


class _LockWanted(msgspec.Struct):
    path: str
    ref: _Ref | None = None


class _Verified(msgspec.Struct):
    cursor: str | None = None
    limit: int | None = None
    ref: _Ref | None = None


class _Unlock(msgspec.Struct):
    force: bool = False
    ref: _Ref | None = None


def _told(handler: Handler) -> Handler:
    """Turn errors into JSON as the LFS API has them, and bound what a client may ask to get."""

    @functools.wraps(handler)
    async def wrapped(self: LfsHttp, request: web.Request) -> web.StreamResponse:
        try:
            return await handler(self, request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            text = error.text or error.reason
            current().seen.failed(InvalidArgument(text, status=error.status))
            return _problem(error.status, text)
        except ShardgitError as error:
            if current().streaming is not None:
                raise  # the answer is under way: it can only be cut
            note(request, error)
            status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
            facts = {"lock": _lock(error.facts["lock"])} if isinstance(error, LockExists) else {}
            plain = status == 500 or bool(facts)
            answer = _problem(status, error.message if plain else str(error), facts)
            answer.headers.update(headers_of(error))
            return answer
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:
            if current().streaming is not None:
                raise
            note(request, error)
            return _problem(500, Internal("internal error").message)

    return wrapped


class LfsHttp:
    """The routes of one worker under NAME.git/info/lfs."""

    def __init__(self, store: Store, *, url: str = "") -> None:
        self.store = store
        self.url = url
        self.limits = store.limits
        self.objects = LfsObjects(store)
        self.locks = Locks(store)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes; they go before those that take any path."""
        one = PREFIX + "/objects/{oid:[0-9a-f]{64}}"
        router.add_post(PREFIX + "/objects/batch", self.batch)
        router.add_post(PREFIX + "/objects/verify", self.verify)
        router.add_get(one, self.download)
        router.add_put(one + "/{size:[0-9]{1,19}}", self.upload)
        router.add_post(PREFIX + "/locks", self.lock)
        router.add_get(PREFIX + "/locks", self.list_locks)
        router.add_post(PREFIX + "/locks/verify", self.verify_locks)
        router.add_post(PREFIX + "/locks/{lock:[^/]+}/unlock", self.unlock)
        router.add_route("*", PREFIX + "{rest:(/.*)?}", self.nowhere)

    # ---- objects ----

    @_told
    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Say for each object what the client is to do: GET, PUT and verify, or nothing."""
        self._check_accept(request)
        asked = await self._json(request, _Batch)
        if asked.operation not in ("download", "upload"):
            raise InvalidArgument("operation must be download or upload")
        principal, name = caller(), repository_name(request)
        uploads = asked.operation == "upload"
        authorize(principal, Action.WRITE if uploads else Action.READ, name)
        if len(asked.objects) > self.limits.lfs_batch_objects_max:
            raise LimitExceeded(
                "too many objects in one batch", limit=self.limits.lfs_batch_objects_max
            )
        oids = [
            bytes.fromhex(each.oid) if _OID.fullmatch(each.oid) else b"" for each in asked.objects
        ]
        found = await self.store.workers.run(self.objects.find, name, oids)
        plan = _Plan(
            base=self._base(request),
            most_bytes=self.limits.lfs_object_max_bytes,
            uploads=uploads,
            # A client that has credentials is to send them with the transfers as well.
            authenticated="Authorization" not in request.headers,
            hash_known=asked.hash_algo == "sha256",
        )
        objects = [
            plan.row(each, record) for each, record in zip(asked.objects, found, strict=True)
        ]
        return _json({"transfer": "basic", "objects": objects, "hash_algo": "sha256"})

    @_told
    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Say whether an object that was uploaded is there."""
        self._check_accept(request)
        asked = await self._json(request, _Object)
        name = repository_name(request)
        authorize(caller(), Action.READ, name)
        oid = bytes.fromhex(asked.oid) if _OID.fullmatch(asked.oid) else b""
        (record,) = await self.store.workers.run(self.objects.find, name, [oid])
        if record is None:
            return _refused(404, "Object does not exist")
        if record.size != asked.size:
            return _refused(422, f"Object has {record.size} bytes, not {asked.size}")
        return _json({"oid": asked.oid, "size": record.size})

    @_told
    async def upload(self, request: web.Request) -> web.StreamResponse:
        """Take an object in; it is there when the answer is 200, and nothing of it otherwise."""
        name = repository_name(request)
        authorize(caller(), Action.WRITE, name)
        size = int(request.match_info["size"])
        encoded = request.headers.get("Content-Encoding", "identity") not in ("identity", "")
        if not encoded and request.content_length not in (None, size):
            raise LfsObjectRefused(
                "body has another length than announced", size=size, length=request.content_length
            )
        pieces = body_pieces(
            request,
            most_bytes=self.limits.lfs_object_max_bytes,
            limits=self.limits,
        )
        await self.objects.put(name, bytes.fromhex(request.match_info["oid"]), size, pieces)
        return web.Response()

    @_told
    async def download(self, request: web.Request) -> web.StreamResponse:
        """Send an object, or a range of it."""
        name = repository_name(request)
        authorize(caller(), Action.READ, name)
        file = await self.objects.open(name, bytes.fromhex(request.match_info["oid"]))
        etag = f'"{file.oid.hex()}"'
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": "attachment",
            "X-Content-Type-Options": "nosniff",
            "Accept-Ranges": "bytes",
            "ETag": etag,
            # What an id names never changes; whether one may have it can.
            "Cache-Control": "private, max-age=0, must-revalidate",
        }
        if etag in _etags(request.headers.get("If-None-Match", "")):
            return web.Response(status=304, headers=headers)
        status, low, high = _range(request, etag, file.size)
        if status == 416:
            headers["Content-Range"] = f"bytes */{file.size}"
            return web.Response(status=416, headers=headers)
        if status == 206:
            headers["Content-Range"] = f"bytes {low}-{high - 1}/{file.size}"
        headers["Content-Length"] = str(high - low)
        if request.method == "HEAD" or low == high:
            response = web.StreamResponse(status=status, headers=headers)
            await response.prepare(request)
            await response.write_eof()
            return response
        async with aclosing(self.objects.read(file, low, high)) as source:
            first = await anext(source)  # what is missing is told as an error, not as a cut
            headers["X-Request-Id"] = current().seen.id
            streamed = PackResponse(headers=headers, limits=self.limits)
            streamed.set_status(status)
            current().streaming = streamed
            await streamed.send(request, (first,), source)
            await streamed.write_eof()
        return streamed

    # ---- locks ----

    @_told
    async def lock(self, request: web.Request) -> web.StreamResponse:
        """Lock a path."""
        self._check_accept(request)
        asked = await self._json(request, _LockWanted)
        principal, name = self._writer(request)
        made = await self.store.workers.run(self.locks.lock, name, asked.path, principal)
        return _json({"lock": _lock(made)}, status=201)

    @_told
    async def list_locks(self, request: web.Request) -> web.StreamResponse:
        """List locks, by path or id where they are asked for so."""
        self._check_accept(request)
        name = repository_name(request)
        authorize(caller(), Action.READ, name)
        query = request.query
        limit = query.get("limit", "")
        if limit and not (limit.isascii() and limit.isdigit() and len(limit) < 10):
            raise InvalidArgument("limit is not a number")
        page = await self.store.workers.run(
            self.locks.list,
            name,
            path=query.get("path", ""),
            lock=query.get("id", ""),
            cursor=query.get("cursor", ""),
            limit=int(limit or 0),
        )
        return _json({"locks": [_lock(each) for each in page.locks], **_next(page)})

    @_told
    async def verify_locks(self, request: web.Request) -> web.StreamResponse:
        """List the client's own locks and the others'."""
        self._check_accept(request)
        asked = await self._json(request, _Verified)
        principal, name = self._writer(request)
        page = await self.store.workers.run(
            self.locks.list, name, cursor=asked.cursor or "", limit=asked.limit or 0
        )
        ours = [each for each in page.locks if each.owner == principal.name]
        theirs = [each for each in page.locks if each.owner != principal.name]
        rows = {"ours": [_lock(each) for each in ours], "theirs": [_lock(each) for each in theirs]}
        return _json({**rows, **_next(page)})

    @_told
    async def unlock(self, request: web.Request) -> web.StreamResponse:
        """Take a lock away."""
        self._check_accept(request)
        asked = await self._json(request, _Unlock)
        principal, name = self._writer(request)
        gone = await self.store.workers.run(
            self.locks.unlock, name, request.match_info["lock"], principal, force=asked.force
        )
        return _json({"lock": _lock(gone)})

    @_told
    async def nowhere(self, _: web.Request) -> web.StreamResponse:
        """Answer what is no part of the API."""
        raise web.HTTPNotFound(text="Not found")

    # ---- parts ----

    def _writer(self, request: web.Request) -> tuple[Principal, str]:
        principal, name = caller(), repository_name(request)
        authorize(principal, Action.WRITE, name)
        return principal, name

    def _check_accept(self, request: web.Request) -> None:
        """Raise HTTP 406 for a client that does not take the API's JSON."""
        accept = request.headers.get("Accept", "*/*")
        kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
        if not any(kind in ACCEPTED for kind in kinds):
            raise web.HTTPNotAcceptable(text=f"the Accept header needs to be {MEDIA_TYPE}")

    async def _json(self, request: web.Request, kind: type[T]) -> T:
        """Return the body as ``kind``. Errors: HTTP 415 for another type, 400, 413, 422."""
        if request.content_type not in (MEDIA_TYPE, "application/json"):
            raise web.HTTPUnsupportedMediaType(text=f"content type must be {MEDIA_TYPE}")
        body = bytearray()
        async for piece in body_pieces(
            request,
            most_bytes=self.limits.lfs_request_max_bytes,
            limits=self.limits,
        ):
            body += piece
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as cause:
            raise InvalidArgument("request is off", cause=str(cause)) from cause
        except (msgspec.DecodeError, RecursionError) as cause:
            raise web.HTTPBadRequest(text="body is not JSON") from cause

    def _base(self, request: web.Request) -> str:
        """Return the URL under which this client reaches the objects."""
        root = base_url(request, self.url)
        if root is None:
            raise web.HTTPBadRequest(text="request has no host header")
        path = request.rel_url.raw_path
        return f"{root}{path[: path.rindex('/objects/batch')]}/objects"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Makes the rows of a batch's answer."""

    base: str
    most_bytes: int
    uploads: bool
    authenticated: bool
    hash_known: bool

    def row(self, asked: _Object, record: LfsRecord | None) -> dict[str, Any]:
        """Return an object's row."""
        row: dict[str, Any] = {"oid": asked.oid[:200], "size": asked.size}
        code, text = self._error(asked, record)
        if code:
            return {**row, "error": {"code": code, "message": text}}
        if self.authenticated:
            row["authenticated"] = True
        here = f"{self.base}/{asked.oid}"
        if not self.uploads:
            row["actions"] = {"download": {"href": here}}
        elif record is None:
            row["actions"] = {
                "upload": {"href": f"{here}/{asked.size}"},
                "verify": {"href": f"{self.base}/verify"},
            }
        return row

    def _error(self, asked: _Object, record: LfsRecord | None) -> tuple[int, str]:
        if not self.hash_known:
            return 409, "Objects are named by sha256"
        if not _OID.fullmatch(asked.oid):
            return 422, "Object id is not 64 lower-case hex digits"
        if asked.size < 0:
            return 422, "Object has a negative size"
        if self.uploads and asked.size > self.most_bytes:
            return 422, f"Object is too large; the limit is {self.most_bytes} bytes"
        if record is None:
            return (0, "") if self.uploads else (404, "Object does not exist")
        if record.size != asked.size:
            return 422, f"Object has {record.size} bytes, not {asked.size}"
        return 0, ""


def _range(request: web.Request, etag: str, size: int) -> tuple[int, int, int]:
    """Return status, start and end of what is asked for: one range, or all for what we do not know."""
    text = request.headers.get("Range", "")
    found = _RANGE.fullmatch(text.replace(" ", ""))
    if found is None or request.headers.get("If-Range", etag) != etag:
        return 200, 0, size
    first, last = found.groups()
    if not first and not last:
        return 200, 0, size
    if not first:  # the last so many bytes
        low, high = max(0, size - int(last)), size
        return (206, low, high) if low < high else (416, 0, 0)
    low = int(first)
    high = min(size, int(last) + 1) if last else size
    if last and int(last) < low:
        return 200, 0, size  # not a range
    return (206, low, high) if low < size else (416, 0, 0)


def _etags(text: str) -> list[str]:
    return [each.strip().removeprefix("W/") for each in text.split(",")]


def _lock(record: LockRecord | Any) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.locked_ms // 1_000))
    return {
        "id": record.id.hex(),
        "path": record.path,
        "locked_at": when,
        "owner": {"name": record.owner},
    }


def _next(page: LockPage) -> dict[str, str]:
    return {"next_cursor": page.next} if page.next else {}


def _json(body: dict[str, Any], *, status: int = 200) -> web.Response:
    headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-cache"}
    return web.Response(status=status, body=msgspec.json.encode(body), headers=headers)


def _problem(status: int, text: str, more: dict[str, Any] | None = None) -> web.Response:
    body = {"message": " ".join(text.split()), "documentation_url": DOCUMENTATION}
    request_id = telemetry.request_id.get()
    return _json({**body, "request_id": request_id, **(more or {})}, status=status)


def _refused(status: int, text: str) -> web.Response:
    current().seen.failed(InvalidArgument(text, status=status))
    return _problem(status, text)
