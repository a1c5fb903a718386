"""Runs of a pool that somebody is writing anew, which a settle therefore leaves alone.

A reservation is a locked file that names the runs by their first serials. The lock is the kernel's, so the reservation
of a process that dies ends with it.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardgit.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.oid import PoolId
    from shardgit.pool.manifest import RunRecord
    from shardgit.service.store import Store


@contextmanager
def reserving(store: Store, pool: PoolId, runs: Sequence[RunRecord]) -> Iterator[None]:
    """Keep settles from merging ``runs`` while they are written anew; the swap must still look at what stands then.

    Errors: Refused when runs of the pool are written anew already.
    """
    with _path(store, pool).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("runs of the pool are written anew already", pool=pool.hex()) from None
        file.truncate(0)
        file.write(json.dumps([run.first_serial for run in runs]))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def reserved(store: Store, pool: PoolId) -> frozenset[int]:
    """Return the first serials of the runs that are being written anew."""
    try:
        with _path(store, pool).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return frozenset(json.loads(file.read() or "[]"))
    except (FileNotFoundError, ValueError):  # half written: it has only begun
        pass
    return frozenset()


def _path(store: Store, pool: PoolId) -> Path:
    return store.scratch / f"rewriting-{pool.hex()[:8]}.lock"
