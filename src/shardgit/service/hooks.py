"""Hooks around a push: which there are, what they are told, and what becomes of their answers.

How a hook is reached is its caller's work: programs in hook_program.py, HTTP and gRPC at the edges.
See docs/hooks.md.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

from shardgit import metrics, telemetry
from shardgit.errors import HookFailed, HookRefused
from shardgit.processes import own_prefix
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from shardgit.journal.records import RepositoryRecord
    from shardgit.protocol.receive_pack import Command
    from shardgit.service.access import Principal
    from shardgit.service.reading import Reading
    from shardgit.service.settings import Hook
    from shardgit.service.signed_push import CertificateFacts
    from shardgit.service.store import Store

    Tell = Callable[[bytes], Awaitable[None]]

PRE_RECEIVE, UPDATE, POST_RECEIVE = "pre_receive", "update", "post_receive"
COMMANDS_TOLD_MAX = 10_000  # of an HTTP or gRPC call; programs are told all
COMMANDS_TOLD_BYTES = 2 << 20  # of their names: gRPC takes messages of 4 MiB
CUT = b"\n(the rest of the output was cut)\n"


async def silent(_: bytes) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHookCall:
    """A push that waits for its hooks.

    ``read`` sees the repository as it would be with the pushed objects. ``tell`` shows bytes to
    the client (band 2) and waits until it has room for more.
    """

    repository: RepositoryRecord
    principal: Principal
    commands: tuple[Command, ...]
    options: tuple[bytes, ...] = ()
    certificate: CertificateFacts | None = None
    read: Reading | None = None
    tell: Tell = silent


@dataclass(frozen=True, slots=True, kw_only=True)
class HookEvent:
    """What a hook is told. ``commands`` gives all ``count`` of them, from a thread, each time anew.

    ``folder`` is the event's own and goes with it; ``server`` a gRPC target, "" for none. Of a
    post_receive ``sequence``, ``time_ms`` and ``reason`` are those of the ref log's entry.
    """

    event: str
    repository: RepositoryRecord
    principal: Principal
    commands: Callable[[], Iterable[Command]]
    count: int
    folder: Path
    request_id: str = ""
    options: tuple[bytes, ...] = ()
    certificate: CertificateFacts | None = None
    server: str = ""
    sequence: int = 0
    time_ms: int = 0
    reason: str = ""

    def first_commands(self) -> Iterator[Command]:
        """Return as many commands as one message may carry."""
        room = COMMANDS_TOLD_BYTES
        for number, command in enumerate(self.commands()):
            room -= len(command.name)
            if number == COMMANDS_TOLD_MAX or room < 0:
                return
            yield command


@dataclass(frozen=True, slots=True)
class Answer:
    """What a hook says: whether the push, or the ref, may go on; ``text`` is shown to the client."""

    accepted: bool
    text: str = ""


class HookCaller(Protocol):
    """Reaches hooks of one kind. Cancelled at the hook's time limit; leaves nothing running then.

    Errors: HookFailed when a hook gives no answer.
    """

    async def call(self, hook: Hook, event: HookEvent, tell: Tell) -> Answer:
        """Tell a hook of an event; returns what it answers."""


class Endpoint(Protocol):
    """Serves reads of one repository, pushed objects included, to hooks on this machine."""

    def __call__(self, read: Reading, folder: Path) -> AbstractAsyncContextManager[str]:
        """Serve until the block is left; gives the gRPC target. The folder is nobody else's."""


@dataclass(frozen=True, slots=True)
class HookPolicy:
    """What the server's configuration allows, whatever the settings of repositories say.

    ``programs`` is the folder under which programs lie, None for none. ``targets`` are URLs of HTTP
    hooks, and gRPC targets as grpc://HOST:PORT; one that ends in a slash allows all below it.
    ``server`` is the gRPC target that post_receive hooks are given.
    """

    programs: Path | None = None
    targets: tuple[str, ...] = ()
    server: str = ""

    def check(self, hook: Hook) -> None:
        """Raise HookFailed for a hook that the configuration does not allow."""
        if hook.kind == "program":
            self._check_program(hook.target)
            return
        target = f"grpc://{hook.target}" if hook.kind == "grpc" else hook.target
        steps = unquote(target.partition("?")[0]).replace("\\", "/").split("/")
        climbs = "." in steps or ".." in steps  # clients would take /a/../b for /b
        if climbs or not any(
            target == one or (one.endswith("/") and target.startswith(one)) for one in self.targets
        ):
            raise HookFailed("hook's target is not allowed by the server's configuration")

    def _check_program(self, target: str) -> None:
        if self.programs is None:
            raise HookFailed("program hooks are not allowed by the server's configuration")
        try:
            path, folder = Path(target).resolve(strict=True), self.programs.resolve(strict=True)
        except (OSError, RuntimeError) as cause:
            raise HookFailed("hook program does not exist") from cause
        if not path.is_relative_to(folder) or not path.is_file():
            raise HookFailed("hook program does not lie in the configured folder")


