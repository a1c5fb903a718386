"""Connectivity: nothing that dangles, and nothing of a sibling's, becomes reachable by a push."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.oid import hex_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.protocol.receive_pack import Command
    from shardgit.service.intake import Intake
    from shardgit.service.verdicts import Verdicts

MISSING = "missing necessary objects"
COMMIT = 1
FAILED_WALKS_MAX = 2_000  # each may visit all that was pushed


class Connectivity:
    """The check of a push's commands over its intake. ``missing`` is what a command is told that fails."""

    def __init__(
        self,
        intake: Intake,
        verdicts: Verdicts,
        meant: dict[int, Command],
        *,
        missing: str = MISSING,
    ) -> None:
        self.intake = intake
        self.verdicts = verdicts
        self._meant = meant  # commands by number, as policy sees them
        self._missing = missing

    def check(self) -> None:
        """Refuse the commands whose target does not reach only what the push brings and the repository has."""
        wanted = [(number, c.new) for number, c in self.verdicts.standing() if c.new is not None]
        if not wanted:
            if self.verdicts.commands:
                self.intake.drop_unreached(b"")  # it may link to what is not there
            return
        places = self.intake.incoming.positions([new for _, new in wanted])
        tips: list[int] = []
        mine = set(self.intake.known)
        for (number, new), at in zip(wanted, places, strict=True):
            seen = (
                at >= self.intake.incoming.first
                or at in mine
                or (at >= 0 and self.intake.look.owns(at))
            )
            if not seen:
                self.verdicts.refuse(number, self._missing)
                self.verdicts.told.append(
                    f"error: {hex_of(new)} is neither pushed nor in the repository"
                )
            elif self._is_bad_branch(number, at):
                self.verdicts.refuse(number, "invalid new value provided")
                name = self.verdicts.commands[number].name.decode("utf-8", "replace")
                self.verdicts.told.append(
                    f"error: cannot update ref '{name}': trying to write non-commit object"
                    f" {hex_of(new)} to branch '{name}'"
                )
            else:
                tips.append(at)
        marks, whole = self.intake.incoming.reached(
            tips, self.intake.look.reachable if self.intake.look.view else None
        )
        if not whole or self._strays(marks):
            good = self._whole_tips(tips)
            for (number, _), at in zip(wanted, places, strict=True):
                if number not in self.verdicts.errors and at not in good:
                    self.verdicts.refuse(number, self._missing)
            tips = sorted(good)
            marks, _ = self.intake.incoming.reached(tips, self.intake.look.reachable or None)
            self.intake.drop_unreached(marks)
        elif not self.intake.incoming.complete:
            self.intake.drop_unreached(marks)

    def _whole_tips(self, tips: Sequence[int]) -> set[int]:
        """Return the tips that reach only what is there, found by halves: a million refs may have one that does not.

        Where very many do not, those that are left are not looked at, and count as such.
        """
        good: set[int] = set()
        seen = int.from_bytes(self.intake.look.reachable, "little")
        size = (self.intake.incoming.first + self.intake.incoming.objects + 7) // 8
        left = [sorted(set(tips))]
        failed = 0
        while left and failed < FAILED_WALKS_MAX:
            some = left.pop()
            marks, whole = self.intake.incoming.reached(some, seen.to_bytes(size, "little"))
            if whole and not self._strays(marks):
                good.update(some)
                seen |= int.from_bytes(marks, "little")
                continue
            failed += 1
            if len(some) > 1:
                left += [some[len(some) // 2 :], some[: len(some) // 2]]
        return good

    def _is_bad_branch(self, number: int, position: int) -> bool:
        meant = self._meant.get(number, self.verdicts.commands[number])
        return (
            meant.name.startswith(b"refs/heads/")
            and self.intake.incoming.graph.type_at(position) != COMMIT
        )

    def _strays(self, marks: bytes) -> bool:
        """Say whether marks hold an object of the pool that the repository neither owns nor has pushed."""
        size = self.intake.incoming.first
        pool = int.from_bytes(marks[: (size + 7) // 8], "little") & ((1 << size) - 1)
        if not pool:
            return False
        mine = bytearray(self.intake.look.uploaded.bits().ljust((size + 7) // 8, b"\0"))
        for at in self.intake.known:
            mine[at >> 3] |= 1 << (at & 7)
        return bool(pool & ~int.from_bytes(mine, "little"))
