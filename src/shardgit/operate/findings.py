"""What a verification finds: kinds, where, whom it concerns, and what to run."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FINDINGS_MAX = 1_000  # kept one by one; what is more is only counted
FINDINGS_MAX_BYTES = 600_000  # of them: they stand in one row of the journal
_FINDING_BYTES = 250  # of a finding's record, its texts left out
REPOSITORIES_MAX = 20  # named in one finding


class FindingKind(enum.StrEnum):
    """What is wrong."""

    FILE = "damaged_file"  # a database that is not there, or that nobody can read
    PAGE = "damaged_page"  # of a database's trees or its free list
    ROW = "damaged_row"  # of the journal
    BLOCK = "damaged_block"  # bytes that do not match their id, or an impossible header
    COPY = "missing_copy"  # a shard lacks a block that another copy of stands
    LOST = "missing_block"  # no whole copy anywhere
    WRONG = "wrong_block"  # another kind or length than what names it says
    STRAY = "stray_block"  # at a shard that the ring does not route it to
    BROKEN = "broken_link"  # a row, or a block that matches its id, that does not parse
    INDEX = "wrong_index"  # an entry that points nowhere or to another object
    OBJECT = "damaged_object"  # a Git object whose bytes give another id, or none
    ATTACK = "collision_attack"  # a Git object that was made to have the SHA-1 of another one


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. Ids are hex; what does not apply is None or empty.

    ``mend`` is the command to run.
    """

    kind: FindingKind
    what: str
    mend: str
    shard: int | None = None
    block: str | None = None
    page: int | None = None
    row: str | None = None
    pool: str | None = None
    object: str | None = None
    repositories: tuple[str, ...] = ()

    @property
    def is_damage(self) -> bool:
        """Whether something is lost or about to be; what else there is heals with a rebalance."""
        return self.kind is not FindingKind.STRAY

    @property
    def line(self) -> str:
        """The finding on one line."""
        where = [
            "journal" if self.shard is None and (self.page is not None or self.row) else None,
            f"shard {self.shard}" if self.shard is not None else None,
            f"page {self.page}" if self.page is not None else None,
            f"block {self.block}" if self.block else None,
            f"row {self.row[:80]}" if self.row else None,
            f"object {self.object}" if self.object else None,
        ]
        text = f"{self.kind}: {', '.join(one for one in where if one)}: {self.what}"
        if self.repositories:
            text += f" (repositories: {', '.join(self.repositories)})"
        return text


def shown_repositories(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that a finding shows: the first, and how many there are more."""
    ordered = sorted(set(names))
    if len(ordered) <= REPOSITORIES_MAX:
        return tuple(ordered)
    return (*ordered[:REPOSITORIES_MAX], f"and {len(ordered) - REPOSITORIES_MAX:,} more")


@dataclass(slots=True)
class Findings:
    """Findings as they come: the first ones, and the counts of all by kind."""

    kept: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _bytes: int = 0

    def add(self, finding: Finding) -> None:
        """Take one."""
        self.counts[finding.kind.value] += 1
        size = _FINDING_BYTES + 4 * len(finding.line) + len(finding.row or "")
        if len(self.kept) < FINDINGS_MAX and self._bytes + size <= FINDINGS_MAX_BYTES:
            self._bytes += size
            self.kept.append(finding)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())


REPAIR = "shardgit shard repair"
REPAIR_FROM = "shardgit shard repair --from BACKUP"
RESTORE = "shardgit backup restore"
REBALANCE = "shardgit shard rebalance"
