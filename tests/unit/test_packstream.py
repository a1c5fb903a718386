"""The pack-end kernel on packs of C git, cut everywhere, and on packs made to be wrong."""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.gits import git, make_history
from reference.packs import OFS_DELTA, REF_DELTA, PackMaker, delta, entry_header, object_id

from shardgit._layout import Ingest
from shardgit._packstream import PackStream
from shardgit.errors import LimitExceeded, MalformedPack

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = {"size_max": 1 << 32, "objects_max": 1 << 20}


def stream(kind: int = 1) -> PackStream:
    return PackStream(kind, **LIMITS)


def fed(pieces: list[bytes], kind: int = 1) -> tuple[PackStream, int]:
    """Feed pieces until the pack ends; return the stream and how many bytes it took."""
    pack = stream(kind)
    taken = 0
    for piece in pieces:
        took = pack.feed(piece)
        taken += took
        if took < len(piece):
            break
    return pack, taken


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def starts(pack: bytes, kind: int, folder: Path) -> list[int]:
    """Return where git's index says that entries start."""
    path = folder / f"judge-{hashlib.sha1(pack).hexdigest()[:8]}.pack"
    path.write_bytes(pack)
    algorithm = f"--object-format={'sha256' if kind == 2 else 'sha1'}"
    git(folder, "index-pack", algorithm, path.name)
    rows = git(
        folder, "show-index", algorithm, stdin=path.with_suffix(".idx").read_bytes()
    ).splitlines()
    return sorted(int(row.split()[0]) for row in rows)


@pytest.fixture(scope="module", params=[1, 2], ids=["sha1", "sha256"])
def packs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, dict[str, bytes], Path]:
    """One history as packs of every flavour that git writes."""
    kind: int = request.param
    folder = tmp_path_factory.mktemp("packs")
    work = make_history(folder / "work", algorithm="sha256" if kind == 2 else "sha1")
    (work / "big").write_bytes(
        b"".join(hashlib.sha256(struct.pack("<I", n)).digest() for n in range(40_000))
    )
    (work / "flat").write_bytes(bytes(3 << 20))
    git(work, "add", "-A")
    git(work, "commit", "-qm", "large things")
    made = {}
    for name, flags in (
        ("ofs", ["--delta-base-offset"]),
        ("ref", []),
        ("whole", ["--depth=0", "--window=0"]),
        ("stored", ["--compression=0"]),
    ):
        words = ["pack-objects", "--stdout", "--revs", "--all", "-q", *flags]
        made[name] = git(work, *words, stdin=b"")
    made["thin"] = git(
        work, "pack-objects", "--stdout", "--revs", "--thin", "-q", stdin=b"HEAD\n^HEAD~3\n"
    )
    made["empty"] = git(work, "pack-objects", "--stdout", "-q", stdin=b"")
    return kind, made, folder


def test_entries_and_end_are_where_gits_index_has_them(
    packs: tuple[int, dict[str, bytes], Path],
) -> None:
    kind, made, folder = packs
    for name, data in made.items():
        for size in (len(data) + 9, 65_536, 4_096, 997):
            pack, taken = fed(cut(data + b"0009 next", size), kind)
            assert pack.finished, name
            assert taken == pack.bytes == len(data)
            assert pack.objects == pack.begun == len(pack.offsets)
            if name != "thin":
                assert list(pack.offsets) == starts(data, kind, folder)


def test_byte_by_byte_is_the_same(packs: tuple[int, dict[str, bytes], Path]) -> None:
    kind, made, _ = packs
    for name in ("thin", "empty"):
        whole, _ = fed([made[name]], kind)
        pack, taken = fed(cut(made[name], 1), kind)
        assert pack.finished
        assert taken == len(made[name])
        assert pack.offsets == whole.offsets


def test_ingest_takes_the_offsets(packs: tuple[int, dict[str, bytes], Path]) -> None:
    kind, made, _ = packs
    for name in ("ofs", "ref", "whole"):
        pack, _ = fed(cut(made[name], 10_000), kind)
        ingest = Ingest(
            kind,
            size_max=1 << 32,
            memory_max=1 << 24,
            cache_max=1 << 26,
            objects_max=1 << 20,
            depth_max=4095,
        )
        ingest.scan(made[name], pack.offsets)
        ingest.resolve()
        ingest.finish()
        assert ingest.objects_resolved == pack.objects


def test_raw_bytes_are_what_the_entries_inflate_to() -> None:
    maker = PackMaker()
    for size in (0, 1, 15, 16, 5_000, 300_000):
        maker.add(3, bytes(size))
    pack, _ = fed([maker.pack()])
    assert pack.raw_bytes == 305_032


SMALL = PackMaker()
_BASE = b"some text that is long enough to copy from\n" * 40
_AT = SMALL.add(3, _BASE)
SMALL.ofs(_AT, delta(_BASE, _BASE[:900] + b"middle" + _BASE[900:]))
SMALL.ref(object_id(3, _BASE), delta(_BASE, _BASE + b"end"))
SMALL.add(3, b"")
SMALL.add(2, b"", level=0)
SMALL.add(3, bytes(400_000))
SMALL.add(3, b"".join(hashlib.sha256(bytes([n])).digest() for n in range(200)), level=0)
SMALL_PACK = SMALL.pack()


