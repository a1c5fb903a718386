"""Grafts: the commits whose parents a repository does not have, so that its history ends there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit.oid import ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardgit.oid import HashKind

_TREE = 5 + 1  # "tree " and the newline behind the id
_PARENT = 7 + 1


@dataclass(frozen=True, slots=True)
class Grafts:
    """A set of commits without parents; ``key`` tells sets apart, b"" is none."""

    ids: frozenset[ObjectId] = field(default=frozenset(), repr=False)
    key: bytes = b""

    @classmethod
    def of(cls, ids: Iterable[ObjectId]) -> Grafts:
        """Return the grafts at commits."""
        found = frozenset(ids)
        return cls(found, blake3(b"".join(sorted(found))).digest()) if found else NO_GRAFTS

    def __bool__(self) -> bool:
        """Whether history ends anywhere but at its roots."""
        return bool(self.ids)


NO_GRAFTS = Grafts()


def parents_in(commit: bytes, kind: HashKind) -> list[ObjectId]:
    """Return the parents that the bytes of a commit name, as the graph counts them: those behind its tree."""
    digits = 2 * kind.size
    at = digits + _TREE
    out = []
    while commit.startswith(b"parent ", at):
        out.append(ObjectId(bytes.fromhex(commit[at + 7 : at + 7 + digits].decode("ascii"))))
        at += digits + _PARENT
    return out
