"""Bases that lie in other segments than their deltas: cut into shares, so that few of them are held at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import DataLoss
from shardgit.oid import ObjectId

if TYPE_CHECKING:
    from collections.abc import Collection

    from shardgit.pool.view import PoolView

SHARE_BYTES = 16 << 20  # of bases that are held at once for one reader, or a single larger one


def located(view: PoolView, ids: Collection[bytes]) -> dict[bytes, int]:
    """Return the positions of bases. Errors: DataLoss where the pool lacks one."""
    found = dict(zip(ids, view.positions([ObjectId(oid) for oid in ids]), strict=True))
    for oid, position in found.items():
        if position < 0:
            raise DataLoss("delta base is not in the pool", oid=oid.hex())
    return found


def shares(view: PoolView, ids: Collection[bytes]) -> list[dict[bytes, int]]:
    """Return the positions of bases, in shares of at most SHARE_BYTES, or of one. Errors: as ``located``."""
    places = located(view, ids)
    out: list[dict[bytes, int]] = [{}]
    held = 0
    for (oid, position), info in zip(places.items(), view.info([*places.values()]), strict=True):
        held += info.size
        if held > SHARE_BYTES and out[-1]:
            out.append({})
            held = info.size
        out[-1][oid] = position
    return out
