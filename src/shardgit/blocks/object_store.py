"""Blocks as objects of a bucket: in S3, Google Cloud Storage, Azure, a folder, or memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from shardgit import metrics, telemetry
from shardgit.blocks.block import HEADER_SIZE, first_header, partition_of, verify_block
from shardgit.blocks.on_workers import OnWorkers
from shardgit.buckets.bucket import check_cloud, folder_of
from shardgit.buckets.folder import FolderBucket
from shardgit.buckets.memory import MemoryBucket
from shardgit.buckets.patient import PatientBucket
from shardgit.errors import BlockCorrupt, ShardgitError
from shardgit.oid import BlockId
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardgit.blocks.block import BlockHeader
    from shardgit.buckets.bucket import Bucket

S = TypeVar("S")
T = TypeVar("T")
PREFIX = "blocks"
REQUESTS_MAX = 32  # side by side, of one process
LISTS_MAX = 4  # side by side; each holds the names of 1/256 of all blocks, about 150 bytes a name


def open_blocks_bucket(url: str) -> Bucket:
    """Return the bucket of a store's blocks: s3://, gs://, az://, file://, a path, or memory://.

    A folder is made. Errors: InvalidArgument for another kind of URL.
    """
    if url == "memory://":
        return MemoryBucket()
    folder = folder_of(url)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return FolderBucket(folder)
    check_cloud(url, "blocks lie in a folder, file://, s3://, gs://, az:// or memory://")
    from shardgit.buckets.cloud import CloudBucket, Patience

    # Two tries that hang are 4 s. A block of 8 MiB in 30 s is 0.27 MiB/s, beside 31 others.
    quick = Patience(timeout_s=2.0, retry_s=2.0, retries=6, pause_max_s=0.5)
    slow = Patience(timeout_s=30.0, retry_s=4.0, retries=6, pause_max_s=1.0)
    return PatientBucket(CloudBucket(url, patience=quick), CloudBucket(url, patience=slow))


def name_of(block: BlockId) -> str:
    """Return the name of a block's object."""
    text = block.hex()
    return f"{PREFIX}/{text[:2]}/{text}"


