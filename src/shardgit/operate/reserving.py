"""Runs of a pool that somebody is writing anew, which a settle therefore leaves alone.

A reservation is a lock and a file beside it that names the runs by their first serials. The lock is the kernel's, so
the reservation of a process that dies ends with it.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from shardgit import clock
from shardgit.errors import Refused
from shardgit.filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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
    lock = FileLock(_path(store, pool))
    for _ in range(TRIES):
        if lock.try_take():
            break
        clock.sleep(PAUSE_S)
    else:
        raise Refused("runs of the pool are written anew already", pool=pool.hex())
    names = lock.path.with_suffix(".json")
    try:
        names.write_text(json.dumps([run.first_serial for run in runs]))
        yield
    finally:
        names.unlink(missing_ok=True)
        lock.release()


def reserved(store: Store, pool: PoolId) -> frozenset[int]:
    """Return the first serials of the runs that are being written anew."""
    lock = FileLock(_path(store, pool))
    if lock.try_take():
        lock.release()
        return frozenset()
    with suppress(FileNotFoundError, ValueError):  # half written: whoever loses begins anew
        return frozenset(json.loads(lock.path.with_suffix(".json").read_text()))
    return frozenset()


def _path(store: Store, pool: PoolId) -> Path:
    return store.scratch / f"rewriting-{pool.hex()[:8]}.lock"
