"""Calls to the PeerService of other nodes, from threads."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from threading import Condition, Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from shardgit import telemetry
from shardgit.aio.failure import error_of
from shardgit.errors import (
    InvalidArgument,
    RingStale,
    ShardgitError,
    Unavailable,
)
from shardgit.ring.nodes import NodeRing
from shardgit.rpc.peer import IDS_MAX, RECEIVE_MAX_BYTES, WIDE_FRAMES, Joining, ids_of, in_messages
from shardgit.v1 import peer_pb2, peer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.blocks.nodes import Nodes
    from shardgit.oid import BlockId

# The first answer of a node that must fill a block from the object store takes longest. Who waits in vain goes on to
# the object store, so pushes and clones stall no longer than this, and then not again while the node is avoided.
TIMEOUT_S = 4.0
SLOWEST_BYTES_PER_S = 1 << 20
BLOCK_BYTES = 1 << 20  # as a block is counted whose size is not known


class Credentials(Protocol):
    """What calls show, and a number that changes with it."""

    @property
    def generation(self) -> int:
        """The number as of now."""

    def now(self) -> tuple[int, grpc.ChannelCredentials]:
        """Return the number and the credentials as of now."""


class GrpcPeers:
    """See Peers. One channel a node; a node's address is looked up in the newest ring at each call.

    Calls under way when the credentials change go on with those they began with.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        timeout_s: float = TIMEOUT_S,
        credentials: Credentials | None = None,
    ) -> None:
        self._nodes = nodes
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._generation = 0  # of the credentials that channels were opened with
        self._shown: grpc.ChannelCredentials | None = None
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = Lock()
        self._closed = False
        self._watch = _Watch(timeout_s)

    def get(
        self, node: int, ids: Sequence[BlockId], *, only_here: bool
    ) -> Iterator[tuple[BlockId, bytes | None]]:
        """See Peers. It is ended when the node sends nothing for ``timeout_s``."""
        stub = self._stub(node)
        header = peer_pb2.GetBlocksRequest.Header(ring_epoch=self._nodes.epoch, only_here=only_here)
        requests = [peer_pb2.GetBlocksRequest(header=header)]
        for at in range(0, len(ids), IDS_MAX):
            flat = b"".join(ids[at : at + IDS_MAX])
            requests.append(
                peer_pb2.GetBlocksRequest(data=peer_pb2.GetBlocksRequest.Data(ids=flat))
            )
        joining, asked = Joining(), iter(ids)
        with self._typed(node):
            call = stub.GetBlocks(
                iter(requests),
                timeout=self._deadline(len(ids) * BLOCK_BYTES),
                metadata=telemetry.carry(),
            )
            try:
                for answer in self._watch.answers(call):
                    for block, data in joining.take(ids_of(answer.ids), answer.sizes, answer.data):
                        if block != next(asked, None):
                            raise InvalidArgument("node gave what it was not asked for")
                        yield block, data
                joining.end()
            finally:
                call.cancel()
        if next(asked, None) is not None:
            raise Unavailable("node did not give all that it was asked for", node=node)

    def has(self, node: int, ids: Sequence[BlockId]) -> list[bool]:
        """See Peers."""
        stub = self._stub(node)
        found: list[bool] = []
        for at in range(0, len(ids), IDS_MAX):
            flat = b"".join(ids[at : at + IDS_MAX])
            request = peer_pb2.HasBlocksRequest(ring_epoch=self._nodes.epoch, ids=flat)
            with self._typed(node):
                here = stub.HasBlocks(
                    request, timeout=self._timeout_s, metadata=telemetry.carry()
                ).here
            found += [byte == 1 for byte in here]
        if len(found) != len(ids):
            raise Unavailable("node did not tell all that it was asked", node=node)
        return found

    def warm(self, node: int, blocks: Sequence[tuple[BlockId, bytes]]) -> int:
        """See Peers."""
        stub = self._stub(node)
        header = peer_pb2.PutBlocksRequest.Header(ring_epoch=self._nodes.epoch)
        size = sum(len(data) for _, data in blocks)

        def requests() -> Iterator[peer_pb2.PutBlocksRequest]:
            yield peer_pb2.PutBlocksRequest(header=header)
            for at in range(0, len(blocks), IDS_MAX):
                some = blocks[at : at + IDS_MAX]
                columns = in_messages([block for block, _ in some], [data for _, data in some])
                for ids, sizes, data in columns:
                    part = peer_pb2.PutBlocksRequest.Data(ids=ids, sizes=sizes, data=data)
                    yield peer_pb2.PutBlocksRequest(data=part)

        with self._typed(node):
            return int(stub.PutBlocks(requests(), timeout=self._deadline(size)).taken)

    def drop(self, node: int, ids: Sequence[BlockId]) -> None:
        """See Peers."""
        stub = self._stub(node)
        for at in range(0, len(ids), IDS_MAX):
            flat = b"".join(ids[at : at + IDS_MAX])
            request = peer_pb2.DropBlocksRequest(ring_epoch=self._nodes.epoch, ids=flat)
            with self._typed(node):
                stub.DropBlocks(request, timeout=self._timeout_s)

    def take_ring(self, node: int) -> None:
        """Ask a node for its ring, and go by it if it is newer. Errors: Unavailable, JournalCorrupt."""
        try:
            found = self._stub(node).GetRing(peer_pb2.GetRingRequest(), timeout=self._timeout_s)
        except grpc.RpcError as cause:
            raise _unavailable(node, error_of(cause)) from cause
        self._nodes.take(NodeRing.decode(found.ring))

    def _deadline(self, size: int) -> float:
        return self._timeout_s + size / SLOWEST_BYTES_PER_S

    def _stub(self, node: int) -> peer_pb2_grpc.PeerServiceStub:
        address = self._nodes.ring.addresses.get(node)
        if address is None:
            raise Unavailable("node has left the ring", node=node)
        with self._lock:
            if self._closed:
                raise Unavailable("calls to peers have ended", node=node)
            if self._credentials is not None and self._credentials.generation != self._generation:
                self._channels.clear()  # calls hold what they need of theirs
                self._generation, self._shown = self._credentials.now()
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = self._open(address)
        return peer_pb2_grpc.PeerServiceStub(channel)  # type: ignore[no-untyped-call]

    def _open(self, address: str) -> grpc.Channel:
        options = [
            ("grpc.max_receive_message_length", RECEIVE_MAX_BYTES),
            ("grpc.keepalive_time_ms", 10_000),
            *WIDE_FRAMES,
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.enable_http_proxy", 0),
        ]
        if self._shown is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, self._shown, options)

    @contextmanager
    def _typed(self, node: int) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as cause:
            error = error_of(cause)
            if isinstance(error, RingStale):
                self.take_ring(node)
                raise error from cause
            raise _unavailable(node, error) from cause
        except InvalidArgument as cause:  # of Joining: not what a node of ours sends
            raise Unavailable("node answers nonsense", node=node, cause=str(cause)) from cause

    def close(self) -> None:
        """See Peers."""
        with self._lock:
            self._closed = True
            channels, self._channels = list(self._channels.values()), {}
        self._watch.close()
        for channel in channels:
            channel.close()


