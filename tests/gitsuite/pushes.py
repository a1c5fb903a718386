"""Pushes: taken by shardgit's receive service, then written back to the disk before the client hears of it."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.errors import HookRefused
from shardgit.protocol.pktline import FLUSH_BYTES, band
from shardgit.protocol.upload_pack import Fetch
from shardgit.service.fetch import FetchService
from shardgit.service.hooks import HookPolicy, Hooks, HookSession, PushHookCall

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from gitsuite.disk import DiskRepository

    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import ObjectId
    from shardgit.protocol.receive_pack import Command
    from shardgit.service.access import Principal
    from shardgit.service.conversation import Receives
    from shardgit.service.store import Store

UNPACK_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Moved:
    """A ref that a push moved; None for a ref that was not or is no more."""

    name: bytes
    old: ObjectId | None
    new: ObjectId | None

    def line(self, null: ObjectId) -> bytes:
        """Return it as hooks read it."""
        return b"%s %s %s\n" % (
            (self.old or null).hex().encode(),
            (self.new or null).hex().encode(),
            self.name,
        )


class DiskHooks(Hooks):
    """Asks the hooks of a repository on disk, and git's rules about branches that are checked out."""

    def __init__(self, store: Store, disk: DiskRepository) -> None:
        super().__init__(store, policy=HookPolicy(), callers={})
        self.disk = disk
        self.commands: tuple[Command, ...] = ()

    def wanted(self, record: RepositoryRecord) -> bool:
        """See Hooks: the disk may have some."""
        del record
        return True

    def forget(self) -> None:
        """Forget the commands of the push before."""
        self.commands = ()

    @asynccontextmanager
    async def asking(self, call: PushHookCall) -> AsyncIterator[HookSession]:
        """See Hooks."""
        self.commands = call.commands
        yield DiskSession(self, call, Path(), "")


class DiskSession(HookSession):
    """The hooks of one push."""

    async def pre_receive(self) -> None:
        """See HookSession."""
        disk, call = self._disk, self.call
        disk.push_variables = push_variables(disk, call)
        null = call.repository.hash_kind.null
        lines = b"".join(Moved(c.name, c.old, c.new).line(null) for c in call.commands)
        code, said = await asyncio.to_thread(disk.hook, "pre-receive", data=lines)
        if said:
            await call.tell(said)
        if code:
            raise HookRefused("pre-receive hook declined")

    async def update(self, command: Command) -> str | None:
        """See HookSession."""
        disk, null = self._disk, self.call.repository.hash_kind.null
        reason, warning = await asyncio.to_thread(disk.checked_out, command.name, command.new)
        if warning:
            await self.call.tell(warning.encode() + b"\n")
        if reason is not None:
            return reason
        ids = [(oid or null).hex() for oid in (command.old, command.new)]
        words = (os.fsdecode(command.name), *ids)
        code, said = await asyncio.to_thread(disk.hook, "update", *words)
        if said:
            await self.call.tell(said)
        return "hook declined" if code else None

    @property
    def _disk(self) -> DiskRepository:
        assert isinstance(self.hooks, DiskHooks)
        return self.hooks.disk


def push_variables(disk: DiskRepository, call: PushHookCall) -> dict[str, str]:
    """Return what hooks find in their environment: push options and the certificate."""
    found = {}
    if call.options:
        found["GIT_PUSH_OPTION_COUNT"] = str(len(call.options))
    for number, option in enumerate(call.options):
        found[f"GIT_PUSH_OPTION_{number}"] = os.fsdecode(option)
    if call.certificate is not None:
        disk.run("hash-object", "-w", "--stdin", data=call.certificate.certificate)
        found |= call.certificate.environment()
    return found


