"""The HTTP connections of one worker: how many there may be, and how long one may stay silent."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from typing import TYPE_CHECKING, Any

from aiohttp import web

from shardgit import metrics
from shardgit.leaving import LINGER_S
from shardgit.workers import meanwhile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Container

    from shardgit.leaving import Patience
    from shardgit.limits import Limits

LOOK_S = 0.05  # between two looks at who is left
LOOKS = 4  # within the time that a connection has
REFUSED_MAX = 256  # connections past the bound that are kept until they have been told so
TOO_MANY = "too many connections; try again\n"


class Connections:
    """Bounds a server's connections; to be given to an acceptor in the server's place.

    Past ``limits.http_connections_max`` the connection that has idled for longest makes room. While
    none idles, a new one gets 503 for its request, and one far past the bound is closed at once.
    A connection whose first request's head is not whole within ``limits.client_stall_max_s`` is
    cut, and so is one whose next head is not, from its first byte on; between requests aiohttp's own keep-alive time
    counts.

    With ``of_address_max`` the connections of an address are bounded in the same way; and where none idles, the one
    that has owed a head for longest makes room: who is silent keeps out nobody who asks.
    """

    def __init__(self, limits: Limits, *, of_address_max: int | None = None) -> None:
        self._most = limits.http_connections_max
        self._of_address_max = of_address_max
        self._of_address: dict[str, dict[web.RequestHandler, None]] = {}
        self._silence_s = limits.client_stall_max_s
        self._server: web.Server | None = None
        self._since: dict[web.RequestHandler, float] = {}  # when a head was begun, or is due
        self._idle: dict[web.RequestHandler, None] = {}  # served and waiting, longest first
        self._surplus: set[web.RequestHandler] = set()
        self._busy: set[web.RequestHandler] = set()
        self._is_draining = False

    def __call__(self) -> asyncio.BaseProtocol:
        """Return the protocol of a connection that was accepted."""
        assert self._server is not None
        here = self.count()
        if here >= self._most and self._made_room():
            here -= 1
        if here >= self._most + REFUSED_MAX:
            metrics.HTTP_CONNECTIONS_REFUSED.inc()
            return _Closed()
        made = self._server()
        if here >= self._most:
            self._surplus.add(made)
        if self._of_address_max is None:
            return _Heard(made, self._since, self._idle)
        return _Counted(made, self._since, self._idle, self._came, self._went)

    def count(self) -> int:
        """Return how many connections there are."""
        return len(self._server.connections) if self._server is not None else 0

    @web.middleware
    async def heard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Note that a connection brought a request, and pass that on."""
        connection = request.protocol
        self._since.pop(connection, None)
        self._idle.pop(connection, None)
        if connection in self._surplus:
            metrics.HTTP_CONNECTIONS_REFUSED.inc()
            answer = web.Response(status=503, text=TOO_MANY, headers={"Retry-After": "1"})
            answer.force_close()
            return answer
        self._busy.add(connection)
        try:
            return await handler(request)
        finally:
            self._busy.discard(connection)
            if request.transport is not None:
                self._idle[connection] = None

    async def last_answers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Have each connection end with its answer, once the server drains."""
        del request
        if self._is_draining:
            response.force_close()
            response.headers["Connection"] = "close"

    async def drain(self, patience: Patience) -> None:
        """Answer each connection's next request, then close it; those that have none for a while at once.

        A client that has just had an answer may be sending its next request. Returns when patience is over at the
        latest.
        """
        self._is_draining = True
        now = asyncio.get_running_loop().time
        begun = now()
        while not patience.is_over() and self._server is not None:
            here = set(self._server.connections)
            if not here:
                return
            if now() - begun >= LINGER_S:
                for connection in here - self._busy:
                    connection.force_close()
            await asyncio.sleep(LOOK_S)

    def _made_room(self, among: Container[web.RequestHandler] | None = None) -> bool:
        """Close the connection, ``among`` some, that has idled for longest, or may go in its place, if there is one."""
        longest = _first(self._idle, among)
        if longest is not None:
            del self._idle[longest]
            _close(longest)
            return True
        if self._of_address_max is None:
            return False
        silent = _first(self._since, among)
        if silent is not None:
            del self._since[silent]
            _close(silent)
        return silent is not None

    def _came(self, connection: web.RequestHandler, address: str) -> None:
        """Count a connection for its address."""
        theirs = self._of_address.setdefault(address, {})
        for gone in [each for each in theirs if each.transport is None]:
            del theirs[gone]
        assert self._of_address_max is not None
        if len(theirs) >= self._of_address_max and not self._made_room(theirs):
            self._surplus.add(connection)
        theirs[connection] = None

    def _went(self, connection: web.RequestHandler, address: str) -> None:
        theirs = self._of_address.get(address, {})
        theirs.pop(connection, None)
        if not theirs:
            self._of_address.pop(address, None)

    @contextlib.asynccontextmanager
    async def looking(self, server: web.Server) -> AsyncIterator[None]:
        """Look after a server's connections until the block is left."""
        self._server = server
        async with meanwhile(self._look(server), "http-connections"):
            yield

    async def _look(self, server: web.Server) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._silence_s / LOOKS)
            known = set(server.connections)
            self._surplus &= known
            for gone in [each for each in self._idle if each not in known]:
                del self._idle[gone]
            latest = now() - self._silence_s
            late = [each for each, since in self._since.items() if since <= latest]
            for connection in late:
                del self._since[connection]
                connection.force_close()


