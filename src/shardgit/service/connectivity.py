"""Connectivity: nothing that dangles, and nothing of a sibling's, becomes reachable by a push."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit._bits import union
from shardgit.graph.closure import bit
from shardgit.oid import hex_of
from shardgit.pool.grafts import Grafts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.oid import ObjectId
    from shardgit.protocol.receive_pack import Command
    from shardgit.service.intake import Intake
    from shardgit.service.verdicts import Verdicts

MISSING = "missing necessary objects"
COMMIT = 1
FAILED_WALKS_MAX = 2_000  # each may visit all that was pushed


class Connectivity:
    """The check of a push's commands over its intake. ``missing`` is what a command is told that fails.

    ``roots`` are commits at which the client's history ends, where the repository's may end there as well.
    """

    def __init__(
        self,
        intake: Intake,
        verdicts: Verdicts,
        meant: dict[int, Command],
        *,
        missing: str = MISSING,
        roots: Sequence[ObjectId] = (),
    ) -> None:
        self.intake = intake
        self.verdicts = verdicts
        self.marks = b""  # what the commands that stand reach beyond what the repository has
        self.dropped = False  # whether new objects were left out, so that the marks number others
        self._meant = meant  # commands by number, as policy sees them
        self._missing = missing
        self._roots = tuple(dict.fromkeys(roots))
        self._known = set(intake.known)

    def check(self) -> None:
        """Refuse the commands whose target does not reach only what the push brings and the repository has."""
        wanted = [(number, c.new) for number, c in self.verdicts.standing() if c.new is not None]
        if not wanted:
            if self.verdicts.commands:
                self.intake.end_at(self.intake.look.state.pool.view.grafts)
                self._drop_unreached(b"")  # it may link to what is not there
            return
        places = self.intake.incoming.positions([new for _, new in wanted])
        tips: list[int] = []
        for (number, new), at in zip(wanted, places, strict=True):
            seen = (
                at >= self.intake.incoming.first
                or at in self._known
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
            good |= self._grafted([tip for tip in tips if tip not in good], good)
            for (number, _), at in zip(wanted, places, strict=True):
                if number not in self.verdicts.errors and at not in good:
                    self.verdicts.refuse(number, self._missing)
            tips = sorted(good)
            marks, _ = self.intake.incoming.reached(tips, self.intake.look.reachable or None)
            self._settle_grafts(marks)
            self._drop_unreached(marks)
        else:
            self._settle_grafts(marks)
            if not self.intake.incoming.complete:
                self._drop_unreached(marks)
        self.marks = marks

    def _drop_unreached(self, marks: bytes) -> None:
        grafts, objects = self.intake.grafts, self.intake.incoming.objects
        self.intake.drop_unreached(marks)
        self.intake.end_at(grafts)
        self.dropped = self.intake.incoming.objects < objects

    # ---- grafts ----

    def _grafted(self, tips: Sequence[int], good: set[int]) -> set[int]:
        """Return the tips that are whole where history ends at more commits, and let it end there.

        First at the repository's own grafts, where these were reopened; then at the client's.
        """
        found = self._at_reopened(tips, good)
        return found | self._at_roots([tip for tip in tips if tip not in found], good | found)

    def _at_reopened(self, tips: Sequence[int], good: set[int]) -> set[int]:
        intake = self.intake
        if not tips or not intake.reopened:
            return set()
        marks = self._marks(good)
        ids = list(intake.reopened)
        places = zip(ids, intake.incoming.positions(ids), strict=True)
        cuts = {oid for oid, at in places if not bit(marks, at)}
        intake.end_at(Grafts.of(intake.grafts.ids | cuts))
        return self._whole_tips(tips)

    def _at_roots(self, tips: Sequence[int], good: set[int]) -> set[int]:
        """Let history end at those of the client's shallow commits that nothing else leads beyond."""
        intake = self.intake
        if not tips or not self._roots:
            return set()
        uncut, grafts = intake.incoming, intake.grafts
        have = union(intake.look.reachable, self._marks(good))
        places = zip(self._roots, uncut.positions(self._roots), strict=True)
        roots = {oid: at for oid, at in places if self._may_end(at) and not bit(have, at)}
        intake.end_at(Grafts.of(grafts.ids | roots.keys()))
        found = self._whole_tips(tips)
        marks = self._marks(found)
        have = union(have, marks)
        used = {
            oid
            for oid, at in roots.items()
            if bit(marks, at)
            and not all(up >= 0 and bit(have, up) for up in uncut.graph.parents_at(at))
        }
        intake.incoming, intake.grafts = uncut, grafts
        limit = intake.store.limits.grafts_max
        if len(grafts.ids | used) > limit:
            self.verdicts.told.append(
                f"error: shallow history ends at too many commits, at most {limit} are kept;"
                " fetch more of it before you push"
            )
            return set()
        intake.end_at(Grafts.of(grafts.ids | used))
        return found

    def _marks(self, tips: set[int]) -> bytes:
        """Return what tips reach beyond what the repository does."""
        return self.intake.incoming.reached(sorted(tips), self.intake.look.reachable or None)[0]

    def _may_end(self, at: int) -> bool:
        """Say whether an object is a commit that the client has pushed, or the repository owns."""
        intake = self.intake
        pushed = at >= intake.incoming.first or at in self._known
        return (
            at >= 0
            and (pushed or intake.look.owns(at))
            and intake.incoming.graph.type_at(at) == COMMIT
        )

    def _settle_grafts(self, marks: bytes) -> None:
        """Keep the repository's reopened grafts unless all their parents are reached now."""
        intake = self.intake
        view = intake.look.view
        if not intake.reopened or view is None:
            return
        parents = view.cut_parents()
        kept = {
            graft
            for graft in intake.reopened
            if not all(
                at >= 0 and (bit(marks, at) or bit(intake.look.reachable, at))
                for at in intake.incoming.positions(parents[graft])
            )
        }
        intake.end_at(Grafts.of((intake.grafts.ids - intake.reopened) | kept))

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
