"""One push: objects in quarantine, checked, and made visible with the refs in one journal commit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardgit import telemetry
from shardgit.errors import (
    AlreadyExists,
    Conflict,
    FsckRefused,
    InvalidArgument,
    InvalidRefName,
    LimitExceeded,
    Refused,
    RepositoryMissing,
    ShardgitError,
)
from shardgit.oid import hex_of
from shardgit.operate.settle import settle
from shardgit.pool.append import write_recent
from shardgit.protocol.receive_pack import UNPACKER_ERROR, Command, CommandResult
from shardgit.refs.log import LogNote
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service import policy
from shardgit.service.fscking import judge, lines_of, severities
from shardgit.service.incoming import Incoming, leave_out_known, resolve_thin
from shardgit.service.look import Look
from shardgit.service.quarantine import QuarantinedReading
from shardgit.service.resolving import new_ingest
from shardgit.service.settings import settings_of
from shardgit.service.signed_push import certificate_facts, certificate_refusal
from shardgit.service.store import Reach

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from shardgit._layout import Ingest
    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.limits import Limits
    from shardgit.oid import ObjectId
    from shardgit.pool.view import PoolView
    from shardgit.protocol.receive_pack import PushRequest
    from shardgit.refs.change import RefsChange
    from shardgit.service.access import Principal
    from shardgit.service.reading import Reading
    from shardgit.service.settings import RepositorySettings
    from shardgit.service.signed_push import CertificateFacts
    from shardgit.service.store import Store

ROUNDS_MAX = 256  # tries against other writers; each round one of them wins
MISSING = "missing necessary objects"
GONE = "repository was deleted or renamed meanwhile"
ATOMIC = "atomic push failure"
ATOMIC_LATE = "atomic transaction failed"  # in git's words: what the refs themselves did not allow
COMMIT = 1
FAILED_WALKS_MAX = 2_000  # each may visit all that was pushed


@dataclass(frozen=True, slots=True)
class Pushed:
    """How a push ended. ``revision`` and ``sequence`` are those of its commit and log row, 0 when nothing changed."""

    results: tuple[CommandResult, ...]
    revision: int
    objects: int
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Steps:
    """One journal commit."""

    conditions: Sequence[Condition]
    operations: Sequence[Operation]


class Push:
    """A push under way. Methods run in the calling thread, a worker's, in this order: take, check, commit.

    Nothing is visible before commit's one journal transaction; what was refused leaves nothing but, at most, blocks
    that nothing names. Errors of ``take`` are the pack's and condemn all commands; what is wrong with one command
    stands in ``errors``, in git's words where git has some.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        request: PushRequest,
        *,
        principal: Principal,
        reason: str = "push",
    ) -> None:
        self.store = store
        self.name = name
        self.request = request
        self.principal = principal
        self.reason = reason
        self.look = Look(store, name)
        self.record = self.look.record
        self.settings: RepositorySettings = settings_of(self.record)
        self.errors: dict[int, str] = {}
        self.unpack_error: str | None = None
        self.facts: CertificateFacts | None = None
        self.told: list[str] = []  # lines for the user
        self.ingest: Ingest | None = None
        self._meant: dict[int, Command] = {}  # commands by number, as policy sees them
        self._known: list[int] = []  # positions of pushed objects that the pool had
        self._root: bytes = b""
        self._sequence = self._revision = self._rounds = 0
        self._lost = False
        self.incoming = Incoming(None, self.look.view, self.record.hash_kind, self._limits())

    def _limits(self) -> Limits:
        """Return the store's limits, narrowed by the repository's settings."""
        limits, receive = self.store.limits, self.settings.receive
        if receive.max_push_objects:
            most = min(limits.pack_objects_max, receive.max_push_objects)
            limits = replace(limits, pack_objects_max=most)
        if receive.max_file_bytes:
            size = min(limits.object_size_max_bytes, receive.max_file_bytes)
            limits = replace(limits, object_size_max_bytes=size)
        return limits

    # ---- objects ----

    def take(self, pack: Buffer, offsets: array[int] | None = None) -> None:
        """Parse and resolve a pack, compute every id, run fsck.

        Deltas may have bases that the repository reaches. Errors: MalformedPack, MalformedObject, FsckRefused,
        ObjectCollision, LimitExceeded, DataLoss.
        """
        self.take_all([(pack, offsets)])

    def take_all(self, packs: Sequence[tuple[Buffer, array[int] | None]]) -> None:
        """Take several packs as if they were one. Errors as ``take``."""
        limits = self._limits()
        ingest = new_ingest(self.record.hash_kind, limits)
        checks = severities(self.settings, self.record.hash_kind)
        if checks is not None:
            ingest.check_objects(checks.table)
        try:
            for pack, offsets in packs:
                ingest.scan(pack, offsets)
            resolve_thin(
                ingest,
                self.look.view,
                self.look.owned,
                threads=self.store.workers.threads,
                limits=limits,
            )
        except LimitExceeded as error:
            raise self._explained(error) from error
        if checks is not None:
            self.told += judge(ingest, checks, self.look)
        self.ingest = ingest
        self._place()

    def _explained(self, error: LimitExceeded) -> LimitExceeded:
        receive = self.settings.receive
        if "too many objects" in error.message and receive.max_push_objects:
            return LimitExceeded(
                "push has too many objects; push in smaller steps", limit=receive.max_push_objects
            )
        if "object is over" in error.message and receive.max_file_bytes:
            return LimitExceeded(
                "push holds a file over the size limit; use Git LFS or leave it out",
                limit_bytes=receive.max_file_bytes,
            )
        return error

    def _place(self) -> None:
        """Lay the objects out over the pool as the look shows it."""
        assert self.ingest is not None
        view = self.look.view
        self._known = leave_out_known(self.ingest, view, compare=True)
        self.incoming = Incoming(self.ingest, view, self.record.hash_kind, self.store.limits)
        self._root = b""

    def judge(
        self,
        pack: Callable[[], tuple[Buffer, array[int] | None]] | None,
        *,
        nonce: bytes | None = None,
    ) -> None:
        """Do all that comes before hooks: take the pack, judge the certificate, check the commands.

        What is wrong with the pack stands in ``unpack_error`` and condemns every command.
        """
        try:
            if pack is not None:
                self.take(*pack())
        except (InvalidArgument, LimitExceeded, AlreadyExists) as error:
            self.unpack_failed(error)
            return
        self.facts = certificate_facts(self.record, self.request, given=nonce)
        reason = certificate_refusal(self.settings, self.request, self.facts)
        if reason is not None:
            self.refuse_all(reason)
        self.check()

    # ---- checks ----

    def check(self) -> None:
        """Judge each command: names and policy, then whether all that it would make reachable is there."""
        refused = policy.push_refusal(self.settings, self.request)
        if refused is not None:
            self.refuse_all(refused)
            return
        with self.store.journal.snapshot() as snapshot:
            current = self._current(snapshot)
            self._meant = {
                number: self._meaning(snapshot, command) for number, command in self._standing()
            }
        twice = policy.repeated(self.request.commands)
        for number, command in self._standing():
            meant = self._meant[number]
            error = self._forbidden(command, current)
            if error is None and meant != command:
                error = self._forbidden(meant, current)
            if command.name in twice:
                error = policy.repeated_reason(command.name)
            if error is not None:
                self._refuse(number, error)
            elif (text := policy.warning(self.settings, meant, current=current)) is not None:
                self.told.append(text)
        self._connect()

    def _meaning(self, snapshot: JournalSnapshot, command: Command) -> Command:
        """Return a command as policy has to see it: of the ref that it moves, and with what it deletes.

        A symbolic ref stands for another; a deletion may name no old id and deletes what is there all the same.
        """
        name, old = self._final_name(snapshot, command.name), command.old
        if old is None and command.new is None:
            now = self.store.refs.get(snapshot, self.record, name)
            old = now.target if now is not None else None
        return Command(name, old, command.new)

    def _forbidden(self, command: Command, current: bytes | None) -> str | None:
        return policy.refusal(
            self.settings,
            command,
            principal=self.principal,
            is_ff=lambda: self._is_ff(command),
            current=current,
        )

    def _current(self, snapshot: JournalSnapshot) -> bytes | None:
        head = self.store.refs.get(snapshot, self.record, b"HEAD")
        return head.symbolic if head is not None else None

    def accepted(self) -> list[tuple[int, Command]]:
        """Return the commands that nothing speaks against so far, with their numbers."""
        return self._standing()

    def refuse(self, number: int, reason: str) -> None:
        """Refuse one command."""
        self._refuse(number, reason)

    def _standing(self) -> list[tuple[int, Command]]:
        return [
            (number, command)
            for number, command in enumerate(self.request.commands)
            if number not in self.errors
        ]

    def _refuse(self, number: int, reason: str) -> None:
        self.errors[number] = reason
        line = policy.explained(self.request.commands[number], reason)
        if line is not None:
            self.told.append(line)

    def refuse_all(self, reason: str) -> None:
        """Refuse every command that still stands."""
        for number, _ in self._standing():
            self.errors[number] = reason

    def unpack_failed(self, error: ShardgitError) -> None:
        """Refuse every command because the pack was."""
        lines = lines_of(error) if isinstance(error, FsckRefused) else []
        self.unpack_error = error.message if lines else str(error)
        self.told += [*lines, f"fatal: {self.unpack_error}"]
        self.errors.clear()
        self.refuse_all(UNPACKER_ERROR)

    def _is_ff(self, command: Command) -> bool:
        assert command.old is not None
        assert command.new is not None
        incoming = self.incoming
        graph = incoming.graph
        old, new = (
            graph.peel(at) if at >= 0 else -1
            for at in incoming.positions([command.old, command.new])
        )
        if old < 0 or new < 0 or graph.type_at(old) != COMMIT or graph.type_at(new) != COMMIT:
            return False
        return graph.is_ancestor(old, new)

    def _connect(self) -> None:
        """Refuse the commands whose target does not reach only what the push brings and the repository has."""
        wanted = [(number, c.new) for number, c in self._standing() if c.new is not None]
        if not wanted:
            if self.request.commands:
                self._drop_unreached(b"")  # it may link to what is not there
            return
        places = self.incoming.positions([new for _, new in wanted])
        tips: list[int] = []
        mine = set(self._known)
        for (number, new), at in zip(wanted, places, strict=True):
            seen = at >= self.incoming.first or at in mine or (at >= 0 and self.look.owns(at))
            if not seen:
                self._refuse(number, self._missing())
                self.told.append(f"error: {hex_of(new)} is neither pushed nor in the repository")
            elif self._is_bad_branch(number, at):
                self._refuse(number, "invalid new value provided")
                name = self.request.commands[number].name.decode("utf-8", "replace")
                self.told.append(
                    f"error: cannot update ref '{name}': trying to write non-commit object"
                    f" {hex_of(new)} to branch '{name}'"
                )
            else:
                tips.append(at)
        marks, whole = self.incoming.reached(tips, self.look.reachable if self.look.view else None)
        if not whole or self._strays(marks):
            good = self._whole_tips(tips)
            for (number, _), at in zip(wanted, places, strict=True):
                if number not in self.errors and at not in good:
                    self._refuse(number, self._missing())
            tips = sorted(good)
            marks, _ = self.incoming.reached(tips, self.look.reachable or None)
            self._drop_unreached(marks)
        elif not self.incoming.complete:
            self._drop_unreached(marks)

    def _whole_tips(self, tips: Sequence[int]) -> set[int]:
        """Return the tips that reach only what is there, found by halves: a million refs may have one that does not.

        Where very many do not, those that are left are not looked at, and count as such.
        """
        good: set[int] = set()
        seen = int.from_bytes(self.look.reachable, "little")
        size = (self.incoming.first + self.incoming.objects + 7) // 8
        left = [sorted(set(tips))]
        failed = 0
        while left and failed < FAILED_WALKS_MAX:
            some = left.pop()
            marks, whole = self.incoming.reached(some, seen.to_bytes(size, "little"))
            if whole and not self._strays(marks):
                good.update(some)
                seen |= int.from_bytes(marks, "little")
                continue
            failed += 1
            if len(some) > 1:
                left += [some[len(some) // 2 :], some[: len(some) // 2]]
        return good

    def _missing(self) -> str:
        """Return why a target that does not reach only what is there is refused: git tells shallow clients apart."""
        return "shallow update not allowed" if self.request.shallow else MISSING

    def _is_bad_branch(self, number: int, position: int) -> bool:
        meant = self._meant.get(number, self.request.commands[number])
        return (
            meant.name.startswith(b"refs/heads/")
            and self.incoming.graph.type_at(position) != COMMIT
        )

    def _strays(self, marks: bytes) -> bool:
        """Say whether marks hold an object of the pool that the repository neither owns nor has pushed."""
        size = self.incoming.first
        pool = int.from_bytes(marks[: (size + 7) // 8], "little") & ((1 << size) - 1)
        if not pool:
            return False
        mine = bytearray(self.look.uploaded.bits().ljust((size + 7) // 8, b"\0"))
        for at in self._known:
            mine[at >> 3] |= 1 << (at & 7)
        return bool(pool & ~int.from_bytes(mine, "little"))

    def _drop_unreached(self, marks: bytes) -> None:
        """Leave out pushed objects that no accepted command reaches: some link to what is not there."""
        if self.ingest is None:
            return
        if self.ingest.drop_positions(marks, self.incoming.first):
            self.incoming = Incoming(
                self.ingest, self.look.view, self.record.hash_kind, self.store.limits
            )
            self._root = b""

    # ---- quarantine ----

    def root(self) -> bytes:
        """Write what the push brings; returns the root of its recent, b"" when it brings nothing."""
        if not self._root and self.ingest is not None and self.incoming.objects:
            self._root = write_recent(
                self.store.blocks,
                self.ingest,
                segments=self.incoming.segments,
                stream=self.incoming.stream,
                pool=self.record.pool,
                hash_kind=self.record.hash_kind,
                limits=self.store.limits,
            )
        return self._root

    def quarantined(self) -> Reading:
        """Return reads of the repository as it would be with what was pushed, for hooks."""
        view = self._extended()
        tips = [at for at in self.incoming.positions(self._targets()) if at >= 0]
        have = self.look.reachable
        marks, _ = self.incoming.reached(tips, have or None)
        both = int.from_bytes(have, "little") | int.from_bytes(marks, "little")
        known = both.to_bytes((view.objects + 7) // 8, "little")
        shown = view if view.objects else None
        return QuarantinedReading(
            self.store,
            self.look.state,
            shown,
            Reach(known=known),
            uploaded=self.look.uploaded,
        )

    def _targets(self) -> list[ObjectId]:
        return [command.new for _, command in self._standing() if command.new is not None]

    def _extended(self) -> PoolView:
        pool = self.look.state.pool
        root = self.root()
        if not root:
            return pool.view
        return pool.view.extended(pool.last_recent + 1, root, graph=self.incoming.graph)

    # ---- commit ----

    def commit(self) -> Pushed:
        """Make all accepted commands durable and visible; returns how each ended. Errors: StorageFull, Unavailable."""
        while (steps := self.steps()) is not None:
            try:
                # commit point: a crash before it leaves the repository as it was and at most blocks that nothing
                # names; after it objects, refs and log are there, fsynced.
                revision = self.store.journal.commit_sync(steps.conditions, steps.operations)
            except Conflict:
                self.lost()
            else:
                self.committed(revision)
        return self.outcome()

    def steps(self) -> Steps | None:
        """Return the journal commit that makes all accepted commands visible; None when nothing is left to do.

        Tell ``committed`` or ``lost`` what became of it, and ask again. Large pushes have put their blocks by then.
        """
        if self._revision or not self._begin():
            return None
        if self._rounds == ROUNDS_MAX:
            self.refuse_all("failed to update ref")
            return None
        self._rounds += 1
        root = self.root()
        added: tuple[list[Condition], list[Operation]] = ([], [])
        if root:
            added = self.store.next_recent(self.look.state.pool, root)
        with self.store.journal.snapshot() as snapshot:
            try:
                change = self._plan(snapshot)
            except RepositoryMissing:
                self.refuse_all(GONE)
                return None
        if change is None or not change.operations:
            return None  # all is refused, or all refs stand there already
        self._sequence = change.sequence
        return Steps([*change.conditions, *added[0]], [*change.operations, *added[1]])

    def _begin(self) -> bool:
        """Prepare a try; False when no command is left."""
        if self.request.atomic and self.errors:
            self.refuse_all(ATOMIC)
        try:
            if self._lost:
                self._lost = False
                self._renew()
            elif not self._rounds:
                self._make_room()
        except RepositoryMissing:
            self.refuse_all(GONE)
        return bool(self._standing())

    def lost(self) -> None:
        """Take note that another writer of the pool or of the refs was faster."""
        self._lost = True

    def committed(self, revision: int) -> None:
        """Take note of the commit."""
        self._revision = revision
        if self._root:
            try:
                view = self._extended()
            except ShardgitError as error:  # the push is done, whatever becomes of the view
                telemetry.log().error("view_not_kept", repository=self.name, exc_info=error)
            else:
                self.store.adopt(self.look.state.pool.record, view, revision)
        settle_soon(self.store, self.look)

    def _plan(self, snapshot: JournalSnapshot) -> RefsChange | None:
        """Plan the change of refs; None when what was found out refuses all that is left."""
        by_name: dict[bytes, list[int]] = {}
        planned: dict[bytes, RefUpdate] = {}
        for number, command in self._standing():
            name = self._final_name(snapshot, command.name)
            by_name.setdefault(name, []).append(number)
        for name, numbers in by_name.items():
            self._refuse_aliases(numbers)
            if numbers[0] not in self.errors:
                update = self._update(snapshot, name, self.request.commands[numbers[0]])
                if update is not None:
                    planned[name] = update
        updates = list(planned.values())
        change, failed = self.store.refs.plan(snapshot, self.record, updates, self._note())
        for name, error in failed.items():
            for number in by_name[name]:
                self._refuse(number, _reason(error))
        if self.errors and self.request.atomic:
            self._refuse_transaction()
            return None
        return change if self._standing() else None

    def _refuse_transaction(self) -> None:
        """Refuse all commands as one, in git's words; why each failed is told beside them."""
        for number, reason in self.errors.items():
            name = self.request.commands[number].name.decode("utf-8", "replace")
            self.told.append(f"error: {name}: {reason}")
            self.errors[number] = ATOMIC_LATE
        self.refuse_all(ATOMIC_LATE)

    def _refuse_aliases(self, numbers: list[int]) -> None:
        """Refuse commands that would move one ref, by two names, to two places."""
        commands = [self.request.commands[number] for number in numbers]
        if len({(command.old, command.new) for command in commands}) == 1:
            return
        shown = [
            f"'{c.name.decode('utf-8', 'replace')}' ({_short(c.old)}..{_short(c.new)})"
            for c in commands[:2]
        ]
        self.told.append(
            f"error: refusing inconsistent update between symref {shown[0]} and {shown[1]}"
        )
        for number in numbers:
            self._refuse(number, "inconsistent aliased update")

    def _final_name(self, snapshot: JournalSnapshot, name: bytes) -> bytes:
        """Return the name of the ref that a command moves: a symbolic ref stands for another."""
        for _ in range(self.store.limits.ref_symbolic_depth_max):
            now = self.store.refs.get(snapshot, self.record, name)
            if now is None or now.symbolic is None:
                break
            name = now.symbolic
        return name

    def _update(self, snapshot: JournalSnapshot, name: bytes, command: Command) -> RefUpdate | None:
        """Return the update that a command means; None when its ref is there already.

        A client does not see all refs where the advertisement is cut, so it may make what exists.
        """
        if command.new is None:
            return RefUpdate(name, ANY if command.old is None else command.old, None)
        now = self.store.refs.get(snapshot, self.record, name)
        if now is not None and now.target == command.new:
            return None
        return RefUpdate(name, command.old, command.new, self.incoming.peeled(command.new))

    def _note(self) -> LogNote:
        return LogNote(
            self.principal.name,
            self.reason,
            self.principal.address,
            certificate=self.request.certificate,
        )

    def _renew(self) -> None:
        """Look at the repository anew after another writer won. Errors: RepositoryMissing."""
        before = self.look.state.pool.view.id
        look = Look(self.store, self.name)
        if look.record.id != self.record.id:  # the name is another's now
            raise RepositoryMissing("repository does not exist", repository=self.name)
        self.look = look
        if self.look.state.pool.view.id == before:
            return
        if self.ingest is not None:
            self._place()
        else:
            self.incoming = Incoming(None, self.look.view, self.record.hash_kind, self.store.limits)
        self._connect()
        if self.request.atomic and self.errors:
            self.refuse_all(ATOMIC)

    def _make_room(self) -> None:
        """Wait for a settle where recents have piled up, so that nobody's lookups drown in them."""
        view, limits = self.look.state.pool.view, self.store.limits
        if (
            len(view.recents) >= limits.recents_max
            or view.recents_bytes >= limits.recents_max_bytes
        ):
            settle(self.store, self.record.pool)
            self._renew()

    def failed(self, error: ShardgitError) -> Pushed:
        """Return how a push ended whose commit failed for a reason of the store's, not of the push."""
        if self._revision:
            return self.outcome()  # it failed behind its commit
        self.refuse_all(error.message)
        return self.outcome()

    def outcome(self) -> Pushed:
        """Return how the push ended."""
        results = tuple(
            CommandResult(command, self.errors.get(number))
            for number, command in enumerate(self.request.commands)
        )
        if not self._revision:
            return Pushed(results, 0, 0)
        return Pushed(results, self._revision, self.incoming.objects, self._sequence)


def settle_soon(store: Store, look: Look) -> None:
    """Have the pool settled in the background once it has enough recents."""
    view, limits = look.state.pool.view, store.limits
    full = view.recents_bytes >= limits.recents_max_bytes // 2
    if len(view.recents) + 1 >= limits.recents_settle or full:
        pool = look.record.pool
        store.workers.later(("settle", pool), lambda: settle(store, pool))


def _reason(error: ShardgitError) -> str:
    """Return why one ref could not be updated, in git's words where git has some."""
    if isinstance(error, Conflict):
        return "incorrect old value provided"
    if isinstance(error, InvalidRefName):
        return policy.FUNNY
    if isinstance(error, Refused):
        return "reference conflict: " + str(error)
    return error.message


def _short(oid: ObjectId | None) -> str:
    return oid.hex()[:7] if oid is not None else "0" * 7
