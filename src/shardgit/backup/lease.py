"""One writer a target: a lock on a file in a folder, a lease in an object store."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.buckets.folder import FolderBucket
from shardgit.errors import Conflict, StoreBusy
from shardgit.processes import born

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardgit.buckets.bucket import Bucket
    from shardgit.buckets.cloud import CloudBucket

LEASE = "lease"
LEASE_S = 600.0
RENEW_S = 60.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes to a target: a process by host, boot, number and start, and when it last said so."""

    host: str
    boot: str
    pid: int
    started: str
    renewed_ms: int

    @property
    def gone(self) -> bool:
        """Whether it is a process of this machine that is no more."""
        me = _me()
        return (self.host, self.boot) == (me.host, me.boot) and _started(self.pid) != self.started


def _me() -> Holder:
    boot = Path("/proc/sys/kernel/random/boot_id")
    text = boot.read_text("ascii").strip() if boot.exists() else ""
    pid = os.getpid()
    return Holder(socket.gethostname(), text, pid, _started(pid), time.time_ns() // 1_000_000)


def _started(pid: int) -> str:
    """Return what tells a process from others that had its number; "" when it is gone."""
    return str(born(pid) or "")


@contextmanager
def writing(bucket: Bucket) -> Iterator[Callable[[], None]]:
    """Keep all other writers off a target; gives what is to be called at least every few minutes.

    Errors: StoreBusy while another one writes; Conflict, at a call, when the lease was lost.
    """
    if isinstance(bucket, FolderBucket):
        with _locked(bucket):
            yield lambda: None
        return
    from shardgit.buckets.cloud import CloudBucket

    assert isinstance(bucket, CloudBucket)
    lease = _Lease(bucket)
    try:
        yield lease.renew
    finally:
        lease.drop()


@contextmanager
def _locked(bucket: FolderBucket) -> Iterator[None]:
    with (bucket.folder / LEASE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise StoreBusy("another process writes backups there", target=bucket.where) from cause
        bucket.sweep()
        yield


class _Lease:
    def __init__(self, bucket: CloudBucket) -> None:
        self._bucket = bucket
        self._data = json.dumps(asdict(_me())).encode()
        self._renewed = time.monotonic()
        if bucket.create(LEASE, self._data):
            return
        found = bucket.get(LEASE)
        if found is None:
            raise StoreBusy("another process has just written backups there", target=bucket.where)
        holder = _holder(found)
        age_s = 0.0 if holder is None else time.time() - holder.renewed_ms / 1000
        if holder is not None and not holder.gone and age_s < LEASE_S:
            raise StoreBusy(
                "another process writes backups there",
                target=bucket.where,
                host=holder.host,
                pid=holder.pid,
                seen_s_ago=int(age_s),
            )
        if not bucket.replace(LEASE, found, self._data):
            raise StoreBusy("another process has just taken the target", target=bucket.where)

    def renew(self) -> None:
        if time.monotonic() - self._renewed < RENEW_S:
            return
        fresh = json.dumps(asdict(_me())).encode()
        late = time.monotonic() - self._renewed > LEASE_S
        if late or not self._bucket.replace(LEASE, self._data, fresh):
            raise Conflict("another process has taken the target", target=self._bucket.where)
        self._data, self._renewed = fresh, time.monotonic()

    def drop(self) -> None:
        if self._bucket.get(LEASE) == self._data:
            self._bucket.delete([LEASE])


def _holder(data: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return None
