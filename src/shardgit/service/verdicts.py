"""What becomes of the commands of a push: which still stand, and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.protocol.receive_pack import CommandResult
from shardgit.service import policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.protocol.receive_pack import Command

ATOMIC_LATE = "atomic transaction failed"  # in git's words: what the refs themselves did not allow


class Verdicts:
    """The commands of a push by number; ``errors`` holds why one is refused, in git's words where git has some.

    What there is to explain goes to ``told``, lines for the user.
    """

    def __init__(self, commands: Sequence[Command], told: list[str]) -> None:
        self.commands = commands
        self.errors: dict[int, str] = {}
        self.told = told

    def standing(self) -> list[tuple[int, Command]]:
        """Return the commands that nothing speaks against so far, with their numbers."""
        return [
            (number, command)
            for number, command in enumerate(self.commands)
            if number not in self.errors
        ]

    def refuse(self, number: int, reason: str) -> None:
        """Refuse one command."""
        self.errors[number] = reason
        line = policy.explained(self.commands[number], reason)
        if line is not None:
            self.told.append(line)

    def refuse_all(self, reason: str) -> None:
        """Refuse every command that still stands."""
        for number, _ in self.standing():
            self.errors[number] = reason

    def refuse_transaction(self) -> None:
        """Refuse all commands as one, in git's words; why each failed is told beside them."""
        for number, reason in self.errors.items():
            name = self.commands[number].name.decode("utf-8", "replace")
            self.told.append(f"error: {name}: {reason}")
            self.errors[number] = ATOMIC_LATE
        self.refuse_all(ATOMIC_LATE)

    def results(self) -> tuple[CommandResult, ...]:
        """Return how each command ended."""
        return tuple(
            CommandResult(command, self.errors.get(number))
            for number, command in enumerate(self.commands)
        )
