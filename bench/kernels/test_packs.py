"""Scan, resolve and ids, beside zlib, hashlib, dulwich and libgit2."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import pytest
from bed import pack_of
from conftest import new_ingest

from shardgit._fastpack import object_ids
from shardgit._packstream import index_offsets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Measure = Callable[[Callable[[], object], int, str], object]

NAMES = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}


def _stream_at(pack: bytes, at: int) -> int:
    """Return where an entry's zlib stream begins."""
    kind = pack[at] >> 4 & 7

    def behind(number: int) -> int:
        while pack[number] & 0x80:
            number += 1
        return number + 1

    at = behind(at)
    return behind(at) if kind == 6 else at + 20 * (kind == 7)


@pytest.mark.benchmark(group="scan a pack")
class TestScan:
    """Find and inflate each entry."""

    def test_shardgit(self, measure: Measure, pack: bytes) -> None:
        def work() -> int:
            got = new_ingest()
            got.scan(pack)
            return got.objects_scanned

        assert measure(work, len(pack), "bytes") == int.from_bytes(pack[8:12], "big")

    def test_zlib_inflate_alone(self, measure: Measure, pack: bytes, repository: Path) -> None:
        """Inflate what an .idx says where it is."""
        offsets = index_offsets(pack_of(repository).with_suffix(".idx").read_bytes(), 1)
        assert offsets is not None
        places = sorted(offsets)
        ends = [*places[1:], len(pack) - 20]
        starts = [_stream_at(pack, at) for at in places]
        streams = [pack[at:end] for at, end in zip(starts, ends, strict=True)]

        def work() -> int:
            return sum(len(zlib.decompress(each)) for each in streams)

        assert measure(work, len(pack), "bytes")

    def test_dulwich(self, measure: Measure, repository: Path) -> None:
        pack_file = pytest.importorskip("dulwich.pack")
        formats = pytest.importorskip("dulwich.object_format")
        path = pack_of(repository)

        def work() -> int:
            with pack_file.PackData(str(path), object_format=formats.DEFAULT_OBJECT_FORMAT) as data:
                return sum(1 for _ in data.iter_unpacked())

        assert measure(work, path.stat().st_size, "bytes")


@pytest.mark.benchmark(group="resolve a pack")
class TestResolve:
    """From a pack to ids of all its objects."""

    def test_shardgit(self, measure: Measure, pack: bytes) -> None:
        def work() -> int:
            got = new_ingest()
            got.scan(pack)
            got.link()
            got.resolve()
            got.finish()
            return got.objects_resolved

        assert measure(work, int.from_bytes(pack[8:12], "big"), "objects")

    def test_libgit2(self, measure: Measure, repository: Path, tmp_path: Path) -> None:
        from peers.index_pack import by_libgit2, libgit2_library

        if libgit2_library() is None:
            pytest.skip("pygit2 is not installed")
        pack = pack_of(repository)
        count = int.from_bytes(pack.read_bytes()[8:12], "big")
        measure(lambda: by_libgit2(pack, tmp_path), count, "objects")

    def test_dulwich(self, measure: Measure, repository: Path, tmp_path: Path) -> None:
        pytest.importorskip("dulwich")
        from peers.index_pack import by_dulwich

        pack = pack_of(repository)
        count = int.from_bytes(pack.read_bytes()[8:12], "big")
        measure(lambda: by_dulwich(pack, tmp_path), count, "objects")


@pytest.mark.benchmark(group="ids of objects")
class TestObjectIds:
    """SHA-1 of many objects."""

    def test_shardgit(self, measure: Measure, objects: tuple[list[int], list[bytes]]) -> None:
        types, data = objects
        measure(lambda: object_ids(1, types, data), sum(map(len, data)), "bytes")

    def test_hashlib(self, measure: Measure, objects: tuple[list[int], list[bytes]]) -> None:
        types, data = objects

        def work() -> list[bytes]:
            return [
                hashlib.sha1(b"%s %d\0" % (NAMES[kind], len(each)) + each).digest()
                for kind, each in zip(types, data, strict=True)
            ]

        assert measure(work, sum(map(len, data)), "bytes") == object_ids(1, types, data)
