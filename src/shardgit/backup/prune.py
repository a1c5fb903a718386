"""Letting old backups go, and what only they need; also what is damaged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from shardgit import clock
from shardgit.backup.cut import cut_name
from shardgit.backup.lease import writing
from shardgit.backup.pack import encode_index
from shardgit.backup.sending import Sender
from shardgit.errors import InvalidArgument
from shardgit.faultpoints import reach
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit.backup.pack import Pack
    from shardgit.backup.target import Target
    from shardgit.operate.operation import Control

WASTE = 0.2  # part of a pack that nobody needs, from which on it is written anew


@dataclass(frozen=True, slots=True)
class BackupsPruned:
    """What a prune took away."""

    target: str
    kept: tuple[str, ...]
    pruned: tuple[str, ...]
    packs_deleted: int
    packs_rewritten: int
    freed_bytes: int


def prune_backups(
    target: Target,
    *,
    keep: int | None = None,
    older_ms: int | None = None,
    waste: float = WASTE,
    control: Control,
) -> BackupsPruned:
    """Delete backups that are not among the newest ``keep`` of their store, and are older than ``older_ms``.

    With one of the two that one decides. The newest backup of a store always stays. Packs that nobody needs go, those
    of which more than ``waste`` is not needed are written anew. Errors: InvalidArgument, StoreBusy, BackupCorrupt.
    """
    if keep is None and older_ms is None:
        raise InvalidArgument("say how many backups to keep, or how old they may grow")
    if (keep is not None and keep < 1) or (older_ms is not None and older_ms < 0):
        raise InvalidArgument("at least one backup is kept", keep=keep)
    with writing(target.bucket) as renew:
        target.load()
        seen: Counter[str] = Counter()
        kept: list[str] = []
        gone: list[str] = []
        limit_ms = clock.now_ms() - (older_ms or 0)
        for name in reversed(target.cut_ids()):
            facts = target.facts(name)
            seen[facts.store] += 1
            rank = seen[facts.store]
            spare = rank > (keep or 1) and (older_ms is None or facts.taken_ms < limit_ms)
            (gone if spare else kept).append(name)
        needed: set[bytes] = set()
        for name in kept:
            needed |= target.cut(name).blobs  # before anything goes: one that is damaged stops it
            renew()
        # commit point: each is a backup until it is deleted; what only it needs goes afterwards.
        reach("prune.before_cuts")
        target.bucket.delete([cut_name(name) for name in gone])
        reach("prune.after_cuts")
        deleted, rewritten, freed = _clear(target, needed, waste, control, renew)
    return BackupsPruned(target.bucket.where, tuple(kept), tuple(gone), deleted, rewritten, freed)


def _clear(
    target: Target,
    needed: set[bytes],
    waste: float,
    control: Control,
    renew: Callable[[], None],
) -> tuple[int, int, int]:
    """Delete packs without needed blobs, rewrite those with few; returns both counts and the bytes that became free."""
    empty: list[Pack] = []
    sparse: list[Pack] = []
    before = sum(pack.size for pack in target.packs.values())
    for pack in target.packs.values():
        total = sum(entry.length for entry in pack.entries)
        live = sum(
            entry.length
            for entry in pack.entries
            if entry.id in needed and target.lies_in(entry.id, pack)
        )
        if not live:
            empty.append(pack)
        elif total - live > waste * total:
            sparse.append(pack)
    rewrite(target, sparse, needed.__contains__, control=control, renew=renew, drop=empty)
    after = sum(pack.size for pack in target.packs.values())
    rewritten = sum(pack.id not in target.packs for pack in sparse)
    return len(empty), rewritten, max(before - after, 0)


def rewrite(
    target: Target,
    packs: Sequence[Pack],
    keep: Callable[[bytes], bool],
    *,
    control: Control,
    renew: Callable[[], None],
    drop: Sequence[Pack] = (),
    drop_damaged: bool = False,
) -> None:
    """Write what is to be kept of some packs into new ones; then delete the old ones and ``drop``.

    A pack of which something that is to be kept is damaged stays; with ``drop_damaged`` only what is whole does.
    Stopped at any point, the target has each blob once or twice.
    """
    if not packs and not drop:
        return
    for pack in (
        drop
    ):  # first: a pack that is written now may be one of them, left by a prune that was killed
        target.forget(pack)
    with Sender(target) as sender:
        for number, pack in enumerate(packs):
            control.report(Progress("rewriting packs", number, len(packs), "objects"))
            data = target.bucket.get(pack.name) or b""
            wanted = [
                (entry, data[at : at + entry.length])
                for entry, at in zip(pack.entries, pack.offsets(), strict=True)
                if keep(entry.id) and target.lies_in(entry.id, pack)
            ]
            # Each by its own id: where the frame is off, blobs may be whole.
            whole = [
                (entry, piece) for entry, piece in wanted if blake3(piece).digest() == entry.id
            ]
            if len(whole) < len(wanted) and not drop_damaged:
                continue  # it stays as it is, for a verification to tell of
            target.forget(pack)
            for entry, piece in whole:
                sender.add(entry.id, piece, entry.kind)
            control.pace(len(data))
            renew()
        sender.flush()
    old = list(target.indexes)
    name, data = encode_index(list(target.packs.values()))
    reach("prune.before_index")
    target.bucket.put(name, data)
    reach("prune.after_index")
    target.bucket.delete([one for one in old if one != name])
    target.indexes[:] = [name]
    target.unindexed.clear()
    # commit point: before it the old packs are there beside the new ones, after it only these.
    reach("prune.before_packs")
    target.bucket.delete([pack.name for pack in (*packs, *drop) if pack.id not in target.packs])
    reach("prune.after_packs")
