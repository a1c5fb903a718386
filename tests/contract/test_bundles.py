"""What every store of bundles promises: one suite over those in memory and in files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shardgit import clock
from shardgit.blocks.object_store import open_blocks_bucket
from shardgit.errors import Internal
from shardgit.journal.bucket_bundles import BucketBundles
from shardgit.journal.bundles import BUNDLE_ID_BYTES, Bundles, FileBundles, MemoryBundles

if TYPE_CHECKING:
    from pathlib import Path


KINDS = ["memory", "files", "bucket-memory", "bucket-file"]
ON_S3 = pytest.param("bucket-s3", marks=pytest.mark.cluster)


@pytest.fixture(params=[*KINDS, ON_S3])
def bundles(request: pytest.FixtureRequest, tmp_path: Path) -> Bundles:
    match request.param:
        case "memory":
            return MemoryBundles()
        case "files":
            return FileBundles(tmp_path / "bundles")
        case "bucket-memory":
            url = "memory://"
        case "bucket-file":
            url = str(tmp_path / "bucket")
        case _:
            url = request.getfixturevalue("s3_url")
    return BucketBundles(open_blocks_bucket(url))


def fresh() -> bytes:
    return os.urandom(BUNDLE_ID_BYTES)


def test_what_was_put_is_read_in_pieces(bundles: Bundles) -> None:
    bundle, data = fresh(), bytes(range(256)) * 300
    bundles.put(bundle, data)
    assert bundles.read(bundle, 0, len(data)) == data
    assert bundles.read(bundle, 1_000, 77) == data[1_000:1_077]
    assert bundles.read(bundle, len(data) - 5, 100) == data[-5:]
    assert bundles.read(bundle, len(data) + 5, 100) == b""


def test_a_missing_bundle_is_none(bundles: Bundles) -> None:
    bundles.put(fresh(), b"other")
    assert bundles.read(fresh(), 0, 1) is None


def test_a_put_may_be_sent_again(bundles: Bundles) -> None:
    bundle = fresh()
    bundles.put(bundle, b"same")
    bundles.put(bundle, b"same")
    assert bundles.read(bundle, 0, 4) == b"same"


def test_the_deleted_are_gone_and_the_others_stay(bundles: Bundles) -> None:
    gone, kept = fresh(), fresh()
    bundles.put(gone, b"a")
    bundles.put(kept, b"b")
    bundles.delete([gone, fresh()])
    assert bundles.read(gone, 0, 1) is None
    assert bundles.read(kept, 0, 1) == b"b"


def test_a_scan_meets_each_bundle_once_with_its_time(bundles: Bundles) -> None:
    before = clock.now_ms()
    put = {fresh() for _ in range(20)}
    for bundle in put:
        bundles.put(bundle, b"x")
    seen = list(bundles.scan())
    assert {bundle for bundle, _ in seen} == put
    assert len(seen) == len(put)
    # File systems stamp by a coarser clock than time.time's, some milliseconds behind.
    assert all(before - 1_000 <= at <= clock.now_ms() + 1_000 for _, at in seen)


def test_an_id_of_another_length_is_a_mistake_of_ours(bundles: Bundles) -> None:
    with pytest.raises(Internal):
        bundles.put(b"short", b"")


def test_what_a_put_that_died_left_is_no_bundle(tmp_path: Path) -> None:
    bundles = FileBundles(tmp_path)
    (tmp_path / f"{fresh().hex()}-00000000.part").write_bytes(b"half")
    assert list(bundles.scan()) == []
