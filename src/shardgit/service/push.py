"""One push: objects in quarantine, checked, and made visible with the refs in one journal commit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, faultpoints, telemetry
from shardgit._bits import union
from shardgit.errors import (
    AlreadyExists,
    BasesGone,
    Conflict,
    FsckRefused,
    InvalidArgument,
    LimitExceeded,
    QuotaExceeded,
    ReadOnly,
    RepositoryMissing,
    ShardgitError,
)
from shardgit.protocol.receive_pack import UNPACKER_ERROR
from shardgit.refs.log import LogNote
from shardgit.service import policy
from shardgit.service.connectivity import COMMIT, MISSING, Connectivity
from shardgit.service.fscking import lines_of
from shardgit.service.intake import Intake
from shardgit.service.quotas import words_of
from shardgit.service.ref_moves import RefMoves
from shardgit.service.signed_push import certificate_facts, certificate_refusal
from shardgit.service.verdicts import Verdicts
from shardgit.service.writable import reason_of, writable

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from shardgit.journal.interface import Condition, JournalSnapshot, Operation
    from shardgit.pool.view import PoolView
    from shardgit.protocol.receive_pack import Command, CommandResult, PushRequest
    from shardgit.refs.change import RefsChange
    from shardgit.service.access import Principal
    from shardgit.service.look import Look
    from shardgit.service.reading import Reading
    from shardgit.service.signed_push import CertificateFacts
    from shardgit.service.store import Store

COMMANDS_FEW = 8  # of a push that keeps what it found out, and reads one snapshot of the journal
ROUNDS_MAX = 256  # tries against other writers; each round one of them wins
GONE = "repository was deleted or renamed meanwhile"
ATOMIC = "atomic push failure"


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


class Push(Intake):
    """A push under way. Methods run in the calling thread, a worker's, in this order: take, check, commit.

    Nothing is visible before commit's one journal transaction; what was refused leaves nothing but, at most, blocks
    that nothing names. Errors of ``take`` are the pack's and condemn all commands; what is wrong with one command
    stands in ``verdicts``.
    """

    may_reopen = True

    def __init__(
        self,
        store: Store,
        name: str,
        request: PushRequest,
        *,
        principal: Principal,
        reason: str = "push",
        snapshot: JournalSnapshot | None = None,
    ) -> None:
        super().__init__(store, name, snapshot)
        self.request = request
        self.principal = principal
        self.reason = reason
        self.verdicts = Verdicts(request.commands, self.told)
        self.moves = RefMoves(store, self.record, self.verdicts)
        self.unpack_error: str | None = None
        self.facts: CertificateFacts | None = None
        self._meant: dict[int, Command] = {}  # commands by number, as policy sees them
        self._sequence = self._revision = self._rounds = 0
        self._lost = False
        self.denied: ReadOnly | QuotaExceeded | None = None  # why the repository takes none of it
        self._marks = b""  # what the new tips reach beyond what the repository has
        self._connected: Look | None = None  # what the marks are right for

    # ---- checks ----

    def judge(
        self,
        pack: Callable[[], tuple[Buffer, array[int] | None]] | None,
        *,
        nonce: bytes | None = None,
    ) -> None:
        """Do all that comes before hooks: take the pack, judge the certificate, check the commands.

        What is wrong with the pack stands in ``unpack_error`` and condemns every command.
        """
        if not self._takes_changes():
            return
        try:
            if pack is not None:
                self.take(*pack())
        except (InvalidArgument, LimitExceeded, AlreadyExists) as error:
            self.unpack_failed(error)
            return
        self.facts = certificate_facts(self.record, self.request, given=nonce)
        reason = certificate_refusal(self.settings, self.request, self.facts)
        if reason is not None:
            self.verdicts.refuse_all(reason)
        self.check()

    def _takes_changes(self) -> bool:
        """Refuse all at once where the store or the repository is read-only; the commit looks again."""
        try:
            with self.moment() as snapshot:
                writable(snapshot, self.record)
        except ReadOnly as error:
            self.denied = error
            self.verdicts.refuse_all(reason_of(error))
            return False
        except RepositoryMissing:
            self.verdicts.refuse_all(GONE)
            return False
        return True

    def check(self) -> None:
        """Judge each command: names and policy, then whether all that it would make reachable is there."""
        refused = policy.push_refusal(self.settings, self.request)
        if refused is not None:
            self.verdicts.refuse_all(refused)
            return
        with self.moment() as snapshot:
            current = self.moves.current(snapshot)
            self._meant = {
                number: self.moves.meaning(snapshot, command)
                for number, command in self.verdicts.standing()
            }
        twice = policy.repeated(self.request.commands)
        for number, command in self.verdicts.standing():
            meant = self._meant[number]
            error = self._forbidden(command, current)
            if error is None and meant != command:
                error = self._forbidden(meant, current)
            if command.name in twice:
                error = policy.repeated_reason(command.name)
            if error is not None:
                self.verdicts.refuse(number, error)
            elif (text := policy.warning(self.settings, meant, current=current)) is not None:
                self.told.append(text)
        self._connect()

    def _forbidden(self, command: Command, current: bytes | None) -> str | None:
        return policy.refusal(
            self.settings,
            command,
            principal=self.principal,
            is_ff=lambda: self._is_ff(command),
            current=current,
        )

    def unpack_failed(self, error: ShardgitError) -> None:
        """Refuse every command because the pack was."""
        lines = lines_of(error) if isinstance(error, FsckRefused) else []
        self.unpack_error = error.message if lines else str(error)
        self.told += [*lines, f"fatal: {self.unpack_error}"]
        self.verdicts.errors.clear()
        self.verdicts.refuse_all(UNPACKER_ERROR)

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
        missing, roots = MISSING, self.request.shallow
        if roots and not self.settings.receive.shallow_update:
            missing, roots = "shallow update not allowed", ()  # git tells shallow clients apart
        connectivity = Connectivity(self, self.verdicts, self._meant, missing=missing, roots=roots)
        connectivity.check()
        self._marks = connectivity.marks
        self._connected = None if connectivity.dropped else self.look

    def shown(self) -> Reading:
        """Return reads of the repository as it would be with what was pushed, for hooks."""
        standing = [command.new for _, command in self.verdicts.standing()]
        return self.quarantined([new for new in standing if new is not None])

    # ---- commit ----

    def commit(self) -> Pushed:
        """Make all accepted commands durable and visible; returns how each ended. Errors: StorageFull, Unavailable."""
        while (steps := self.steps()) is not None or self.waiting:
            if steps is None:
                clock.sleep(self.waiting)
                continue
            try:
                # commit point: a crash before it leaves the repository as it was and at most blocks that nothing
                # names; after it objects, refs and log are there, fsynced.
                faultpoints.reach("push.before_commit")
                revision = self.store.journal.commit_sync(steps.conditions, steps.operations)
                faultpoints.reach("push.after_commit")
            except Conflict:
                self.lost()
            else:
                self.committed(revision)
        return self.outcome()

    def steps(self) -> Steps | None:
        """Return the journal commit that makes all accepted commands visible; None when nothing is left to do.

        With ``waiting`` there is something left, to be asked for after that many seconds.
        Tell ``committed`` or ``lost`` what became of it, and ask again. Large pushes have put their blocks by then.
        """
        if self._revision or not self._begin() or self.waiting:
            return None
        if self._rounds == ROUNDS_MAX:
            self.verdicts.refuse_all("failed to update ref")
            return None
        self._rounds += 1
        admitted = self._admitted()
        if admitted is None:
            return None
        root = self.root()
        added: tuple[list[Condition], list[Operation]] = ([], [])
        if root:
            added = self.store.next_recent(self.look.state.pool, root)
        with self.moment() as snapshot:
            try:
                change = self._plan(snapshot)
            except RepositoryMissing:
                self.verdicts.refuse_all(GONE)
                return None
        if change is None or not change.operations:
            return None  # all is refused, or all refs stand there already
        self._sequence = change.sequence
        relied = self.store.rely(self.look.state.pool, self.relied_on)
        return Steps(
            [
                *admitted[0],
                *change.conditions,
                self.look.state.unchanged,
                *relied[0],
                *added[0],
                *self.fences,
            ],
            [
                *admitted[1],
                *change.operations,
                *self.graft_steps(),
                *relied[1],
                *added[1],
            ],
        )

    def _admitted(self) -> tuple[list[Condition], list[Operation]] | None:
        """Return what the commit needs so that the repository takes it; None when it does not, which is told."""
        try:
            return self.admitted()
        except ReadOnly as error:
            self.denied = error
            self.verdicts.refuse_all(reason_of(error))
        except QuotaExceeded as error:
            self.told.append(f"error: {words_of(error)}")
            self.verdicts.refuse_all(error.message)
            self.denied = error
        except RepositoryMissing:
            self.verdicts.refuse_all(GONE)
        return None

    def relied_on(self) -> list[bytes]:
        """See Intake."""
        return [*super().relied_on(), self._marks]

    def _begin(self) -> bool:
        """Prepare a try; False when no command is left."""
        if self.request.atomic and self.verdicts.errors:
            self.verdicts.refuse_all(ATOMIC)
        try:
            if self._lost:
                self._lost = False
                self._look_again(self.renew())
            elif not self._rounds:
                self._look_again(self.make_room())
        except RepositoryMissing:
            self.verdicts.refuse_all(GONE)
        except BasesGone as error:
            self.verdicts.refuse_all(error.message)
        return bool(self.verdicts.standing())

    def lost(self) -> None:
        """Take note that another writer of the pool or of the refs was faster."""
        self._lost = True

    def committed(self, revision: int) -> None:
        """Take note of the commit, and keep what it made."""
        self.landed(revision)
        self.keep_view()

    def landed(self, revision: int) -> None:
        """Take note of the commit: the push has its outcome."""
        self._revision = revision

    def keep_view(self) -> None:
        """Keep the pool's view as the commit left it, so that nobody need build it again."""
        try:
            self._keep_reach(self.adopt(self._revision))
        except ShardgitError as error:  # the push is done, whatever becomes of the view
            telemetry.log().error("view_not_kept", repository=self.name, exc_info=error)

    def _keep_reach(self, view: PoolView) -> None:
        """Keep what the refs reach now where that is what they reached and what came: none left anything behind."""
        look, commands = self.look, self.request.commands
        if (
            self._connected is look
            and self._sequence == look.sequence + 1
            and len(commands) <= COMMANDS_FEW
            and not self.verdicts.errors
            and self.grafts.key == look.state.pool.view.grafts.key
            and all(self._leaves_nothing(self._meant[number]) for number in range(len(commands)))
        ):
            bits = union(look.reachable, self._marks)
            self.store.keep_reach(self.record, view, self._sequence, bits)

    def _leaves_nothing(self, command: Command) -> bool:
        """Say whether a ref still reaches all that it reached: what stood there, if anything, must not be a tag."""
        if command.new is None:
            return False
        if command.old is None or command.old == command.new:
            return True
        at = self.incoming.position(command.old)
        return at >= 0 and self.incoming.graph.type_at(at) == COMMIT and self._is_ff(command)

    def _plan(self, snapshot: JournalSnapshot) -> RefsChange | None:
        note = LogNote(
            self.principal.name,
            self.reason,
            self.principal.address,
            certificate=self.request.certificate,
        )
        return self.moves.plan(
            snapshot, note, peeled=self.incoming.peeled, atomic=self.request.atomic
        )

    def _look_again(self, changed: bool) -> None:
        """Connect anew where the pool is another than the one that was looked at."""
        if not changed:
            return
        self._connect()
        if self.request.atomic and self.verdicts.errors:
            self.verdicts.refuse_all(ATOMIC)

    def failed(self, error: ShardgitError) -> Pushed:
        """Return how a push ended whose commit failed for a reason of the store's, not of the push."""
        if self._revision:
            return self.outcome()  # it failed behind its commit
        text = reason_of(error) if isinstance(error, ReadOnly) else error.message
        self.verdicts.refuse_all(text)
        return self.outcome()

    def outcome(self) -> Pushed:
        """Return how the push ended."""
        results = self.verdicts.results()
        if not self._revision:
            return Pushed(results, 0, 0)
        return Pushed(results, self._revision, self.incoming.objects, self._sequence)


async def next_steps(push: Push) -> Steps | None:
    """Return what a push has to commit next, asked for in a worker; no worker waits where it has to wait."""
    while True:
        steps = await push.store.workers.run(push.steps)
        if steps is not None or not push.waiting:
            return steps
        await asyncio.sleep(push.waiting)