class _Heard(asyncio.Protocol):
    """Passes on what comes of a connection, and notes when a head is due, or begun while nothing is under way."""

    def __init__(
        self,
        inner: web.RequestHandler,
        since: dict[web.RequestHandler, float],
        idle: dict[web.RequestHandler, None],
    ) -> None:
        self._inner = inner
        self._since = since
        self._idle = idle
        for name in ("eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(inner, name))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head."""
        self._since[self._inner] = asyncio.get_running_loop().time()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._since.pop(self._inner, None)
        self._idle.pop(self._inner, None)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what comes of an idle connection for the beginning of a head."""
        if self._inner in self._idle and self._inner not in self._since:
            self._since[self._inner] = asyncio.get_running_loop().time()
        self._inner.data_received(data)


class _Counted(_Heard):
    """Tells of which address a connection came, and that it went."""

    def __init__(
        self,
        inner: web.RequestHandler,
        since: dict[web.RequestHandler, float],
        idle: dict[web.RequestHandler, None],
        came: Callable[[web.RequestHandler, str], None],
        went: Callable[[web.RequestHandler, str], None],
    ) -> None:
        super().__init__(inner, since, idle)
        self._came = came
        self._went = went
        self._address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it for its address, before it is one that might make room."""
        self._address = _network(transport)
        self._came(self._inner, self._address)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._went(self._inner, self._address)
        super().connection_lost(exc)


def _first(
    connections: dict[web.RequestHandler, Any], among: Container[web.RequestHandler] | None
) -> web.RequestHandler | None:
    return next((each for each in connections if among is None or each in among), None)


def _close(connection: web.RequestHandler) -> None:
    transport = connection.transport
    if transport is not None:
        connection.force_close()
        if transport.get_write_buffer_size():
            transport.abort()  # its client does not take the end of its answer


def _network(transport: asyncio.BaseTransport) -> str:
    """Return the address at the other end; of IPv6 the first 64 bits, which a single host may have all of."""
    peer = transport.get_extra_info("peername")
    host = str(peer[0]).partition("%")[0] if isinstance(peer, tuple) else ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return str(ipaddress.ip_network(f"{host}/64", strict=False))
    return host


class _Closed(asyncio.Protocol):
    """Closes its connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()
