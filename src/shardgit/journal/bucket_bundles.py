"""Bundles as objects of a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.journal.bundles import BUNDLE_ID_BYTES, check_bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shardgit.buckets.bucket import Bucket

PREFIX = "bundles"


class BucketBundles:
    """See Bundles. One object a bundle, ``bundles/`` and its id in hex."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def put(self, bundle: bytes, data: bytes) -> None:
        """See Bundles."""
        self._bucket.put(_name(bundle), data)

    def read(self, bundle: bytes, offset: int, length: int) -> bytes | None:
        """See Bundles."""
        if length == 0:  # no range has no bytes; and one that is asked for is there or DataLoss
            return None if self._bucket.size(_name(bundle)) is None else b""
        return self._bucket.get_range(_name(bundle), offset, offset + length)

    def delete(self, bundles: Iterable[bytes]) -> None:
        """See Bundles."""
        names = [_name(bundle) for bundle in bundles]
        if names:
            self._bucket.delete(names)

    def scan(self) -> Iterator[tuple[bytes, int]]:
        """See Bundles."""
        for one in self._bucket.list(PREFIX):
            try:
                bundle = bytes.fromhex(one.name.removeprefix(PREFIX + "/"))
            except ValueError:
                continue
            if len(bundle) == BUNDLE_ID_BYTES and _name(bundle) == one.name:
                yield bundle, one.written_ms


def _name(bundle: bytes) -> str:
    check_bundle(bundle)
    return f"{PREFIX}/{bundle.hex()}"