class _Watch:
    """Ends calls whose next answer does not come in time: gRPC itself bounds only a call as a whole."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._waiting: dict[Any, float] = {}  # calls, and until when
        self._changed = Condition()
        self._thread: Thread | None = None
        self._sleeps = False  # until a call comes; else until the first is late, and those behind it are later still
        self._closed = False

    def answers(self, call: Any) -> Iterator[Any]:
        """Return a call's answers; one that is late ends the call with CANCELLED."""
        while True:
            with self._changed:
                if self._thread is None and not self._closed:
                    self._thread = Thread(target=self._run, name="shardgit-peers", daemon=True)
                    self._thread.start()
                self._waiting[call] = time.monotonic() + self._most_s
                if self._sleeps:
                    self._changed.notify()
            try:
                answer = next(call, None)
            finally:
                with self._changed:
                    del self._waiting[call]
            if answer is None:
                return
            yield answer

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                late = [call for call, until in self._waiting.items() if until <= now]
                for call in late:
                    self._waiting[call] = math.inf
                    call.cancel()
                next_s = min(self._waiting.values(), default=math.inf) - now
                self._sleeps = next_s == math.inf
                self._changed.wait(None if self._sleeps else next_s)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()


def _unavailable(node: int, error: ShardgitError) -> Unavailable:
    """Return what a caller does about a node's failure, whatever that was: it goes elsewhere."""
    return Unavailable("node failed", node=node, code=error.code, cause=str(error)[:300])
