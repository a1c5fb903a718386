"""Real processes over a real store, killed at named points and at random moments, and judged each time.

A process that has imported everything forks children: each opens the store, says what it is about to do, does it, says
how it ended, and dies somewhere. Then a child that is not killed judges the store against all that was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import struct
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fault.child import in_child
from fault.damage import Damaging
from fault.leaks import check_no_leak, forget_pins
from fault.sim.client import Attempt, Client, Wrong, expected
from fault.sim.history import BLOB, COMMIT, History
from fault.sim.judge import judge
from fault.stall import Stall
from gcing import AT_ONCE
from moving import part
from reference.gits import git

import shardgit
from shardgit import faultpoints
from shardgit.backup import revive
from shardgit.backup.create import create_backup
from shardgit.backup.prune import prune_backups
from shardgit.backup.target import Target
from shardgit.backup.verify import verify_backups
from shardgit.errors import BackupMissing, Conflict, ShardgitError
from shardgit.faultpoints import Fault, Faults
from shardgit.journal.interface import Delete
from shardgit.journal.lmdb import LmdbJournal
from shardgit.journal.token_records import TICKET_SECRET_KEY
from shardgit.limits import Limits
from shardgit.lmdbenv import PAGE_BYTES
from shardgit.node import create_store, open_store, restore_store
from shardgit.oid import HashKind, ObjectId
from shardgit.operate.gc import gc
from shardgit.operate.operation import Control, silent_control
from shardgit.operate.repair import repair_store
from shardgit.operate.verify import verify_repository
from shardgit.operate.verifying import verify
from shardgit.protocol.pktline import FLUSH_BYTES, line
from shardgit.protocol.receive_pack import CommandResult
from shardgit.refs.update import RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.service.access import ALL_REPOSITORIES, trusted
from shardgit.service.committing import CommitPlan, Committing
from shardgit.service.composing import FileChange
from shardgit.service.configuring import Configuring
from shardgit.service.exporting import export_repository
from shardgit.service.importing import import_repository
from shardgit.service.keys import Keys, parse_public_key
from shardgit.service.lfs import LfsObjects
from shardgit.service.locks import Locks
from shardgit.service.mirrors import Mirrors
from shardgit.service.modes import set_mode
from shardgit.service.quotas import Quotas
from shardgit.service.receive import ReceiveService
from shardgit.service.repositories import Repositories
from shardgit.service.spool import Spool
from shardgit.service.tokens import Tokens
from shardgit.service.usages import owner_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from fault.sim.client import Host

    from shardgit.protocol.receive_pack import PushRequest
    from shardgit.service.look import Look
    from shardgit.service.store import Store

SOURCE = Path(shardgit.__file__).parent
LIMITS = Limits(
    block_target_bytes=4_000,
    recent_embedded_max_bytes=900,
    recents_settle=4,
    recents_max=8,
    recents_max_bytes=20_000,
    lfs_object_max_bytes=1 << 20,
)
revive.STEPS_MAX = 4  # so that small repositories take several commits
STORE_ROUNDS = 25  # a store is made anew after so many: judging costs by what is there
ROUND_S = 20.0
CHORE_TIMES = 40
MISSING_AT_ONCE = 3
TRIES_MAX = 40  # a point behind a lease of another client, or behind enough garbage, is reached by some only
# Work of seconds, killed at its points by test_rebalance_faults.py, test_shrinking.py and test_repair.py; and what
# commits to etcd, which a store on one machine never reaches.
ELSEWHERE = {
    "cluster",
    "holding",
    "nodes",
    "rebalance",
    "remake",
    "ring",
    "shards",
    "shrink",
    "turn",
}
TROUBLES = ("", "", "starve", "map", "stall", "slow", "fail", "stop")
ROOM_MAX_BYTES = 300_000
MAP_ROOM_MAX_PAGES = 64
STALL_MAX_SYNCS = 12
STALL_S = 0.4  # that others go on at most, while one process stands in its sync
_HEAD = struct.Struct("<I")


def points() -> list[str]:
    """Return all fault points in the source but for those of ELSEWHERE."""
    found: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        found |= set(re.findall(r'reach\("([^"]+)"\)', file.read_text()))
    return sorted(name for name in found if name.partition(".")[0] not in ELSEWHERE)


class Mates:
    """Where the clients of one child are; see client.Place. All that is told goes to the parent."""

    def __init__(self, history: History, seed: int, first: int, pipe: int, folder: Path) -> None:
        self.dice = random.Random(seed)
        self.history = history
        self.attempts: list[Attempt] = []
        self.uploads: list[Attempt] = []
        self.reads = 0
        self.limits = LIMITS
        self.folder = folder
        self.rewinds = seed % 3 == 0
        self.counts: Counter[str] = Counter()
        self._numbers = itertools.count(first)
        self._pipe = pipe
        self._sent = set(history.objects)
        self._lock = threading.Lock()

    def number(self) -> int:
        return next(self._numbers)

    def moment(self) -> int:
        return time.monotonic_ns()

    def now_ms(self) -> float:
        return time.time() * 1_000

    def control(self) -> Control:
        return silent_control()

    def pause(self) -> None:
        time.sleep(0.001)

    def tell(self, attempt: Attempt) -> None:
        with self._lock:
            fresh = [oid for oid in list(self.history.objects) if oid not in self._sent]
            self._sent.update(fresh)
            self._send((replace(attempt, process=None), [self.history.objects[o] for o in fresh]))

    def fail(self, text: str) -> None:
        self.send(text)

    def send(self, text: str) -> None:
        """Tell the parent what is no attempt: "ready", "stalled", or what failed."""
        with self._lock:
            self._send(text)

    def _send(self, message: object) -> None:
        data = pickle.dumps(message)
        data = _HEAD.pack(len(data)) + data
        while data:
            data = data[os.write(self._pipe, data) :]

    def learn(self, store: Store, look: Look, refs: Sequence[ObjectId]) -> None:
        """Take what others made into the history: its bytes must give its ids."""
        del store
        waiting = [oid for oid in dict.fromkeys(refs) if oid not in self.history.objects]
        found: list[tuple[int, bytes, tuple[ObjectId, ...]]] = []
        seen = set(waiting)
        while waiting:
            positions = look.view.positions(waiting) if look.view is not None else [-1]
            if min(positions) < 0:
                raise Conflict("refs have moved on")
            assert look.view is not None
            more: list[ObjectId] = []
            for oid, one in zip(waiting, look.view.read_positions(positions), strict=True):
                links = _links(one.type, one.data, self.history.kind.size)
                if one.id != oid:
                    raise Wrong("an object was read under another id")
                found.append((one.type, one.data, links))
                more += [
                    link for link in links if link not in self.history.objects and link not in seen
                ]
            seen.update(more)
            waiting = list(dict.fromkeys(more))
        for kind, data, links in reversed(found):
            if self.history.add(kind, data, links) not in seen:
                raise Wrong("an object's bytes do not give its id")


def _links(kind: int, data: bytes, size: int) -> tuple[ObjectId, ...]:
    if kind == BLOB:
        return ()
    if kind == COMMIT:
        head = data.split(b"\n\n", 1)[0].split(b"\n")
        words = [row.split(b" ") for row in head if row.startswith((b"tree ", b"parent "))]
        return tuple(ObjectId(bytes.fromhex(word[1].decode())) for word in words)
    links, at = [], 0
    while at < len(data):
        end = data.index(b"\0", at)
        links.append(ObjectId(data[end + 1 : end + 1 + size]))
        at = end + 1 + size
    return tuple(links)


class KilledClient(Client):
    """A client of a real store: does all that a simulated one does, and what needs an event loop or files."""

    def __init__(self, mates: Mates, steps: int, *, chore: str, folder: Path, seed: int) -> None:
        super().__init__(mates, steps)
        self.dice = random.Random(seed)
        self.chore = chore
        self.folder = folder

    def _works(self) -> tuple[tuple[int, Callable[[Host], None]], ...]:
        if self.chore:
            self.left = CHORE_TIMES
            if self.chore.endswith("_delete") and self.chore.startswith("gc."):
                return ((4, self._sweep), (1, self._push))
            if self.chore.startswith("gc."):  # which needs garbage of every kind
                return (
                    (4, self._gc),
                    (4, self._push),
                    (2, self._update),
                    (2, self._create),
                    (2, self._delete),
                    (1, self._settle),
                )
            return ((4, self._chore()), (1, self._push))
        return (
            *super()._works(),
            (2, self._commit),
            (1, self._writer),
            (1, self._export),
        )

    def _chore(self) -> Callable[[Host], None]:
        chores = self.chores()
        return chores.get(self.chore) or chores[self.chore.partition(".")[0]]

    def chores(self) -> dict[str, Callable[[Host], None]]:
        """Return what reaches which points, by the noun in their name."""
        return {
            "backup": self._backup,
            "bucket": self._prune,
            "commit": self._commit,
            "compact": self._compact,
            "event": self._event,
            "export": self._export,
            "file": self._layout,
            "fork": self._fork,
            "gc": self._gc,
            "import": self._import,
            "journal": self._push,
            "key": self._keys,
            "lfs": self._lfs,
            "lock": self._locks,
            "mirror": self._mirror,
            "mode": self._mode,
            "pin": self._backup,
            "prune": self._prune,
            "push": self._push,
            "quota": self._quota,
            "rebuild": self._rebuild,
            "receive": self._push,
            "refs": self._writer,
            "repository": self._repository,
            "restore": self._restore,
            "restore.after_blocks": self._restore_store,
            "restore.after_journal": self._restore_store,
            "restore.after_end": self._restore_store,
            "restore.before_end": self._restore_store,
            "restore.before_journal": self._restore_store,
            "revive": self._revive,
            "rewind": self._restore_store,
            "settings": self._settings,
            "settle": self._settle,
            "shard": self._lfs,
            "spool": self._spool,
            "store": self._layout,
            "undelete": self._undelete,
            "update": self._update,
            "upload": self._upload,
            "verify": self._verify,
            "token": self._tokens,
        }

    def _deliver(
        self, process: Host, name: str, request: PushRequest, pack: bytes | None, attempt: Attempt
    ) -> Sequence[CommandResult]:
        if self.chore.startswith("push.") or (
            not self.chore.startswith("receive.") and self.dice.random() < 0.5
        ):
            return super()._deliver(process, name, request, pack, attempt)
        return asyncio.run(self._receive(process.store, name, request, pack or b"", attempt))

    async def _receive(
        self, store: Store, name: str, request: PushRequest, pack: bytes, attempt: Attempt
    ) -> Sequence[CommandResult]:
        """Push in the bytes of the protocol."""
        null = self.world.history.kind.null
        words = b"report-status atomic" if request.atomic else b"report-status"
        data = b""
        for number, one in enumerate(request.commands):
            ids = [(oid or null).hex().encode() for oid in (one.old, one.new)]
            data += line(
                b" ".join([*ids, one.name]) + (b"\0" + words if not number else b"") + b"\n"
            )
        data += FLUSH_BYTES + pack

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 3_000):
                yield data[at : at + 3_000]

        service = ReceiveService(store, version="1")
        answer = b""
        principal = trusted(attempt.actor)
        async for piece in service.receive(name, pieces(), principal=principal):
            answer += piece
        failed = dict(re.findall(rb"[0-9a-f]{4}ng (\S+) ([^\n]*)\n", answer))
        good = set(re.findall(rb"[0-9a-f]{4}ok (\S+)\n", answer))
        if good | set(failed) != {one.name for one in request.commands}:
            raise Wrong(f"a push was answered {answer!r}")
        return [
            CommandResult(one, failed[one.name].decode() if one.name in failed else None)
            for one in request.commands
        ]

    def _commit(self, process: Host) -> None:
        name = self._some(process)
        attempt = self._attempt(process, f"commit {name}", None)
        plan = CommitPlan(
            branch="main",
            message=b"by id\n",
            author=b"A <a@b.c>",
            files={b"f%d" % self.dice.randrange(6): FileChange(data=self.dice.randbytes(50))},
            author_seconds=1_700_000_000,
        )
        with self._noting(attempt):
            committing = Committing(process.store, name, trusted(attempt.actor))
            asyncio.run(committing.commit(plan))

    def _writer(self, process: Host) -> None:
        store, name = process.store, self._some(process)
        _, refs, look = self._refs(process, name)
        if not refs:
            return
        attempt = self._attempt(process, f"write {name}", None)
        writer = RefWriter(store.refs, store.journal, store.workers)
        now = refs.get(b"refs/heads/w")
        update = RefUpdate(b"refs/heads/w", now, self.dice.choice(sorted(refs.values())))
        with self._noting(attempt) as note:
            writer.update_sync(look.record, [update], note=note)

    def _repository(self, process: Host) -> None:
        self.dice.choice((self._create, self._delete, self._rename))(process)

    def _import(self, process: Host) -> None:
        attempt = self._attempt(process, "import", None)
        with self._noting(attempt):
            name = f"import{attempt.number}"
            import_repository(process.store, name, str(self.folder / "origin"))

    def _export(self, process: Host) -> None:
        target = self.folder / f"export-{self.dice.randrange(1 << 40)}"
        name = self._some(process)
        export_repository(process.store, name, target)
        git(target, "fsck", "--strict")
        shutil.rmtree(target)

    def _sweep(self, process: Host) -> None:
        """Put a block that nothing names, as a push that was killed does, and have gc find it."""
        process.store.blocks.put_many_sync([part(self.dice, self.dice.randrange(20_000))])
        gc(process.store, AT_ONCE, control=silent_control())

    def _settings(self, process: Host) -> None:
        change = {"receive.max_push_objects": self.dice.randrange(1_000, 2_000)}
        Configuring(process.store).update(self._some(process), change)

    def _mirror(self, process: Host) -> None:
        name = f"mirror{self.dice.randrange(1 << 40)}"
        Repositories(process.store).create(name)
        mirrors, key = Mirrors(process.store), "mirror.url"
        Configuring(process.store).update(name, {key: "http://127.0.0.1/a.git"})
        mirrors.note(name, lambda now: replace(now, failures=1, error="no"))
        assert mirrors.get(name).failures == 1
        mirrors.remove(name)
        Repositories(process.store).delete(name)

    def _mode(self, process: Host) -> None:
        for read_only in (True, False):
            set_mode(process.store, read_only=read_only, why="kept still")

    def _quota(self, process: Host) -> None:
        quotas, owner = Quotas(process.store), owner_of(self._some(process))
        try:
            quotas.set(owner, bytes_max=1 << 40)
            quotas.set(owner, objects_max=1 << 40)
        finally:
            quotas.remove(owner)

    def _keys(self, process: Host) -> None:
        blob = struct.pack(">I", 11) + b"ssh-ed25519" + struct.pack(">I", 32) + os.urandom(32)
        import base64

        key = parse_public_key(f"ssh-ed25519 {base64.b64encode(blob).decode()} k")
        keys = Keys(process.store.journal)
        keys.add(key, f"k{self.dice.randrange(1 << 30)}")
        keys.remove(keys.all()[0].fingerprint)

    def _tokens(self, process: Host) -> None:
        journal = process.store.journal
        tokens = Tokens(journal)
        known, text = tokens.create(f"t{self.dice.randrange(1 << 30)}", ALL_REPOSITORIES)
        assert tokens.holder(text) is not None
        tokens.revoke(known.id)
        assert tokens.holder(text) is None
        journal.commit_sync([], [Delete(TICKET_SECRET_KEY)])
        ticket = tokens.ticket("t", "r", writes=True)
        assert tokens.holder(ticket) is not None

    def _locks(self, process: Host) -> None:
        name, owner = self._some(process), trusted("o")
        locks = Locks(process.store)
        made = locks.lock(name, f"p{self.dice.randrange(1 << 40)}", owner)
        locks.unlock(name, made.id.hex(), owner)

    def _lfs(self, process: Host) -> None:
        name = self._some(process)
        data = self.dice.randbytes(self.dice.choice((100, 20_000)))
        oid = hashlib.sha256(data).digest()
        objects = LfsObjects(process.store)

        async def pieces(data: bytes) -> AsyncIterator[bytes]:
            for at in range(0, len(data), 5_000):
                yield data[at : at + 5_000]

        asyncio.run(objects.put(name, oid, len(data), pieces(data)))

        async def read() -> bytes:
            file = await objects.open(name, oid)
            return b"".join([piece async for piece in objects.read(file, 0, file.size)])

        if asyncio.run(read()) != data:
            raise Wrong("an LFS object was read wrong")
        with contextlib.suppress(
            ShardgitError
        ):  # bytes that are not those of the id: put, then dropped
            wrong = bytes(20_000)
            asyncio.run(objects.put(name, oid[::-1], len(wrong), pieces(wrong)))

    def _event(self, process: Host) -> None:
        from shardgit.node import equip_hooks
        from shardgit.service.hooks import HookPolicy

        store = process.store
        hooks = self.folder / "hooks"
        hooks.mkdir(exist_ok=True)
        program = hooks / "told"
        if not program.exists():
            fresh = hooks / f"told.{os.getpid()}"
            fresh.write_text("#!/bin/sh\ncat >/dev/null\n")
            fresh.chmod(0o755)
            fresh.rename(program)
        name = self._some(process)
        hook = {"kind": "program", "event": "post_receive", "target": str(program)}
        Configuring(store).update(name, {"hooks": [hook]})
        equip_hooks(store, HookPolicy(programs=hooks))
        self._push(process)
        self._writer(process)

        async def tell() -> None:
            assert store.events is not None
            async with store.events.serving(drain_s=1):
                await asyncio.sleep(0.3)

        asyncio.run(tell())
        store.hooks = store.events = None

    def _spool(self, process: Host) -> None:
        spool = Spool(self.folder / "spool", process.store.workers, most_bytes=20_000)
        data = self.dice.randbytes(3_000)
        key = hashlib.sha256(data).hexdigest()[:20]

        async def make() -> Any:
            yield data

        async def take() -> None:
            file = await spool.take(key, make)
            if file.read(0, file.size) != data:
                raise Wrong("a spooled file holds other bytes")
            file.close()

        asyncio.run(take())

    def _prune(self, process: Host) -> None:
        folder = self.folder / "all-backups"
        create_backup(process.store, str(folder), control=silent_control())
        for keep in (2, 1):
            self._push(process)
            create_backup(process.store, str(folder), control=silent_control())
            target = Target.open(str(folder))
            prune_backups(target, keep=keep, waste=0.1, control=silent_control())
        if verify_backups(Target.open(str(folder)), control=silent_control()).problems:
            raise Wrong("a pruned backup is damaged")

    def _restore_store(self, process: Host) -> None:
        """Restore a backup as of a moment into a new store, on and on until it is done."""
        made = create_backup(
            process.store, str(self.folder / "all-backups"), control=silent_control()
        )
        folder = self.folder / f"again-{self.dice.randrange(1 << 40)}"
        target = Target.open(str(self.folder / "all-backups"))
        try:
            restore_store(
                target, folder, backup=made.backup, at_ms=made.taken_ms, control=silent_control()
            )
        except BackupMissing:  # pruned meanwhile, by another
            shutil.rmtree(folder, ignore_errors=True)
            return
        with open_store(folder, threads=1) as store:
            for one in Repositories(store).list():
                if verify_repository(store, one.name).bad:
                    raise Wrong("a restored store is damaged")
        shutil.rmtree(folder)

    def _verify(self, process: Host) -> None:
        found = verify(process.store, control=silent_control(), resume=self.dice.random() < 0.5)
        if not found.clean:
            raise Wrong(f"a verification found {found.counts}")

    def _rebuild(self, process: Host) -> None:
        """Lose an index in a store of its own, and have it made anew."""
        del process
        folder = self.folder / f"store-{self.dice.randrange(1 << 40)}"
        create_store(folder, shards=2)
        with open_store(folder, threads=1, limits=LIMITS) as made:
            import_repository(made, "one", str(self.folder / "origin"))
            with made.journal.snapshot() as snapshot:
                view = made.state(snapshot, "one").pool.view
            lost = [ref.id for run in view.runs for _, ref in run.record.index if not ref.inline]
            made.blocks.delete_many_sync(lost)
        with open_store(folder, threads=1, limits=LIMITS) as made:
            repair_store(made, control=silent_control())
            if verify_repository(made, "one").bad:
                raise Wrong("a repaired store is damaged")
        shutil.rmtree(folder)

    def _layout(self, process: Host) -> None:
        del process
        folder = self.folder / f"store-{self.dice.randrange(1 << 40)}"
        create_store(folder, shards=2)
        with open_store(folder, threads=1) as made:
            made.create_repository("one")
        shutil.rmtree(folder)


class Arena:
    """A store, all that was said of it, and the kills so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.named: Counter[str] = Counter()
        self.random_kills = 0
        self.survived = 0
        self.stalled = 0  # killed while they stood in a sync
        self.troubles: Counter[str] = Counter()
        self.judged = 0
        self.acknowledged = 0
        self.unknown = 0
        self.stores = 0
        self.swept = 0  # blocks that one gc behind the kills of a store has deleted
        self.leak_checks = 0
        self.damages: Counter[str] = Counter()
        self._rounds = 0
        self._made = 0
        self.data = folder / "none"
        self.backups = folder / "backups"
        self.history = History(HashKind.SHA1)
        self.attempts: dict[int, Attempt] = {}
        self._kinds = [one for one in TROUBLES if one != "stall" or Stall.is_here()]
        folder.mkdir(parents=True, exist_ok=True)
        _origin(folder / "origin")

    @property
    def kills(self) -> int:
        """Processes that were killed so far."""
        return self.random_kills + sum(self.named.values())

    def round(self, names: Sequence[str]) -> None:
        """Let children work side by side and die: one for each name, "" for a random moment; then judge."""
        if self._rounds % STORE_ROUNDS == 0:
            self._new_store()
        self._rounds += 1
        troubles = ["" if name else self.dice.choice(self._kinds) for name in names]
        if "map" in troubles:  # alone: LMDB has a process that others outgrow begin anew
            names, troubles = [""], ["map"]
        children = [
            _Child(self, name, trouble, self._made + number)
            for number, (name, trouble) in enumerate(zip(names, troubles, strict=True))
        ]
        self._made += len(children)
        until = time.monotonic() + ROUND_S
        while waiting := [child for child in children if child.pipe is not None]:
            now = time.monotonic()
            for child in waiting:
                if now > child.stop_at:
                    child.stop()
                if now > child.kill_at or now > until:
                    child.kill()
            moments = [at for child in waiting for at in (child.kill_at, child.stop_at)]
            wait_s = max(min(until, *moments) - now, 0)
            pipes = [child.pipe for child in waiting if child.pipe is not None]
            ready, _, _ = select.select(pipes, [], [], wait_s)
            for child in waiting:
                if child.pipe in ready:
                    child.hear()
        for child in children:
            if child.end() == signal.SIGKILL:
                if child.name and not child.by_us:
                    self.named[child.name] += 1
                else:
                    self.random_kills += 1
                self.troubles[child.trouble] += 1
                self.stalled += child.stalled
            else:
                self.survived += 1
        self._judge()

    def take(self, attempt: Attempt, objects: Iterable[Any]) -> None:
        """Take note of what a child said."""
        for made in objects:
            self.history.add(made.type, made.data, made.links)
        self.attempts[attempt.number] = attempt

    def _new_store(self) -> None:
        self._end_store()
        shutil.rmtree(self.data, ignore_errors=True)
        self.stores += 1
        self.data = self.folder / f"data{self.stores}"
        shutil.rmtree(self.backups, ignore_errors=True)
        self.backups.mkdir()
        self.history = History(HashKind.SHA1)
        self.attempts = {}

        def make() -> None:
            create_store(self.data, shards=2)
            with open_store(self.data, threads=1) as store:
                store.create_repository("demo")

        in_child(make)

    def _count(self) -> None:
        self.acknowledged += sum(one.done for one in self.attempts.values())
        self.unknown += sum(one.ended is None for one in self.attempts.values())

    def _end_store(self) -> None:
        """Look what the kills of a store have left behind, and what damage would do to it."""
        self._count()
        if not self.data.exists():
            return
        try:
            Damaging(self.folder / "damaged", LIMITS, self._place, self.damages).once(
                self.data, self.dice
            )
            self.swept += in_child(self._leaks)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstore: {self.data}") from None
        self.leak_checks += 1
        shutil.rmtree(self.data)

    def finish(self) -> None:
        """Take leave of the last store."""
        self._end_store()
        self.attempts = {}

    def _leaks(self) -> int:
        with open_store(self.data, threads=1, limits=LIMITS) as store:
            swept = check_no_leak(store)
            judge(self._place(), store)
            return swept

    def _place(self) -> Mates:
        place = Mates(self.history, 0, 0, -1, self.backups)
        place.attempts = list(self.attempts.values())
        place.uploads = [one for one in place.attempts if one.objects and one.done_ms]
        return place

    def _judge(self) -> None:
        self.judged += 1

        def check() -> None:
            place = self._place()
            with open_store(self.data, threads=1, limits=LIMITS) as store:
                judge(place, store)
                if self.judged % 2 == 0:  # nobody is alive now
                    forget_pins(store)
            made = [one for one in place.attempts if one.done and one.what.startswith("backup ")]
            if made and self.judged % 4 == 0:
                self._judge_backup(place, max(made, key=lambda one: one.begun))

        try:
            in_child(check)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstore: {self.data}") from None

    def _judge_backup(self, place: Mates, newest: Attempt) -> None:
        """Restore a backup that was acknowledged, and judge it like the store."""
        folder = self.folder / "restored"
        cut = newest.what.partition(" ")[2]
        target = Target.open(str(self.backups / "backup"))
        restore_store(target, folder, backup=cut, control=silent_control())
        with open_store(folder, threads=1, limits=LIMITS) as store:
            judge(place, store, before=newest.begun)
        shutil.rmtree(folder)


