"""Many rows of etcd, in pages that are bounded in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.etcdpb import etcd_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.etcd.client import Etcd

PAGE_BYTES = 2 << 20  # what a page should have; rows of a MiB may make it more
PAGE_ROWS, PAGE_ROWS_MAX = 256, 16_384  # the first page's limit, and any page's


def pages(etcd: Etcd, revision: int, low: bytes, high: bytes) -> Iterator[Sequence[pb.KeyValue]]:
    """Return the rows from ``low`` to ``high`` by rising key as they are at a revision; errors as of Etcd.range."""
    limit = PAGE_ROWS
    while True:
        request = pb.RangeRequest(key=low, range_end=high, limit=limit, revision=revision)
        found = etcd.range(request)
        yield found.kvs
        if not found.more:
            return
        low = found.kvs[-1].key + b"\0"
        size = found.ByteSize()
        limit = min(PAGE_ROWS_MAX, max(16, limit * PAGE_BYTES // max(size, PAGE_BYTES // 4)))
