"""The SSH edge of one worker: connections, logins, and the sessions on them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncssh

from shardgit import telemetry
from shardgit.errors import Unauthenticated
from shardgit.leaving import LINGER_S, LOGIN_S
from shardgit.service.keys import shown
from shardgit.ssh.admission import GUEST, Admission
from shardgit.ssh.session import SshSession

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine, Sequence
    from pathlib import Path

    from shardgit.leaving import Patience
    from shardgit.service.access import Holder, Principal
    from shardgit.service.conversation import Conversations

# Without chacha20-poly1305, which clients put first: 200 MB cost 0.93 s of CPU with it, 0.48 with AES-GCM, 0.55 with
# AES-CTR. Without compression: packs are deflated already.
CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
]
KEEPALIVE_S = 30
KEEPALIVES_MISSED_MAX = 3
LOGIN_MAX_S = 60
SESSIONS_MAX = 32  # on one connection; sshd takes 10
LOOK_S = 0.05  # between two looks at who is left


class SshEdge:
    """Listens, and holds what runs. ``start`` jobs end before ``close`` returns.

    ``http`` is the URL of the HTTP port, for git-lfs, or ":PORT" of the host that a client reached; ``tls``: it speaks
    TLS.
    """

    def __init__(
        self,
        conversations: Conversations,
        admission: Admission,
        *,
        http: str = "",
        tls: bool = False,
    ) -> None:
        self.conversations = conversations
        self.http = http
        self.tls = tls
        self.admission = admission
        self.limits = conversations.limits
        self.connections: set[SshConnection] = set()
        self._acceptors: list[asyncssh.SSHAcceptor] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(
        self, sockets: Sequence[socket.socket], *, host_key: Path, backlog: int = 1_024
    ) -> None:
        """Begin to accept on sockets that other processes may accept on, too."""
        for each in sockets:
            each.setblocking(False)
            self._acceptors.append(await self._listen(each, host_key, backlog))

    async def _listen(
        self, listener: socket.socket, host_key: Path, backlog: int
    ) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            sock=listener,
            server_factory=lambda: SshConnection(self),
            server_host_keys=[str(host_key)],
            encoding=None,
            backlog=backlog,
            allow_pty=False,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
            password_auth=False,
            kbdint_auth=False,
            gss_host=None,
            encryption_algs=CIPHERS,
            compression_algs=["none"],
            server_version="shardgit",
            login_timeout=LOGIN_MAX_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES_MISSED_MAX,
        )

    def http_base(self, host: str) -> str:
        """Return the URL of the HTTP port for a client that reached us at ``host``."""
        if not self.http.startswith(":"):
            return self.http
        place = f"[{host}]{self.http}" if ":" in host else f"{host}{self.http}"
        return f"{'https' if self.tls else 'http'}://{place}"

    def start(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a job that ``close`` waits for."""
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self, patience: Patience) -> None:
        """Accept no more, let what runs end as long as patience lasts, then cut what is left.

        Who is logging in, or has just ended a session, may begin one.
        """
        for acceptor in self._acceptors:
            acceptor.close()
        while not patience.is_over() and (self.connections or self._tasks):
            for connection in list(self.connections):
                if connection.is_idle():
                    connection.close()
            await asyncio.sleep(LOOK_S)
        for connection in list(self.connections):
            connection.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        for connection in list(self.connections):
            await connection.closed()
        for acceptor in self._acceptors:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await acceptor.wait_closed()


