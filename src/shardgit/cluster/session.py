"""The session of a process: a row under a lease of etcd's, there as long as the process is heard of."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import clock, telemetry
from shardgit.cluster.records import SESSION_BYTES, SessionRecord, session_key
from shardgit.errors import ShardgitError, Unavailable
from shardgit.etcdpb import etcd_pb2 as pb
from shardgit.journal.etcd_rows import encode_value
from shardgit.journal.interface import Compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.etcd.client import Etcd
    from shardgit.journal.etcd_rows import EtcdKeys

LEASE_S = 6
KEEPS = 3  # tries to be heard of in the time of a lease
MARGIN_S = 0.5  # that we call it ended before etcd does


@dataclass(frozen=True, slots=True)
class Heard:
    """A session that etcd knows of: its id, the revision of its row, and until when that is sure."""

    id: bytes
    revision: int
    lease: int
    until_s: float  # by clock.monotonic


class Session:
    """This process's session. It is begun anew, under another id, when etcd has not heard of us for too long.

    Whoever holds something by a session's id has lost it with that session. Usable from any thread.
    """

    def __init__(self, etcd: Etcd, keys: EtcdKeys, node: int, *, lease_s: int = LEASE_S) -> None:
        self._etcd = etcd
        self._keys = keys
        self._record = SessionRecord(node, os.getpid(), clock.now_ms())
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._kept: Callable[[Heard], None] | None = None
        self._heard: Heard | None = self._begin()
        self._last = self._heard
        self._keeper = threading.Thread(target=self._keep, name="cluster-session", daemon=True)
        self._keeper.start()

    def now(self) -> Heard:
        """Return the session; Unavailable while etcd has not heard of this process for too long."""
        heard = self._heard
        if heard is None or clock.monotonic() >= heard.until_s:
            raise Unavailable("this node has no session with etcd")
        return heard

    def fences(self) -> tuple[Compare, ...]:
        """Return what fails a commit once nobody waits for what this process does now.

        Without a session that is the last one, which will not come back.
        """
        last = self._last
        return (Compare(session_key(last.id), last.revision),)

    def is_alive(self, session: bytes) -> bool:
        """Say whether a session of this process is the one that it has, for sure."""
        heard = self._heard
        return heard is not None and heard.id == session and clock.monotonic() < heard.until_s

    def _begin(self) -> Heard:
        begun = clock.monotonic()
        lease = self._etcd.lease_grant(self._lease_s)
        session = os.urandom(SESSION_BYTES)
        revision = self._put(session_key(session), self._record.encode(), lease)
        return Heard(session, revision, lease, begun + self._lease_s - MARGIN_S)

    def _put(self, key: bytes, value: bytes, lease: int) -> int:
        """Put a row that goes with the session; returns its revision."""
        row = pb.PutRequest(key=self._keys.row(key), value=encode_value(key, value), lease=lease)
        # The head as well, as every commit does: who asks for what is new sees it.
        operations = [
            pb.RequestOp(request_put=pb.PutRequest(key=self._keys.head)),
            pb.RequestOp(request_put=row),
        ]
        made = self._etcd.txn(pb.TxnRequest(success=operations))
        return int(made.header.revision)

    def tell(self, heard: Heard, key: bytes, value: bytes) -> None:
        """Put a row that goes with a session of ours. Errors: Unavailable."""
        self._put(key, value, heard.lease)

    def _keep(self) -> None:
        while not self._closed.wait(self._lease_s / KEEPS):
            try:
                self._keep_once()
            except ShardgitError as error:
                telemetry.log().warning("session_not_kept", error=str(error), code=error.code)
            except Exception as error:  # this thread must not end: with it the session would
                telemetry.log().error("session_not_kept", exc_info=error)
            heard = self._heard
            if self._kept is not None and heard is not None:
                try:
                    self._kept(heard)
                except ShardgitError as error:
                    telemetry.log().warning("gc_not_answered", error=str(error), code=error.code)
                except Exception as error:  # as above
                    telemetry.log().error("gc_not_answered", exc_info=error)

    def _keep_once(self) -> None:
        heard = self._heard
        begun = clock.monotonic()
        if heard is not None:
            left = self._etcd.lease_keep_alive(heard.lease, timeout_s=self._lease_s / KEEPS)
            if left:
                until = begun + self._lease_s - MARGIN_S
                self._heard = Heard(heard.id, heard.revision, heard.lease, until)
                return
            telemetry.log().error("session_lost", node=self._record.node)
        self._heard = None
        self._heard = self._last = self._begin()

    def at_keep(self, job: Callable[[Heard], None]) -> None:
        """Have a job done whenever the session was kept, on its thread; errors of it are logged."""
        self._kept = job

    def close(self) -> None:
        """End the session, in etcd too when it answers."""
        self._closed.set()
        self._keeper.join()
        with self._lock:
            heard, self._heard = self._heard, None
        if heard is not None:
            try:
                self._etcd.lease_revoke(heard.lease, timeout_s=1.0)
            except ShardgitError:
                return  # it ends by itself
