"""Nodes of a cluster in one process, as far as blocks go: tiers on folders, peers over gRPC, one bucket."""

from __future__ import annotations

import asyncio
import functools
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from shardgit.blocks.clustered import ClusteredBlocks, ClusterLimits
from shardgit.blocks.nodes import Nodes
from shardgit.blocks.object_store import ObjectBlocks
from shardgit.blocks.tier import Tier
from shardgit.limits import Limits
from shardgit.ring.builder import build
from shardgit.ring.nodes import NodeRing
from shardgit.ring.ring import Ring, RingShard
from shardgit.rpc.peer import make_peer_server
from shardgit.rpc.peers import GrpcPeers
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from pathlib import Path

    import grpc

    from shardgit.buckets.bucket import Bucket, Listed

T = TypeVar("T")
MIB = 1 << 20


class LoopThread:
    """An event loop in a thread of its own: tests call stores from theirs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class CountedBucket:
    """A bucket that counts what it is asked, and does on the way what a test wants."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.where = bucket.where
        self.calls: Counter[str] = Counter()
        self.before: list[threading.Event] = []  # each get waits for them
        self._lock = threading.Lock()

    def _count(self, call: str) -> None:
        with self._lock:
            self.calls[call] += 1

    def put(self, name: str, data: bytes) -> None:
        self._count("put")
        self.bucket.put(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._count("create")
        return self.bucket.create(name, data)

    def get(self, name: str) -> bytes | None:
        self._count("get")
        for event in self.before:
            event.wait(30)
        return self.bucket.get(name)

    def get_range(self, name: str, start: int, end: int) -> bytes | None:
        self._count("get_range")
        return self.bucket.get_range(name, start, end)

    def size(self, name: str) -> int | None:
        self._count("size")
        return self.bucket.size(name)

    def list(self, prefix: str) -> Iterator[Listed]:
        self._count("list")
        return self.bucket.list(prefix)

    def delete(self, names: Sequence[str]) -> None:
        self._count("delete")
        self.bucket.delete(names)


@functools.cache
def ring_of(count: int, replicas: int) -> Ring:
    return build([RingShard(number, number) for number in range(count)], replicas=replicas)


def ring_at(ring: Ring, epoch: int, ports: dict[int, int]) -> NodeRing:
    addresses = {number: f"127.0.0.1:{port}" for number, port in ports.items()}
    return NodeRing(replace(ring, epoch=epoch), addresses)


class Node:
    """One node: what it keeps, and its server for peers."""

    def __init__(
        self,
        number: int,
        folder: Path,
        bucket: Bucket,
        ring: NodeRing,
        *,
        timeout_s: float = 4.0,
        limits: ClusterLimits | None = None,
    ) -> None:
        self.number = number
        self.folder = folder
        self.workers = Workers(4)
        self.nodes = Nodes(number, ring)
        sizes = {"owned_bytes": 256 * MIB, "foreign_bytes": 128 * MIB}
        self.tier = Tier([folder / "tier"], **sizes)
        self.blocks = ClusteredBlocks(
            ObjectBlocks(bucket, self.workers),
            self.tier,
            GrpcPeers(self.nodes, timeout_s=timeout_s),
            self.nodes,
            self.workers,
            locks=folder / "locks",
            limits=limits,
        )
        self.server: grpc.aio.Server | None = None
        self.port = 0

    async def serve(self, address: str = "127.0.0.1:0") -> None:
        self.server, self.port = await make_peer_server(self.blocks, Limits(), address)
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    def close(self) -> None:
        self.workers.close()
        self.blocks.close()


class Cluster:
    """Some nodes over one bucket."""

    def __init__(
        self,
        folder: Path,
        bucket: Bucket,
        *,
        count: int = 3,
        replicas: int = 1,
        timeout_s: float = 4.0,
        limits: ClusterLimits | None = None,
    ) -> None:
        self.ring = ring_of(count, replicas)
        self.loop = LoopThread()
        first = ring_at(self.ring, 1, dict.fromkeys(range(count), 1))
        self.nodes = [
            Node(n, folder / f"n{n}", bucket, first, timeout_s=timeout_s, limits=limits)
            for n in range(count)
        ]
        for node in self.nodes:
            self.loop.run(node.serve())
        self.spread(2)

    def node_ring(self, epoch: int) -> NodeRing:
        return ring_at(self.ring, epoch, {node.number: node.port for node in self.nodes})

    def spread(self, epoch: int) -> None:
        """Tell all nodes of a ring."""
        for node in self.nodes:
            node.nodes.take(self.node_ring(epoch))

    def close(self) -> None:
        for node in self.nodes:
            self.loop.run(node.stop())
        for node in self.nodes:
            node.close()
        self.loop.close()


def take_away(folder: Path) -> None:
    """Remove a folder that others go on writing into: at once, and not file by file."""
    gone = folder.with_name(f"{folder.name}-{time.monotonic_ns()}")
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
