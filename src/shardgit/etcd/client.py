"""Calls of etcd over several members, each with a deadline; a transaction is sent once and never again."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from shardgit import clock
from shardgit.errors import OutcomeUnknown, ShardgitError, Unavailable
from shardgit.etcd.failure import failure_of, is_stale_token, passes
from shardgit.etcd.watching import Watching
from shardgit.etcdpb import etcd_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.etcd.access import Access

ATTEMPT_S = (
    1.0  # of a read at one member: an election takes 0.8 to 2.6 s, a stopped member never answers
)
PAUSE_S = 0.05  # between the rounds over all members
READ_S, TXN_S = 5.0, 5.0
_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),  # we ask in pages; a page may hold rows of 1 MiB
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),  # etcd hangs up on those who ping more than each 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call:
    path: str
    request: type[Any]
    response: type[Any]

    def on(self, channel: grpc.Channel) -> Callable[..., Any]:
        return channel.unary_unary(  # type: ignore[no-any-return]
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )

    def stream_on(self, channel: grpc.Channel) -> Callable[..., Any]:
        return channel.stream_stream(  # type: ignore[no-any-return]
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )


_RANGE = _Call("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
_TXN = _Call("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
_COMPACT = _Call("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse)
_WATCH = _Call("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
_GRANT = _Call("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
_REVOKE = _Call("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
_KEEP = _Call(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)
_AUTHENTICATE = _Call(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse
)
_STATUS = _Call("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)


class Member:
    """A channel to one member, opened when it is first used."""

    def __init__(self, access: Access, target: str) -> None:
        self.target = target
        self._access = access
        self._channel: grpc.Channel | None = None
        self._calls: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.token = ""

    def call(self, call: _Call, *, stream: bool = False) -> Any:
        """Return the function that makes a call."""
        made = self._calls.get(call.path)
        if made is None:
            with self._lock:
                if self._channel is None:
                    self._channel = self._access.open(self.target, _OPTIONS)
                made = call.stream_on(self._channel) if stream else call.on(self._channel)
                self._calls[call.path] = made
        return made

    def close(self) -> None:
        """Hang up; calls that wait end with OutcomeUnknown."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()


