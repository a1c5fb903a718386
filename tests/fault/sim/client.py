"""What clients of a simulated world do, and what each of them was told."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fault.sim.history import BLOB

from shardgit.backup.create import create_backup
from shardgit.backup.deleted import deleted_repositories, undelete
from shardgit.backup.repository import restore_repository
from shardgit.backup.target import Target
from shardgit.errors import (
    Conflict,
    LimitExceeded,
    NotFound,
    Refused,
    RepositoryExists,
    RepositoryMissing,
    ShardgitError,
    Stopped,
    StorageFull,
)
from shardgit.operate.compact import compact
from shardgit.operate.gc import GcOptions, gc
from shardgit.operate.membership import set_weight
from shardgit.operate.rebalance import abort, groups, rebalance
from shardgit.operate.settle import settle
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.refs.log import LogNote
from shardgit.refs.update import RefUpdate
from shardgit.service.access import trusted
from shardgit.service.forks import fork
from shardgit.service.look import Look, ShownLook
from shardgit.service.push import Push
from shardgit.service.ref_log import restore_ref, restoring
from shardgit.service.ref_updates import update_refs
from shardgit.service.repositories import Repositories
from shardgit.service.resolving import new_ingest
from shardgit.service.uploading import Uploading

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from fault.sim.history import History

    from shardgit.limits import Limits
    from shardgit.oid import ObjectId, PoolId, RepositoryId
    from shardgit.operate.operation import Control
    from shardgit.protocol.receive_pack import CommandResult
    from shardgit.service.store import Store

BRANCHES = (b"refs/heads/main", b"refs/heads/main", b"refs/heads/a", b"refs/heads/b/c")
READ_AT_ONCE = 3

Change = tuple["ObjectId | None", "ObjectId | None"]


@dataclass(eq=False)
class Attempt:
    """One try to change refs, and how it ended: done, refused, or, where nobody was told, unknown."""

    number: int
    what: str
    process: object
    repository: RepositoryId | None
    begun: int
    changes: dict[bytes, Change] = field(default_factory=dict)
    objects: tuple[ObjectId, ...] = ()  # of an upload
    ended: int | None = None
    done: bool = False
    unknown: bool = False
    done_ms: float = 0.0

    @property
    def actor(self) -> str:
        """The name that the log tells of it."""
        return f"op{self.number}"


class Host(Protocol):
    """A process with a store."""

    @property
    def store(self) -> Store: ...


class Place(Protocol):
    """Where clients are: in a simulation, or in a process that may really be killed."""

    dice: random.Random
    history: History
    attempts: list[Attempt]
    uploads: list[Attempt]
    reads: int
    limits: Limits
    folder: Path  # for backups
    rewinds: bool  # whether refs go back often, and gc is at it
    counts: Counter[str]

    def number(self) -> int:
        """Return a number for the next attempt."""
        ...

    def moment(self) -> int:
        """Return a number that rises with time."""
        ...

    def now_ms(self) -> float: ...

    def control(self) -> Control:
        """Return what long operations are given."""
        ...

    def pause(self) -> None:
        """Be slow."""
        ...

    def tell(self, attempt: Attempt) -> None:
        """Note that an attempt begins, or has ended."""
        ...

    def learn(self, store: Store, look: Look, refs: Sequence[ObjectId]) -> None:
        """Take objects into the history that were made elsewhere."""
        ...


class Wrong(AssertionError):
    """The store did what it must not do."""


@contextmanager
def expected() -> Iterator[None]:
    """Let the errors pass that a client may meet: lost races, a full disk, things gone."""
    with suppress(
        Conflict, StorageFull, NotFound, Refused, RepositoryExists, LimitExceeded, Stopped
    ):
        yield


class Client:
    """Does some things, one after another, each chosen by dice."""

    def __init__(
        self, world: Place, steps: int, *, gc_only: bool = False, moves_only: bool = False
    ) -> None:
        self.world = world
        self.moves_only = moves_only
        self.gc_only = gc_only
        self.dice = world.dice
        self.left = steps

    def __call__(self, process: Host) -> None:
        """Go on where this client was when its process died."""
        works = self._works()
        chances = [chance for chance, _ in works]
        while self.left > 0:
            self.left -= 1
            (work,) = self.dice.choices([work for _, work in works], chances)
            with expected():
                work(process)

    def _works(self) -> tuple[tuple[int, Callable[[Host], None]], ...]:
        if self.moves_only:
            return ((4, self._move), (1, self._abort))
        if self.gc_only:
            return ((4, self._gc), (1, self._settle))
        if self.world.rewinds:  # one pool, much garbage, and gc at it all the time
            return (
                (10, self._push),
                (4, self._update),
                (6, self._fetch),
                (1, self._upload),
                (3, self._restore),
                (1, self._settle),
            )
        return (
            (10, self._push),
            (4, self._update),
            (5, self._fetch),
            (2, self._fork),
            (1, self._create),
            (1, self._upload),
            (1, self._delete),
            (1, self._rename),
            (1, self._restore),
            (1, self._undelete),
            (2, self._settle),
            (1, self._compact),
            (2, self._gc),
            (1, self._backup),
            (1, self._revive),
        )

    def create_first(self, process: Host) -> None:
        """Make the first repository."""
        self._create(process)

    # ---- what was tried ----

    def _attempt(self, process: Host, what: str, repository: RepositoryId | None) -> Attempt:
        made = Attempt(self.world.number(), what, process, repository, self.world.moment())
        self.world.attempts.append(made)
        return made

    @contextmanager
    def _trying(self, attempt: Attempt) -> Iterator[None]:
        """Note how it ended. An error says that nothing was done; a kill says nothing."""
        self.world.tell(attempt)
        try:
            yield
        except ShardgitError:
            attempt.ended = self.world.moment()
            self.world.tell(attempt)
            raise
        attempt.ended = self.world.moment()
        attempt.done = True
        attempt.done_ms = self.world.now_ms()

    def _names(self, process: Host) -> list[str]:
        return [one.name for one in Repositories(process.store).list()]

    def _some(self, process: Host) -> str:
        names = self._names(process)
        if not names:
            raise RepositoryMissing("there is none")
        return self.dice.choice(names)

    def _refs(
        self, process: Host, name: str
    ) -> tuple[RepositoryId, dict[bytes, ObjectId], ShownLook]:
        look = ShownLook(process.store, name)
        with process.store.journal.snapshot() as snapshot:
            found = process.store.refs.list(snapshot, look.record)
            refs = {ref.name: ref.target for ref in found if ref.target}
        self.world.learn(process.store, look, list(refs.values()))
        return look.record.id, refs, look

    # ---- what clients do ----

    def _push(self, process: Host) -> None:
        dice, history = self.dice, self.world.history
        name = self._some(process)
        repository, refs, _ = self._refs(process, name)
        branches = {dice.choice(BRANCHES) for _ in range(dice.choice((1, 1, 1, 2)))}
        commands, new, bases = [], [], []
        word = f"c{dice.randrange(1 << 30)}"
        for number, branch in enumerate(sorted(branches)):
            old = refs.get(branch)
            chance = dice.random()
            if old is not None and chance < 0.08:
                commands.append(Command(branch, old, None))
                continue
            if history.commits and chance > 0.97 - 0.3 * self.world.rewinds:
                again = dice.choice(history.commits)  # whole, whatever of it is here still
                new += sorted(history.closure(again))
                commands.append(Command(branch, old, again))
                continue
            if old is not None and chance < 0.2 + 0.2 * self.world.rewinds:  # back to an older one
                parents = list(history.objects[old].links[1:])
                if parents:
                    commands.append(Command(branch, old, parents[0]))
                    continue
            start = old if old is not None or not refs else dice.choice(sorted(refs.values()))
            parents = [start] if start is not None else []
            if parents and chance > 0.6:
                parents = list(dict.fromkeys([*parents, dice.choice(sorted(refs.values()))]))
            if parents:
                bases += list(history.files_of(parents[0]).values())
            made = history.commit(dice, parents, f"{word}.{number}")
            new += made
            commands.append(Command(branch, old, made[-1]))
        if dice.random() < 0.1 and refs:  # some of what the other side has as well
            new = [*history.closure(dice.choice(sorted(refs.values()))), *new]
            new.sort()
        new = list(dict.fromkeys(new))
        bases = [base for base in dict.fromkeys(bases) if base not in new]
        pack = history.pack(dice, new, bases) if new else None
        request = PushRequest(tuple(commands), atomic=dice.random() < 0.5)
        attempt = self._attempt(process, f"push {name}", repository)
        attempt.changes = {one.name: (one.old, one.new) for one in commands}
        with self._trying(attempt):
            results = self._deliver(process, name, request, pack, attempt)
        taken = {one.command.name for one in results if one.error is None}
        attempt.changes = {
            name: change for name, change in attempt.changes.items() if name in taken
        }
        attempt.done = bool(attempt.changes)
        if taken and len(taken) < len(commands) and request.atomic:
            raise Wrong("an atomic push was done in part")
        self.world.tell(attempt)

    def _deliver(
        self, process: Host, name: str, request: PushRequest, pack: bytes | None, attempt: Attempt
    ) -> Sequence[CommandResult]:
        push = Push(process.store, name, request, principal=trusted(attempt.actor))
        attempt.repository = push.record.id
        push.judge((lambda: (pack, None)) if pack else None)
        try:
            return push.commit().results
        except ShardgitError as error:
            return push.failed(error).results

    def _update(self, process: Host) -> None:
        dice = self.dice
        name = self._some(process)
        repository, refs, _ = self._refs(process, name)
        if not refs:
            return
        updates = []
        for branch in {dice.choice((*BRANCHES, b"refs/tags/t")) for _ in range(2)}:
            new = dice.choice(sorted(refs.values())) if dice.random() < 0.8 else None
            if new is not None or branch in refs:
                updates.append(RefUpdate(branch, refs.get(branch), new))
        updates.sort(key=lambda one: one.name)
        if not updates:
            return
        attempt = self._attempt(process, f"update {name}", repository)
        attempt.changes = {one.name: (refs.get(one.name), one.new) for one in updates}
        principal = trusted(attempt.actor)
        with self._trying(attempt):
            result = update_refs(
                process.store,
                name,
                updates,
                atomic=dice.random() < 0.5,
                note=LogNote(attempt.actor, "update"),
                principal=principal,
            )
        for failed in result.failed:
            del attempt.changes[failed]
        attempt.done = bool(attempt.changes)
        self.world.tell(attempt)

    def _fetch(self, process: Host) -> None:
        """Read all that some refs reach, slowly, and judge every byte."""
        world, history = self.world, self.world.history
        name = self._some(process)
        with process.store.journal.snapshot() as snapshot:
            look = ShownLook(process.store, name)
            refs = {
                ref.name: ref.target
                for ref in process.store.refs.list(snapshot, look.record)
                if ref.target
            }
        wanted = [oid for oid in dict.fromkeys(refs.values()) if look.positions([oid])[0] >= 0]
        if not wanted or look.view is None:
            return
        view = look.view
        try:
            world.learn(process.store, look, wanted)
        except Conflict as error:  # of one look: no other push comes between
            raise Wrong("what a ref reaches is not all there") from error
        ids = sorted(history.closure(self.dice.choice(wanted)))
        world.reads += 1
        if self.dice.random() < 0.5:
            positions = look.positions(ids)
            if min(positions) < 0:
                raise Wrong("what a ref reaches is not all there")
            bits = bytearray(-(-view.objects // 8))
            for at in positions:
                bits[at >> 3] |= 1 << (at & 7)
            pack = b""
            for piece in Transfer(view, bytes(bits), options=TransferOptions())._pieces():
                pack += piece
                world.pause()
            judge_pack(world, pack, ids)
            return
        for at in range(0, len(ids), READ_AT_ONCE):
            some = ids[at : at + READ_AT_ONCE]
            positions = look.positions(some)
            if min(positions) < 0:
                raise Wrong("what a ref reaches is not all there")
            for oid, found in zip(some, view.read_positions(positions), strict=True):
                made = history.objects[oid]
                if (found.id, found.type, found.data) != (oid, made.type, made.data):
                    raise Wrong(f"{oid.hex()} was read wrong")
            world.pause()

    def _fork(self, process: Host) -> None:
        name = self._some(process)
        attempt = self._attempt(process, f"fork {name}", None)
        with self._trying(attempt):
            made = fork(
                process.store, name, f"fork{attempt.number}", LogNote(attempt.actor, "fork")
            )
        attempt.repository = made.id
        attempt.done = False  # its row is of what the source had then
        self.world.tell(attempt)

    def _create(self, process: Host) -> None:
        attempt = self._attempt(process, "create", None)
        with self._trying(attempt):
            made = process.store.create_repository(
                f"repo{attempt.number}",
                self.world.history.kind,
                note=LogNote(attempt.actor, "create"),
            )
        attempt.repository = made.id
        attempt.done = False
        self.world.tell(attempt)

    def _upload(self, process: Host) -> None:
        name = self._some(process)
        history = self.world.history
        attempt = self._attempt(process, f"upload {name}", None)
        blobs = [
            history.add(BLOB, self.dice.randbytes(60)) for _ in range(self.dice.choice((1, 3)))
        ]
        with self._trying(attempt):
            upload = Uploading(process.store, name)
            attempt.repository = upload.record.id
            upload.take(history.pack(self.dice, blobs, []))
            upload.upload()
        attempt.done = False
        attempt.objects = tuple(blobs)
        self.world.uploads.append(attempt)
        self.world.tell(attempt)

    def _delete(self, process: Host) -> None:
        if len(self._names(process)) > 2:
            name = self._some(process)
            attempt = self._attempt(process, f"delete {name}", None)
            with self._noting(attempt) as note:
                Repositories(process.store).delete(name, note=note)

    def _rename(self, process: Host) -> None:
        name = self._some(process)
        attempt = self._attempt(process, f"rename {name}", None)
        with self._noting(attempt) as note:
            Repositories(process.store).rename(name, f"renamed{attempt.number}", note=note)

    def _restore(self, process: Host) -> None:
        name = self._some(process)
        attempt = self._attempt(process, f"restore {name}", None)
        with self._noting(attempt) as note:
            back = self.dice.choice((1, 2))
            update = restoring(process.store, name, BRANCHES[0], back=back)
            principal = trusted(attempt.actor)
            restore_ref(process.store, name, update, note=note, principal=principal)

    def _undelete(self, process: Host) -> None:
        with process.store.journal.snapshot() as snapshot:
            deleted = [
                one
                for one in deleted_repositories(snapshot)
                if not one.record.name.startswith("\0")  # half restored: nobody finds these by name
            ]
        if not deleted:
            self._delete(process)
            return
        attempt = self._attempt(process, "undelete", None)
        with self._noting(attempt) as note:
            undelete(process.store, self.dice.choice(deleted), f"again{attempt.number}", note)

    @contextmanager
    def _noting(self, attempt: Attempt) -> Iterator[LogNote]:
        """Try what is judged by its log row alone, or leaves none."""
        with self._trying(attempt):
            yield LogNote(attempt.actor, attempt.what.partition(" ")[0])
        attempt.done = False
        self.world.tell(attempt)

    def _settle(self, process: Host) -> None:
        settle(process.store, self._pool(process))

    def _pool(self, process: Host) -> PoolId:
        name = self._some(process)
        with process.store.journal.snapshot() as snapshot:
            return process.store.repository(snapshot, name).pool

    def _compact(self, process: Host) -> None:
        pool = self._pool(process)
        compact(process.store, pool, control=self.world.control(), full=self.dice.random() < 0.5)

    def _gc(self, process: Host) -> None:
        dice = self.dice
        options = GcOptions(
            grace_s=dice.choice((0.0, 0.0, 1.0, 3_600.0)),
            orphan_age_s=dice.choice((0.0, 0.0, 60.0)),
            wait_s=dice.choice((0.0, 0.5, 5.0)),
            garbage_min=dice.choice((0.0, 0.1)),
        )
        done = gc(process.store, options, control=self.world.control())
        self.world.counts["gc"] += 1
        self.world.counts["objects_dropped"] += done.dropped_objects
        self.world.counts["blocks_deleted"] += done.blocks_deleted
        if done.damaged:
            raise Wrong(f"gc found damage: {done.damaged}")

    def _move(self, process: Host) -> None:
        dice, store = self.dice, process.store
        with expected():
            number = dice.choice(sorted(store.routed.shards))
            set_weight(store, number, dice.choice((0.0, 1.0, 2.0)) if number else 1.0)
        done = rebalance(store, control=self.world.control(), keep_s=dice.choice((0.0, 0.3)))
        self.world.counts["rebalances"] += 1
        self.world.counts["blocks_moved"] += done.blocks
        for one in groups(store):
            for entry in one.entries:
                if entry.before != entry.after:
                    raise Wrong("a receipt tells of a partition that was not moved whole")

    def _abort(self, process: Host) -> None:
        self.world.pause()
        abort(process.store, control=self.world.control(), keep_s=0.0)
        self.world.counts["aborts"] += 1

    def _backup(self, process: Host) -> None:
        attempt = self._attempt(process, "backup", None)
        with self._trying(attempt):
            made = create_backup(
                process.store, str(self.world.folder / "backup"), control=self.world.control()
            )
        attempt.what = f"backup {made.backup}"
        self.world.tell(attempt)

    def _revive(self, process: Host) -> None:
        """Bring a repository back under another name, from the newest backup."""
        name = self._some(process)
        attempt = self._attempt(process, f"revive {name}", None)
        folder = self.world.folder / "backup"
        target = Target.open(str(folder)) if folder.exists() else None
        if target is None or not target.cut_ids():
            self._backup(process)
            return
        of_backup = self.dice.random() < 0.5
        with self._noting(attempt):
            restore_repository(
                process.store,
                target,
                name,
                new_name=f"back{attempt.number}",
                backup=target.cut_ids()[-1] if of_backup else None,
                at_ms=None if of_backup else int(self.world.now_ms()) - self.dice.randrange(50),
                control=self.world.control(),
            )


def judge_pack(world: Place, pack: bytes, ids: list[ObjectId]) -> None:
    """Raise Wrong unless a pack holds exactly these objects, right."""
    ingest = new_ingest(world.history.kind, world.limits)
    ingest.scan(pack)
    ingest.link()
    ingest.resolve()
    ingest.finish()
    flat, size = ingest.sorted_ids(), world.history.kind.size
    if [flat[at : at + size] for at in range(0, len(flat), size)] != ids:
        raise Wrong("a pack does not hold what was asked for")
    for oid in ids:
        if ingest.read(ingest.find(oid)) != world.history.objects[oid].data:
            raise Wrong("a pack holds wrong bytes")