class _Child:
    """A process that works until it dies."""

    def __init__(self, arena: Arena, name: str, trouble: str, number: int) -> None:
        self.arena = arena
        self.name = name
        self.trouble = trouble
        self.by_us = self.stalled = False
        self.kill_at = self.stop_at = float("inf")
        self.errors: list[str] = []
        self._held = b""
        self._status: int | None = None
        seed = arena.dice.randrange(1 << 40)
        wait_s = arena.dice.choice((0.05, 0.3, 1.0)) * arena.dice.random()
        self._wait_s = float("inf") if name else wait_s
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reader)
            _work(arena, name, seed, 1 + number * 100_000, writer, self.trouble)
        os.close(writer)
        self.pipe: int | None = reader

    def hear(self) -> None:
        """Take what was said."""
        assert self.pipe is not None
        data = os.read(self.pipe, 1 << 20)
        if not data:
            os.close(self.pipe)
            self.pipe = None
            return
        self._held += data
        while len(self._held) >= _HEAD.size:
            (size,) = _HEAD.unpack_from(self._held)
            if len(self._held) < _HEAD.size + size:
                return
            message = pickle.loads(self._held[_HEAD.size : _HEAD.size + size])
            self._held = self._held[_HEAD.size + size :]
            if message == "ready":
                self.kill_at = time.monotonic() + self._wait_s
                if self.trouble == "stop":
                    self.stop_at = time.monotonic() + self._wait_s / 2
                if self.trouble == "stall":  # it may end before its sync comes
                    self.kill_at = time.monotonic() + ROUND_S / 4
            elif message == "stalled":
                self.stalled = True
                self.kill_at = time.monotonic() + STALL_S * self.arena.dice.random()
            elif isinstance(message, str):
                self.errors.append(message)
            else:
                self.arena.take(*message)

    def stop(self) -> None:
        """Let it stand still until it is killed."""
        self.stop_at = float("inf")
        os.kill(self.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Kill it now."""
        self.by_us = True
        self.kill_at = float("inf")
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Wait for its end; returns the signal that ended it, 0 without."""
        _, status = os.waitpid(self.pid, 0)
        if self.errors:
            raise AssertionError(f"a client failed before it was killed:\n{self.errors[0]}")
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _faults(name: str, trouble: str, dice: random.Random) -> list[Fault]:
    """Return what shall happen at fault points."""
    if name:
        if name.startswith("gc."):  # hard enough to reach once
            return [Fault(name, 1)]
        often = name.startswith(("journal", "shard"))
        return [Fault(name, dice.randrange(1, 9) if often else dice.choice((1, 1, 2, 3)))]
    places = ("journal.before_commit", "shard.before_put", "shard.after_put")
    if trouble == "slow":
        return [Fault(dice.choice(places), dice.randrange(1, 6), "sleep")]
    if trouble == "fail":
        return [Fault(place, dice.randrange(1, 6), "fail") for place in places[:2]]
    return []


def _starve(folder: Path, dice: random.Random) -> None:
    """Let no file of this process grow past a little more than the largest has now."""
    most = max(file.stat().st_size for file in folder.rglob("data.mdb"))
    room = most + dice.randrange(ROOM_MAX_BYTES)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def _fill_map(store: Store, dice: random.Random) -> None:
    """Let the journal or a shard have little more room in its map than it takes."""
    assert isinstance(store.journal, LmdbJournal)
    environments = [store.journal._environment]
    environments += [shard._environment for shard in store.routed.shards.values()]
    environment = dice.choice(environments)
    pages = environment.pages_used()[1] + dice.randrange(MAP_ROOM_MAX_PAGES)
    environment._environment.set_mapsize(pages * PAGE_BYTES)


def _work(arena: Arena, name: str, seed: int, first: int, pipe: int, trouble: str) -> NoReturn:
    """Be a child: open the store and work until death, or the end of the work."""
    dice = random.Random(seed)
    mates = Mates(arena.history, seed, first, pipe, arena.backups)
    mates.rewinds = mates.rewinds or name.startswith("gc.")
    try:
        with open_store(arena.data, threads=2, limits=LIMITS) as store:
            host = _Host(store)

            def run(client: KilledClient) -> None:
                try:
                    with expected():
                        client(host)
                except BaseException:
                    mates.fail(traceback.format_exc())

            clients = [
                KilledClient(mates, 8, chore=chore, folder=arena.folder, seed=seed + number)
                for number, chore in enumerate([name, "", ""])
            ]
            mates.send("ready")
            if trouble == "starve":
                _starve(arena.data, dice)
            elif trouble == "map":
                _fill_map(store, dice)
            elif trouble == "stall":
                Stall().arm(
                    dice.randrange(STALL_MAX_SYNCS),
                    behind=dice.random() < 0.5,
                    tell=lambda: mates.send("stalled"),
                )
            with faultpoints.listening(Faults(_faults(name, trouble, dice))):
                threads = [threading.Thread(target=run, args=(client,)) for client in clients]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
    except BaseException:
        mates.fail(traceback.format_exc())
    os._exit(0)


class _Host:
    def __init__(self, store: Store) -> None:
        self.store = store


def _origin(folder: Path) -> None:
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in range(4):
        (folder / f"f{number}").write_text(random.Random(number).randbytes(3_000).hex())
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"commit {number}")


def kill_many(folder: Path, *, kills: int, seed: int, named: Sequence[str] | None = None) -> Arena:
    """Kill so many processes, at each point at least once; returns the counts. AssertionError when data was lost."""
    arena = Arena(folder, seed)
    missing = list(points() if named is None else named)
    arena.dice.shuffle(missing)
    tries: Counter[str] = Counter()
    try:
        while arena.kills < kills or missing:
            names = [arena.dice.choice(("", *points())), arena.dice.choice(("", *points())), "", ""]
            for number, name in enumerate(missing[:MISSING_AT_ONCE]):
                names[number] = name
                tries[name] += 1
                assert tries[name] <= TRIES_MAX, f"{name} is not reached"
            arena.round(names[: arena.dice.choice((2, 2, 3, 4))])
            missing = [name for name in missing if not arena.named[name]]
        arena.finish()
    except AssertionError as error:
        raise AssertionError(f"after {arena.kills} kills, seed {seed}: {error}") from None
    return arena