@given(
    at=st.lists(st.integers(0, len(SMALL_PACK) + 20), max_size=12),
    tail=st.binary(max_size=40),
)
@settings(deadline=None, max_examples=300)
def test_any_cut_gives_the_same_and_leaves_the_tail(at: list[int], tail: bytes) -> None:
    data = SMALL_PACK + tail
    edges = [0, *sorted(min(n, len(data)) for n in at), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole, _ = fed([SMALL_PACK])
    pack, taken = fed(pieces)
    assert taken == len(SMALL_PACK)
    assert pack.finished
    assert pack.offsets == whole.offsets
    assert pack.feed(b"more") == 0


@given(
    at=st.integers(0, len(SMALL_PACK) - 1),
    change=st.integers(1, 255),
    size=st.integers(1, len(SMALL_PACK)),
)
@settings(deadline=None, max_examples=300)
def test_a_changed_byte_is_always_found(at: int, change: int, size: int) -> None:
    data = bytearray(SMALL_PACK)
    data[at] ^= change
    pack = stream()
    with pytest.raises((MalformedPack, LimitExceeded)) as first:
        for piece in cut(bytes(data), size):
            pack.feed(piece)
        pack.finish()
    if "cut short" not in str(first.value):
        with pytest.raises(type(first.value), match=first.value.message):
            pack.feed(b"more")
        with pytest.raises(type(first.value), match=first.value.message):
            pack.finish()
    assert not pack.finished


@given(end=st.integers(0, len(SMALL_PACK) - 1), size=st.integers(1, len(SMALL_PACK)))
@settings(deadline=None, max_examples=100)
def test_a_cut_pack_is_never_finished(end: int, size: int) -> None:
    pack, taken = fed(cut(SMALL_PACK[:end], size))
    assert taken == end
    assert not pack.finished
    with pytest.raises(MalformedPack, match="cut short"):
        pack.finish()


def with_entry(entry: bytes) -> bytes:
    data = b"PACK" + struct.pack(">II", 2, 1) + entry
    return data + hashlib.sha1(data).digest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PUCK" + struct.pack(">II", 2, 0), "not a pack"),
        (b"PACK" + struct.pack(">II", 4, 0), "unknown pack version"),
        (with_entry(b"\x00" + zlib.compress(b"")), "unknown entry type"),
        (with_entry(b"\x50" + zlib.compress(b"")), "unknown entry type"),
        (with_entry(b"\xb0" + b"\xff" * 12), "past 64 bits"),
        (with_entry(entry_header(OFS_DELTA, 9) + b"\xff" * 12), "past 64 bits"),
        (with_entry(entry_header(OFS_DELTA, 9) + b"\x0c" + zlib.compress(bytes(9))), "before"),
        (with_entry(entry_header(OFS_DELTA, 9) + b"\x00" + zlib.compress(bytes(9))), "before"),
        (with_entry(entry_header(3, 5) + b"not a zlib stream"), "not a valid zlib stream"),
        (with_entry(entry_header(3, 5) + zlib.compress(bytes(6))), "another size"),
        (with_entry(entry_header(3, 7) + zlib.compress(bytes(6))), "another size"),
        (with_entry(entry_header(3, 0) + zlib.compress(bytes(1))), "another size"),
        (with_entry(entry_header(3, 300_000) + zlib.compress(bytes(300_001))), "another size"),
        (with_entry(entry_header(3, 300_001) + zlib.compress(bytes(300_000))), "another size"),
        (with_entry(entry_header(3, 6) + zlib.compress(bytes(6))[:-1] + b"\xff"), "zlib"),
        (SMALL_PACK[:-1] + bytes([SMALL_PACK[-1] ^ 1]), "checksum"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    for size in (1, 7, len(data)):
        with pytest.raises(MalformedPack, match=message):
            fed(cut(data, size))


def test_bounds_are_checked_before_the_bytes_come() -> None:
    with pytest.raises(LimitExceeded, match="too many objects"):
        PackStream(1, size_max=1, objects_max=7).feed(b"PACK" + struct.pack(">II", 2, 8))
    head = b"PACK" + struct.pack(">II", 2, 8)
    with pytest.raises(LimitExceeded, match="over a size limit"):
        PackStream(1, size_max=100, objects_max=8).feed(head + entry_header(3, 101))
    pack = PackStream(1, size_max=100, objects_max=8, raw_max=150)
    with pytest.raises(LimitExceeded, match="more than allowed"):
        pack.feed(head + (entry_header(3, 100) + zlib.compress(bytes(100))) * 2)
    ref = PackStream(1, size_max=1 << 62, objects_max=8, raw_max=1 << 63)
    assert ref.feed(head + entry_header(REF_DELTA, 1 << 62) + bytes(5)) == 12 + 10 + 5