class SshConnection(asyncssh.SSHServer):
    """One client: its login and its sessions."""

    def __init__(self, edge: SshEdge) -> None:
        self.edge = edge
        self.flow = asyncio.Event()
        self.flow.set()
        self._conn: asyncssh.SSHServerConnection | None = None
        self._address = ""
        self._claimed = GUEST
        self._fingerprint = b""
        self._principal: Principal | None = None
        self._sessions: set[SshSession] = set()
        self._stall: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None  # while no session is open
        self._seen = asyncio.get_running_loop().time()  # when it last did more than to stay

    def is_idle(self) -> bool:
        """Say whether no session runs, and none is to be awaited."""
        idled_s = asyncio.get_running_loop().time() - self._seen
        return not self._sessions and idled_s > (LOGIN_S if self._principal is None else LINGER_S)

    @property
    def own_host(self) -> str:
        """The address at which the client reached us."""
        name = self._conn.get_extra_info("sockname") if self._conn is not None else None
        return str(name[0]) if name else "localhost"

    # ---- what asyncssh calls ----

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Take the connection, or cut it when there are too many."""
        self._conn = conn
        peer = conn.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        if len(self.edge.connections) >= self.edge.limits.ssh_connections_max:
            telemetry.log().warning("ssh_connection_refused", address=self._address)
            conn.abort()
            return
        self.edge.connections.add(self)
        # asyncssh lets the transport's buffer grow as far as the window that the client chose, which may be
        # 4 GiB; so the transport's own word counts, and what it asks asyncssh comes here.
        for name, does in (("pause_writing", self._full), ("resume_writing", self._flows)):
            setattr(conn, name, does)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; its sessions are told by their channels."""
        self.edge.connections.discard(self)
        self._flows()
        self._rests(idle=False)
        if self._principal is None and exc is not None:
            telemetry.log().info("ssh_login_failed", address=self._address, error=str(exc)[:200])

    async def begin_auth(self, username: str) -> bool:
        """Ask for a key, unless anybody may come in."""
        del username  # whoever holds a key is known by it
        if await self.edge.admission.open_to_all():
            self._principal = self.edge.admission.principal(GUEST, self._address)
            return False
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys are the only way in."""
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Return whether a key is let in; the signature is checked by asyncssh."""
        del username
        import hashlib

        fingerprint = hashlib.sha256(key.public_data).digest()
        holder = await self.edge.admission.holder_of(fingerprint)
        if holder is None:
            telemetry.log().info(
                "ssh_key_unknown", address=self._address, fingerprint=shown(fingerprint)
            )
            return False
        self._claimed, self._fingerprint = holder, fingerprint
        return True

    def auth_completed(self) -> None:
        """Take the name of the key that has just been proved."""
        self._seen = asyncio.get_running_loop().time()
        if self._principal is None:
            self._principal = self.edge.admission.principal(self._claimed, self._address)
        self._rests(idle=True)

    async def principal_now(self) -> Principal:
        """Return who has logged in, with the rights of now. Errors: Unauthenticated when its key was taken away."""
        admission = self.edge.admission
        holder: Holder | None = GUEST
        if self._fingerprint:
            holder = await admission.holder_of(self._fingerprint)
        elif not await admission.open_to_all():
            holder = None
        if holder is None:
            raise Unauthenticated("key is not let in any more")
        return admission.principal(holder, self._address)

    def session_requested(self) -> SshSession | bool:
        """Open a session, of which a client may have some at once."""
        if self._principal is None or len(self._sessions) >= SESSIONS_MAX:
            return False
        session = SshSession(self, self._principal)
        self._sessions.add(session)
        self._rests(idle=False)
        return session

    # ---- flow ----

    def _full(self) -> None:
        """Stop writing and reading: a client that takes no answers may ask for no more."""
        self.flow.clear()
        self._reading(go_on=False)
        if self._stall is None:
            loop = asyncio.get_running_loop()
            self._stall = loop.call_later(
                self.edge.limits.client_stall_max_s, self._look, self.unsent()
            )

    def _look(self, before: int) -> None:
        """Cut the connection if its client has taken less than the slowest does since ``before`` bytes waited."""
        limits, now = self.edge.limits, self.unsent()
        if before - now < limits.client_stall_max_s * limits.client_slowest_bytes_s:
            self.abort()
            return
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(limits.client_stall_max_s, self._look, now)

    def unsent(self) -> int:
        """Return the bytes that wait for the client."""
        transport = getattr(self._conn, "_transport", None)
        return transport.get_write_buffer_size() if transport is not None else 0

    def _flows(self) -> None:
        self.flow.set()
        self._reading(go_on=True)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _reading(self, *, go_on: bool) -> None:
        transport = getattr(self._conn, "_transport", None)  # asyncssh offers no other way
        if transport is not None and not transport.is_closing():
            if go_on:
                transport.resume_reading()
            else:
                transport.pause_reading()

    # ---- the end ----

    def ended(self, session: SshSession) -> None:
        """Forget a session."""
        self._sessions.discard(session)
        self._seen = asyncio.get_running_loop().time()
        if self in self.edge.connections:
            self._rests(idle=not self._sessions)

    def _rests(self, *, idle: bool) -> None:
        """Close the connection once it has been without a session for so long; not ``idle``: it has one, or is gone."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if idle:
            pause_s = self.edge.limits.client_pause_max_s
            self._idle = asyncio.get_running_loop().call_later(pause_s, self.close)

    def abort(self) -> None:
        """Cut the connection."""
        if self._conn is not None:
            self._conn.abort()

    def close(self) -> None:
        """Say good-bye."""
        if self._conn is not None:
            self._conn.close()

    async def closed(self) -> None:
        """Wait until the connection is closed, or cut it."""
        if self._conn is None:
            return
        try:
            async with asyncio.timeout(1):
                await self._conn.wait_closed()
        except TimeoutError:
            self._conn.abort()