class Etcd:
    """One etcd cluster. Usable from many threads.

    Reads go from member to member until one answers or their time is up; all else is tried at one member, once, but for
    a token that has run out before the call was looked at.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._members = [Member(access, target) for target in access.targets()]
        self._at = 0
        self._closed = False

    def member(self) -> Member:
        """Return the member that is asked first."""
        if self._closed:
            raise Unavailable("etcd client is closed")
        return self._members[self._at]

    def turn(self, away: Member) -> None:
        """Ask another member from now on, when ``away`` is asked first."""
        if self._members[self._at] is away:
            self._at = (self._at + 1) % len(self._members)

    def range(self, request: pb.RangeRequest, *, timeout_s: float = READ_S) -> pb.RangeResponse:
        """Read rows; Unavailable when no member answers in time, HistoryGone behind a compaction."""
        response: pb.RangeResponse = self._read(_RANGE, request, timeout_s)
        return response

    def read_txn(self, request: pb.TxnRequest, *, timeout_s: float = READ_S) -> pb.TxnResponse:
        """Read by a transaction that changes nothing, whatever it finds; errors as of range."""
        response: pb.TxnResponse = self._read(_TXN, request, timeout_s)
        return response

    def txn(self, request: pb.TxnRequest, *, timeout_s: float = TXN_S) -> pb.TxnResponse:
        """Send a transaction, once; failure_of says what its errors mean."""
        response: pb.TxnResponse = self._once(_TXN, request, timeout_s)
        return response

    def txn_soon(
        self,
        request: pb.TxnRequest,
        answer: Callable[[pb.TxnResponse | ShardgitError], None],
        *,
        timeout_s: float = TXN_S,
    ) -> None:
        """Send a transaction, once: ``answer`` hears, on another thread, what came of it.

        It must be quick and raise nothing. Errors before the call: Unavailable, PermissionRefused; nothing was sent.
        """
        member = self.member()
        self._soon(member, _TXN, request, answer, self._metadata(member, timeout_s), timeout_s)

    def range_soon(
        self,
        request: pb.RangeRequest,
        answer: Callable[[pb.RangeResponse | ShardgitError], None],
        *,
        timeout_s: float = ATTEMPT_S,
    ) -> None:
        """Read rows at the member that is asked first, once; ``answer`` and errors as of txn_soon.

        Never waits: Unavailable when a token has to be fetched first.
        """
        member = self.member()
        token = member.token
        if self._access.user and not token:
            raise Unavailable("etcd wants a token first")
        metadata = (("token", token),) if token else ()
        self._soon(member, _RANGE, request, answer, metadata, timeout_s)

    def _soon(
        self,
        member: Member,
        call: _Call,
        request: object,
        answer: Callable[[Any], None],
        metadata: tuple[tuple[str, str], ...],
        timeout_s: float,
    ) -> None:
        under_way = member.call(call).future(request, timeout=timeout_s, metadata=metadata)

        def done(ended: Any) -> None:
            try:
                outcome: Any = ended.result()
            except grpc.RpcError as error:
                outcome = self._failed(member, error, call)
            except grpc.FutureCancelledError:
                outcome = OutcomeUnknown("etcd client was closed")
            answer(outcome)

        under_way.add_done_callback(done)

    def compact(self, revision: int) -> None:
        """Drop the history before ``revision``; HistoryGone when that was done already."""
        self._once(_COMPACT, pb.CompactionRequest(revision=revision), TXN_S)

    def lease_grant(self, ttl_s: int, *, timeout_s: float = TXN_S) -> int:
        """Make a lease; returns its id."""
        return int(self._once(_GRANT, pb.LeaseGrantRequest(TTL=ttl_s), timeout_s).ID)

    def lease_revoke(self, lease: int, *, timeout_s: float = TXN_S) -> None:
        """End a lease: the keys under it go."""
        self._once(_REVOKE, pb.LeaseRevokeRequest(ID=lease), timeout_s)

    def lease_keep_alive(self, lease: int, *, timeout_s: float = READ_S) -> int:
        """Let a lease begin anew; returns the seconds that it has, 0 when it has ended."""

        def once(member: Member, left_s: float) -> int:
            call = member.call(_KEEP, stream=True)(
                iter([pb.LeaseKeepAliveRequest(ID=lease)]),
                timeout=left_s,
                metadata=self._metadata(member, left_s),
            )
            for response in call:
                call.cancel()
                return int(response.TTL)
            raise Unavailable("etcd ended the stream of a lease")

        return self._everywhere(once, _KEEP, timeout_s)

    def status(self, target: str, *, timeout_s: float = ATTEMPT_S) -> pb.StatusResponse:
        """Return how one member is."""
        member = next(one for one in self._members if one.target == target)
        try:
            response: pb.StatusResponse = member.call(_STATUS)(
                pb.StatusRequest(), timeout=timeout_s, metadata=self._metadata(member, timeout_s)
            )
        except grpc.RpcError as error:
            raise self._failed(member, error, _STATUS) from error
        return response

    def watch(self, low: bytes, high: bytes, revision: int) -> Watching:
        """Begin to watch low <= key < high from ``revision`` on, at the member that is asked first."""
        member = self.member()
        metadata = (*self._metadata(member, READ_S), ("hasleader", "true"))
        call = member.call(_WATCH, stream=True)
        request = pb.WatchCreateRequest(
            key=low, range_end=high, start_revision=revision, fragment=True
        )
        return Watching(lambda requests: call(requests, metadata=metadata), request, member)

    def close(self) -> None:
        """Hang up; every later call is Unavailable."""
        self._closed = True
        for member in self._members:
            member.close()

    def _once(self, call: _Call, request: object, timeout_s: float) -> Any:
        member = self.member()
        try:
            return member.call(call)(
                request, timeout=timeout_s, metadata=self._metadata(member, timeout_s)
            )
        except grpc.RpcError as error:
            raise self._failed(member, error, call) from error

    def _read(self, call: _Call, request: object, timeout_s: float) -> Any:
        def once(member: Member, left_s: float) -> Any:
            metadata = self._metadata(member, left_s)
            return member.call(call)(request, timeout=left_s, metadata=metadata)

        return self._everywhere(once, call, timeout_s)

    def _everywhere(self, once: Callable[[Member, float], T], call: _Call, timeout_s: float) -> T:
        """Ask member after member until one answers."""
        end = clock.monotonic() + timeout_s
        tries = 0
        while True:
            member = self.member()
            left = end - clock.monotonic()
            try:
                return once(member, max(0.001, min(left, ATTEMPT_S)))
            except grpc.RpcError as error:
                failure = self._failed(member, error, call)
                again = passes(error) or (is_stale_token(error) and bool(self._access.user))
            except Unavailable as error:
                failure, again = error, True
                self.turn(member)
            tries += 1
            pause = PAUSE_S if tries % len(self._members) == 0 else 0
            if not again or self._closed or clock.monotonic() + pause >= end:
                raise failure
            clock.sleep(pause)

    def _failed(self, member: Member, error: grpc.RpcError, call: _Call) -> ShardgitError:
        """Return the error of a call, and ask another member next where that may help."""
        if is_stale_token(error):
            member.token = ""
        elif passes(error):
            self.turn(member)
        return failure_of(error, call.path.rpartition("/")[2], member.target)

    def _metadata(self, member: Member, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """Return what goes along with a call of a member: its token, fetched when there is none."""
        if not self._access.user:
            return ()
        if not member.token:
            request = pb.AuthenticateRequest(name=self._access.user, password=self._access.password)
            try:
                answer = member.call(_AUTHENTICATE)(request, timeout=timeout_s)
            except grpc.RpcError as error:
                failure = self._failed(member, error, _AUTHENTICATE)
                if isinstance(failure, Unavailable):  # the call itself was not sent
                    failure = Unavailable("etcd gave no token", **failure.facts)
                raise failure from error
            member.token = answer.token
        return (("token", member.token),)
