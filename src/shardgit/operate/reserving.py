"""Runs of a pool that somebody is writing anew, which a settle therefore leaves alone.

A reservation is a turn whose note names the runs by their first serials; that of a process that dies ends with it.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.oid import PoolId
    from shardgit.pool.manifest import RunRecord
    from shardgit.service.store import Store

TRIES = 20  # against settles that only look
PAUSE_S = 0.01


@contextmanager
def reserving(store: Store, pool: PoolId, runs: Sequence[RunRecord]) -> Iterator[None]:
    """Keep settles from merging ``runs`` while they are written anew; the swap must still look at what stands then.

    Errors: Refused when runs of the pool are written anew already.
    """
    names = json.dumps([run.first_serial for run in runs]).encode()
    for _ in range(TRIES):
        turn = store.turns.try_take(_name(pool), note=names)
        if turn is not None:
            break
        clock.sleep(PAUSE_S)
    else:
        raise Refused("runs of the pool are written anew already", pool=pool.hex())
    try:
        yield
    finally:
        turn.release()


def reserved(store: Store, pool: PoolId) -> frozenset[int]:
    """Return the first serials of the runs that are being written anew."""
    names = store.turns.note_of(_name(pool))
    try:
        return frozenset(json.loads(names or b"[]"))
    except ValueError:  # half written: whoever loses begins anew
        return frozenset()


def _name(pool: PoolId) -> str:
    return f"rewriting-{pool.hex()[:8]}"