class Hooks:
    """The hooks of a store's repositories."""

    def __init__(
        self,
        store: Store,
        *,
        policy: HookPolicy,
        callers: Mapping[str, HookCaller],
        endpoint: Endpoint | None = None,
    ) -> None:
        self.store = store
        self.policy = policy
        self.callers = callers
        self.endpoint = endpoint

    def of(self, record: RepositoryRecord, event: str) -> tuple[Hook, ...]:
        """Return a repository's hooks for an event, in the order of its settings."""
        return tuple(hook for hook in settings_of(record).hooks if hook.event == event)

    def wanted(self, record: RepositoryRecord) -> bool:
        """Say whether a push has to ask anybody before it becomes visible."""
        return any(hook.event != POST_RECEIVE for hook in settings_of(record).hooks)

    @asynccontextmanager
    async def asking(self, call: PushHookCall) -> AsyncIterator[HookSession]:
        """Open what a push's hooks need; the pushed objects are readable until the block is left."""
        async with AsyncExitStack() as held:
            folder, server = Path(), ""
            if self.wanted(call.repository):
                folder = await held.enter_async_context(self.folder())
                if call.read is not None and self.endpoint is not None:
                    server = await held.enter_async_context(self.endpoint(call.read, folder))
            yield HookSession(self, call, folder, server)

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Give a new folder that only this process' user may enter, and remove it in the end."""
        run = self.store.workers.run
        made = Path(await run(tempfile.mkdtemp, prefix=own_prefix("push"), dir=self.store.scratch))
        try:
            yield made
        finally:
            await run(shutil.rmtree, made, ignore_errors=True)

    async def ask(self, hook: Hook, event: HookEvent, tell: Tell) -> Answer:
        """Ask one hook within its time. Errors: HookFailed when it gives no answer."""
        begun = time.monotonic()
        outcome = "failed"
        try:
            self.policy.check(hook)
            try:
                async with asyncio.timeout(hook.timeout_s):
                    answer = await self.callers[hook.kind].call(hook, event, tell)
            except TimeoutError:
                raise HookFailed("hook did not end in time", limit_s=hook.timeout_s) from None
            if answer.text:
                await tell(answer.text.encode("utf-8", "replace").rstrip(b"\n") + b"\n")
            outcome = "accepted" if answer.accepted else "refused"
        except HookFailed as error:
            telemetry.log().warning(
                "hook_failed",
                hook_event=hook.event,
                kind=hook.kind,
                target=shown_target(hook),
                repository=event.repository.name,
                error=str(error),
            )
            raise
        finally:
            metrics.HOOKS.labels(hook.event, outcome).inc()
            metrics.HOOK_SECONDS.labels(hook.event).observe(time.monotonic() - begun)
        return answer


@dataclass(slots=True)
class HookSession:
    """The hooks of one push. Not for use by two tasks at once."""

    hooks: Hooks
    call: PushHookCall
    folder: Path
    server: str
    _bounded: Bounded = field(init=False)

    def __post_init__(self) -> None:
        """Bound what all hooks of the push may show."""
        self._bounded = Bounded(self.call.tell, self.hooks.store.limits.hook_output_max_bytes)

    async def pre_receive(self) -> None:
        """Ask the pre-receive hooks, one after another, until one refuses: HookRefused.

        A hook that fails or takes too long refuses as well.
        """
        for hook in self.hooks.of(self.call.repository, PRE_RECEIVE):
            reason = await self._reason(hook, self.call.commands, "pre-receive hook declined")
            if reason is not None:
                raise HookRefused(reason)

    async def update(self, command: Command) -> str | None:
        """Ask the update hooks about one ref; returns why it may not move, None when it may."""
        for hook in self.hooks.of(self.call.repository, UPDATE):
            reason = await self._reason(hook, (command,), "hook declined")
            if reason is not None:
                return reason
        return None

    async def _reason(self, hook: Hook, commands: tuple[Command, ...], declined: str) -> str | None:
        event = HookEvent(
            event=hook.event,
            repository=self.call.repository,
            principal=self.call.principal,
            commands=lambda: commands,
            count=len(commands),
            folder=self.folder,
            request_id=telemetry.request_id.get(),
            options=self.call.options,
            certificate=self.call.certificate,
            server=self.server,
        )
        try:
            answer = await self.hooks.ask(hook, event, self._bounded.tell)
        except HookFailed as error:
            return f"{hook.event.replace('_', '-')} hook failed: {error}"
        return None if answer.accepted else declined


def shown_target(hook: Hook) -> str:
    """Return a hook's target for logs: without what may be a secret of its URL."""
    plain = hook.target.partition("?")[0]
    scheme, marks, rest = plain.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{marks}{host.rpartition('@')[2]}{slash}{path}" if marks else plain


class Bounded:
    """Shows bytes to a client up to a limit, and drops what is more."""

    def __init__(self, tell: Tell, most_bytes: int) -> None:
        self._tell = tell
        self._left = most_bytes

    async def tell(self, data: bytes) -> None:
        """Show bytes while there is room."""
        if self._left < 0 or not data:
            return
        kept = data[: self._left]
        self._left -= len(data)
        if kept:
            await self._tell(kept)
        if self._left < 0:
            await self._tell(CUT)
