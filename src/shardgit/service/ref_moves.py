"""The refs that a push moves: what its commands mean at one moment, and the change that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import Conflict, InvalidRefName, Refused, ShardgitError
from shardgit.protocol.receive_pack import Command
from shardgit.refs.update import ANY, RefUpdate
from shardgit.service import policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.journal.records import RepositoryRecord
    from shardgit.oid import ObjectId
    from shardgit.refs.change import RefsChange
    from shardgit.refs.log import LogNote
    from shardgit.service.store import Store
    from shardgit.service.verdicts import Verdicts


class RefMoves:
    """The commands of one push against the refs of its repository, as snapshots show them."""

    def __init__(self, store: Store, record: RepositoryRecord, verdicts: Verdicts) -> None:
        self.store = store
        self.record = record
        self.verdicts = verdicts

    def current(self, snapshot: JournalSnapshot) -> bytes | None:
        """Return the name that HEAD stands for."""
        head = self.store.refs.get(snapshot, self.record, b"HEAD")
        return head.symbolic if head is not None else None

    def meaning(self, snapshot: JournalSnapshot, command: Command) -> Command:
        """Return a command as policy has to see it: of the ref that it moves, and with what it deletes.

        A symbolic ref stands for another; a deletion may name no old id and deletes what is there all the same.
        """
        name, old = self.final_name(snapshot, command.name), command.old
        if old is None and command.new is None:
            now = self.store.refs.get(snapshot, self.record, name)
            old = now.target if now is not None else None
        return Command(name, old, command.new)

    def final_name(self, snapshot: JournalSnapshot, name: bytes) -> bytes:
        """Return the name of the ref that a command moves: a symbolic ref stands for another."""
        for _ in range(self.store.limits.ref_symbolic_depth_max):
            now = self.store.refs.get(snapshot, self.record, name)
            if now is None or now.symbolic is None:
                break
            name = now.symbolic
        return name

    def plan(
        self,
        snapshot: JournalSnapshot,
        note: LogNote,
        *,
        peeled: Callable[[ObjectId], ObjectId | None],
        atomic: bool,
    ) -> RefsChange | None:
        """Plan the change of refs; None when what was found out refuses all that is left."""
        by_name: dict[bytes, list[int]] = {}
        planned: dict[bytes, RefUpdate] = {}
        for number, command in self.verdicts.standing():
            name = self.final_name(snapshot, command.name)
            by_name.setdefault(name, []).append(number)
        for name, numbers in by_name.items():
            self._refuse_aliases(numbers)
            if numbers[0] not in self.verdicts.errors:
                command = self.verdicts.commands[numbers[0]]
                update = self._update(snapshot, name, command, peeled)
                if update is not None:
                    planned[name] = update
        updates = list(planned.values())
        change, failed = self.store.refs.plan(snapshot, self.record, updates, note)
        for name, error in failed.items():
            for number in by_name[name]:
                self.verdicts.refuse(number, _reason(error))
        if self.verdicts.errors and atomic:
            self.verdicts.refuse_transaction()
            return None
        return change if self.verdicts.standing() else None

    def _refuse_aliases(self, numbers: list[int]) -> None:
        """Refuse commands that would move one ref, by two names, to two places."""
        commands = [self.verdicts.commands[number] for number in numbers]
        if len({(command.old, command.new) for command in commands}) == 1:
            return
        shown = [
            f"'{c.name.decode('utf-8', 'replace')}' ({_short(c.old)}..{_short(c.new)})"
            for c in commands[:2]
        ]
        self.verdicts.told.append(
            f"error: refusing inconsistent update between symref {shown[0]} and {shown[1]}"
        )
        for number in numbers:
            self.verdicts.refuse(number, "inconsistent aliased update")

    def _update(
        self,
        snapshot: JournalSnapshot,
        name: bytes,
        command: Command,
        peeled: Callable[[ObjectId], ObjectId | None],
    ) -> RefUpdate | None:
        """Return the update that a command means; None when its ref is there already.

        A client does not see all refs where the advertisement is cut, so it may make what exists.
        """
        if command.new is None:
            return RefUpdate(name, ANY if command.old is None else command.old, None)
        now = self.store.refs.get(snapshot, self.record, name)
        if now is not None and now.target == command.new:
            return None
        return RefUpdate(name, command.old, command.new, peeled(command.new))


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
