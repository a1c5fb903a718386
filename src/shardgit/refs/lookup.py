"""What a plan asks of the refs as they are: looked up one by one, or all at once where many change."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from shardgit.refs.change import HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from shardgit.refs.ref import Ref
    from shardgit.refs.update import RefUpdate

    Get = Callable[[bytes], Ref | None]
    List = Callable[[bytes], Iterator[Ref]]
    Firsts = Callable[[Sequence[tuple[bytes, bytes]]], list[Ref | None]]
    """Returns the first ref of each range, by rising and disjoint ranges."""

FEW = 16  # updates; to look these up one by one is quicker than to prepare


class Lookup:
    """Refs by name, folders of refs, and the first ref below a name."""

    def __init__(self, *, get: Get, below: List) -> None:
        self._get = get
        self._list = below
        self._known: dict[bytes, Ref | None] = {}
        self._below: dict[bytes, Ref | None] = {}

    def prepare(self, updates: Sequence[RefUpdate], firsts: Firsts) -> None:
        """Look up at once all that is going to be asked for these updates."""
        if len(updates) <= FEW:
            return
        names = sorted({update.name for update in updates} - {HEAD})
        self._fetch(names, firsts)
        # Only what is new can meet a folder of its name, or have a ref as its folder.
        fresh = sorted({u.name for u in updates if u.stands and self._known.get(u.name) is None})
        fresh = [name for name in fresh if name != HEAD]
        self._fetch(sorted({*_folders_of(fresh)} - self._known.keys()), firsts)
        fresh.sort(key=lambda name: name + b"/")
        ranges = [(name + b"/", name + b"0") for name in fresh]
        apart = all(a[1] <= b[0] for a, b in pairwise(ranges))
        if apart:  # else two of them meet, which their own check tells
            self._below = dict(zip(fresh, firsts(ranges), strict=True))

    def _fetch(self, names: Sequence[bytes], firsts: Firsts) -> None:
        found = firsts([(name, name + b"\0") for name in names])
        self._known.update(zip(names, found, strict=True))

    def get(self, name: bytes) -> Ref | None:
        """Return one ref, None when it is missing."""
        return self._known[name] if name in self._known else self._get(name)

    def below(self, folder: bytes, gone: AbstractSet[bytes]) -> bytes | None:
        """Return the name of a ref below ``folder``, which ends in "/", that is not in ``gone``."""
        name = folder[:-1]
        if name in self._below:
            first = self._below[name]
            if first is None or first.name not in gone:
                return None if first is None else first.name
        return next((ref.name for ref in self._list(folder) if ref.name not in gone), None)


def _folders_of(names: Iterable[bytes]) -> Iterator[bytes]:
    seen: set[bytes] = set()
    for name in names:
        at = name
        while (end := at.rfind(b"/")) > len(b"refs"):
            at = at[:end]
            if at in seen:
                break
            seen.add(at)
            yield at