class DiskReceives:
    """Receives pushes and writes what they did to a repository on disk, hooks included.

    The answer waits until the disk has it all, as git's own answer does.
    """

    def __init__(self, store: Store, name: str, disk: DiskRepository, inner: Receives) -> None:
        self.store = store
        self.name = name
        self.disk = disk
        self.inner = inner
        self.hooks = DiskHooks(store, disk)
        store.hooks = self.hooks

    def advertisement(
        self, name: str, *, principal: Principal, nonce: bytes | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See Receives."""
        return self.inner.advertisement(name, principal=principal, nonce=nonce)

    async def receive(
        self,
        name: str,
        pieces: AsyncIterator[bytes],
        *,
        principal: Principal,
        stateful: bool = False,
        nonce: bytes | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """See Receives."""
        before = self._refs()
        self.hooks.forget()
        source = self.inner.receive(
            name, pieces, principal=principal, stateful=stateful, nonce=nonce
        )
        answer = []
        async with aclosing(source) as out:
            async for piece in out:
                answer.append(piece)
        after = self._refs()
        asked = [command.name for command in self.hooks.commands]
        names = dict.fromkeys([*asked, *sorted({*before, *after})])
        moved = [
            Moved(ref, before.get(ref), after.get(ref))
            for ref in names
            if before.get(ref) != after.get(ref)
        ]
        said = b""
        if moved:
            await self._write_objects(moved, before)
            await asyncio.to_thread(self._write_shallow)
            await asyncio.to_thread(self._write_refs, moved)
            said = await asyncio.to_thread(self._after, moved)
        whole = b"".join(answer)
        if said and whole.endswith(FLUSH_BYTES) and len(whole) > len(FLUSH_BYTES):
            whole = whole[: -len(FLUSH_BYTES)] + band(2, said) + FLUSH_BYTES
        if whole:
            yield whole

    def _refs(self) -> dict[bytes, ObjectId]:
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, self.name)
            return {
                ref.name: ref.target
                for ref in self.store.refs.list(snapshot, record)
                if ref.target is not None
            }

    async def _write_objects(self, moved: list[Moved], before: Mapping[bytes, ObjectId]) -> None:
        """Have the store send what is new to a client that has what the disk has."""
        wants = tuple({ref.new: None for ref in moved if ref.new is not None})
        if not wants:
            return
        request = Fetch(
            0, wants, tuple(dict.fromkeys(before.values())), done=True, ofs_delta=True, multi_ack=2
        )
        service = FetchService(self.store, version="suite")
        pack = b""
        async for piece in service.fetch(self.name, request):
            pack += piece
        pack = pack[pack.index(b"PACK") :]
        objects = int.from_bytes(pack[8:12], "big")
        if not objects:
            return
        limit = self.disk.value("receive.unpacklimit") or self.disk.value("transfer.unpacklimit")
        words = ("unpack-objects", "-q")
        if objects >= int(limit or UNPACK_LIMIT):
            words = ("index-pack", "--stdin")
        await asyncio.to_thread(self.disk.run, *words, data=pack)

    def _write_shallow(self) -> None:
        """Have the disk's history end where the store's does."""
        path = self.disk.folder / "shallow"
        with self.store.journal.snapshot() as snapshot:
            record = self.store.repository(snapshot, self.name)
            grafts = self.store.grafts(snapshot, record)
        if grafts:
            path.write_text("".join(f"{oid.hex()}\n" for oid in sorted(grafts)))
        elif path.exists():
            path.unlink()

    def _write_refs(self, moved: list[Moved]) -> None:
        # The disk makes no ref where one goes in the same transaction ("a" and "a/b"); the store does.
        gone = [ref for ref in moved if ref.new is None]
        for step in (gone, [ref for ref in moved if ref.new is not None]):
            if step:
                self._update(step)

    def _update(self, moved: list[Moved]) -> None:
        null = self.store_null()
        lines = []
        for ref in moved:
            name = self.disk.namespace + ref.name
            old = (ref.old or null).hex().encode()
            if ref.new is None:
                lines.append(b"delete " + name + b"\0" + old + b"\0")
            else:
                new = ref.new.hex().encode()
                lines.append(b"update " + name + b"\0" + new + b"\0" + old + b"\0")
        self.disk.run("update-ref", "-m", "push", "--stdin", "-z", data=b"".join(lines))

    def store_null(self) -> ObjectId:
        """Return the id of all zeros."""
        with self.store.journal.snapshot() as snapshot:
            return self.store.repository(snapshot, self.name).hash_kind.null

    def _after(self, moved: list[Moved]) -> bytes:
        """Run the hooks that come after a push; returns what they say."""
        null = self.store_null()
        lines = b"".join(ref.line(null) for ref in moved)
        said = self.disk.hook("post-receive", data=lines)[1]
        return said + self.disk.hook("post-update", *(os.fsdecode(ref.name) for ref in moved))[1]