class ObjectBlocks(OnWorkers):
    """See BlockStore. One object a block; a batch's requests go side by side.

    Of a batch that fails a part may be there: nothing names these blocks yet, and putting them again is safe. What
    is read is checked against its id each time; bytes that do not match are read once more before they are
    BlockCorrupt. Nothing rests on lists but ``scan``, which finds orphans.

    Errors beside those of BlockStore: Unavailable while the store is away or in error; see PatientBucket.
    """

    in_place = False

    def __init__(
        self, bucket: Bucket, workers: Workers, *, requests_max: int = REQUESTS_MAX
    ) -> None:
        self.bucket = bucket
        self.workers = workers
        # Threads of their own: a batch runs on a worker and waits, and a pool that waits for itself stands still.
        self._requests = Workers(requests_max)

    def get_many_sync(self, ids: Sequence[BlockId]) -> list[bytes | None]:
        """See BlockStore."""
        found = self._side_by_side(self.read_sync, list(dict.fromkeys(ids)))
        by_id = dict(zip(dict.fromkeys(ids), found, strict=True))
        return [by_id[block] for block in ids]

    def read_sync(self, block: BlockId) -> bytes | None:
        """Return a block, checked, None when it is missing. One request, in the thread that asks."""
        data: bytes | None = None
        for is_last in (False, True):
            data = self._counted("get", lambda: self.bucket.get(name_of(block)))
            if data is None:
                return None
            try:
                verify_block(block, data)
            except BlockCorrupt:
                telemetry.log().warning("object_corrupt", block=block.hex(), bytes=len(data))
                if is_last:
                    raise
            else:
                metrics.OBJECT_STORE_BYTES.labels("get").inc(len(data))
                break
        return data

    def check_many(self, ids: Sequence[BlockId]) -> list[int | BlockCorrupt | None]:
        """Read blocks and hash them, side by side; returns each length, what is wrong, or None for a missing one.

        Errors: Unavailable.
        """

        def check(block: BlockId) -> int | BlockCorrupt | None:
            try:
                data = self.read_sync(block)
            except BlockCorrupt as error:
                return error
            return None if data is None else len(data)

        return self._side_by_side(check, ids)

    def put_many_sync(self, blocks: Sequence[tuple[BlockId, bytes]]) -> None:
        """See BlockStore."""
        for block, data in blocks:
            verify_block(block, data)
        self._side_by_side(self._put, list(dict(blocks).items()))

    def _put(self, item: tuple[BlockId, bytes]) -> None:
        block, data = item
        self._counted("put", lambda: self.bucket.put(name_of(block), data))
        metrics.OBJECT_STORE_BYTES.labels("put").inc(len(data))

    def has_many_sync(self, ids: Sequence[BlockId]) -> list[bool]:
        """See BlockStore."""

        def has(block: BlockId) -> bool:
            return self._counted("head", lambda: self.bucket.size(name_of(block))) is not None

        return self._side_by_side(has, ids)

    def headers(self, ids: Sequence[BlockId]) -> list[BlockHeader | None]:
        """Return the headers of blocks by their first bytes, not checked against ids; None for missing or damaged."""

        def header(block: BlockId) -> BlockHeader | None:
            name = name_of(block)
            data = self._counted("get", lambda: self.bucket.get_range(name, 0, HEADER_SIZE))
            try:
                return first_header(data) if data is not None else None
            except BlockCorrupt:
                return None

        return self._side_by_side(header, ids)

    def delete_many_sync(self, ids: Sequence[BlockId]) -> None:
        """See BlockStore."""
        names = [name_of(block) for block in dict.fromkeys(ids)]
        if names:
            self._counted("delete", lambda: self.bucket.delete(names))

    def use(self, block: BlockId, job: Callable[[memoryview], T]) -> T | None:
        """See BlockStore. The job runs over a fetched copy."""
        data = self.read_sync(block)
        if data is None:
            return None
        with memoryview(data) as view:
            return job(view)

    def scan_sync(self, low: int = 0, high: int = 65_536) -> Iterator[tuple[BlockId, int]]:
        """See BlockStore. A list for each 1/256 of the ids, LISTS_MAX of them held at once."""
        firsts = range(low >> 8, (high + 255) >> 8)
        for at in range(0, len(firsts), LISTS_MAX):
            for rows in self._side_by_side(self._listed, firsts[at : at + LISTS_MAX]):
                for block, size in rows:
                    if low <= partition_of(block) < high:
                        yield block, size

    def _listed(self, first: int) -> list[tuple[BlockId, int]]:
        """Return the blocks whose ids begin with that byte, sorted; names that are no block's are passed over."""
        rows = []
        for one in self._counted("list", lambda: list(self.bucket.list(f"{PREFIX}/{first:02x}"))):
            try:
                block = BlockId(bytes.fromhex(one.name.rpartition("/")[2]))
            except ValueError:
                continue
            if len(block) == 32 and name_of(block) == one.name:
                rows.append((block, one.size))
        return sorted(rows)

    def _side_by_side(self, job: Callable[[S], T], items: Sequence[S]) -> list[T]:
        if len(items) == 1:
            return [job(items[0])]
        return self._requests.map(job, items)

    def _counted(self, operation: str, call: Callable[[], T]) -> T:
        begun, outcome = time.monotonic(), "failed"
        try:
            result = call()
            outcome = "ok"
        except ShardgitError as error:
            outcome = error.code.lower()
            raise
        finally:
            metrics.OBJECT_STORE_REQUESTS.labels(operation, outcome).inc()
            metrics.OBJECT_STORE_SECONDS.labels(operation).observe(time.monotonic() - begun)
        return result

    def begin_threads(self) -> None:
        """Begin the threads, at the priority of the one that calls."""
        self._requests.begin()

    def close(self) -> None:
        """End the threads; no call may be under way."""
        self._requests.close()
