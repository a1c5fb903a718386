"""Hooks under test: a store with history, programs, and what they write down."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.gits import git

import shardgit
from shardgit.node import equip_hooks
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.service.access import trusted
from shardgit.service.configuring import Configuring
from shardgit.service.hooks import HookPolicy, PushHookCall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import ObjectId
    from shardgit.protocol.receive_pack import Command
    from shardgit.service.hooks import Hooks
    from shardgit.service.reading import Reading
    from shardgit.service.store import Store

ALICE = trusted("alice", "192.0.2.7")
SOURCE = Path(shardgit.__file__).parents[1]
SHARDGIT = f"PYTHONPATH={SOURCE} {sys.executable} -m shardgit"


def small_history(folder: Path) -> Path:
    """Make a repository with main, and a branch side that has a file of its own."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in range(3):
        (folder / f"f{number}").write_text(f"{number}\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"commit {number}")
    git(folder, "checkout", "-qb", "side")
    (folder / "secret").write_text("only on the side\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "side")
    git(folder, "checkout", "-q", "main")
    return folder


def record_of(store: Store, name: str = "demo") -> RepositoryRecord:
    with store.journal.snapshot() as snapshot:
        return store.repository(snapshot, name)


def move(
    store: Store, ref: str, new: ObjectId | None, *, name: str = "demo", message: str = "push"
) -> int:
    """Move a ref as a push of alice does; returns the sequence of the log's entry."""
    record = record_of(store, name)
    writer = RefWriter(store.refs, store.journal, store.workers)
    note = LogNote(ALICE.name, message, ALICE.address)
    writer.update_sync(record, [RefUpdate(ref.encode(), ANY, new)], note=note)
    with store.journal.snapshot() as snapshot:
        return store.refs.head(snapshot, record).sequence


@dataclass(slots=True)
class Client:
    """What a pusher is shown."""

    shown: bytearray = field(default_factory=bytearray)

    async def tell(self, data: bytes) -> None:
        self.shown += data

    @property
    def text(self) -> str:
        return self.shown.decode()


def push(
    store: Store,
    *commands: Command,
    client: Client | None = None,
    read: Reading | None = None,
    **more: Any,
) -> PushHookCall:
    return PushHookCall(
        repository=record_of(store),
        principal=ALICE,
        commands=commands,
        read=read,
        tell=(client or Client()).tell,
        **more,
    )


def program(folder: Path, name: str, text: str) -> str:
    """Write a hook program; returns its path."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def configure(store: Store, *hooks: dict[str, Any], name: str = "demo") -> None:
    Configuring(store).update(name, {"hooks": list(hooks) or None})


def equip(store: Store, policy: HookPolicy) -> Hooks:
    equip_hooks(store, policy)
    assert store.hooks is not None
    return store.hooks


@asynccontextmanager
async def telling(store: Store) -> AsyncIterator[None]:
    """Tell events in the background."""
    assert store.events is not None
    async with store.events.serving(drain_s=1):
        yield
