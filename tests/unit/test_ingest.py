"""The ingest kernel on packs of C git and on packs made to be wrong."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import threading
import zlib
from typing import TYPE_CHECKING

import pytest
from reference.packs import (
    PackMaker,
    copy,
    delta,
    distance,
    entry_header,
    insert,
    object_id,
    varint,
)

from shardgit._layout import Ingest
from shardgit.errors import InvalidArgument, LimitExceeded, MalformedObject, MalformedPack

if TYPE_CHECKING:
    from pathlib import Path


def ingest(
    pack: bytes,
    *,
    kind: int = 1,
    threads: int = 2,
    depth: int = 4095,
    size: int = 1 << 32,
    memory: int = 1 << 24,
    cache: int = 1 << 26,
) -> Ingest:
    got = Ingest(
        kind,
        size_max=size,
        memory_max=memory,
        cache_max=cache,
        objects_max=1 << 20,
        depth_max=depth,
        detect=True,
    )
    got.scan(pack)
    got.link()
    workers = [threading.Thread(target=got.resolve) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    got.finish()
    return got


def ids_of(got: Ingest) -> set[bytes]:
    return {got.id_at(i) for i in range(got.objects_scanned)}


def git(folder: Path, *words: str, stdin: bytes = b"") -> bytes:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {
            f"GIT_{role}_NAME": "A",
            f"GIT_{role}_EMAIL": "a@b.c",
            f"GIT_{role}_DATE": "1700000000 +0000",
        }
    return subprocess.run(
        ["git", *words], cwd=folder, input=stdin, capture_output=True, check=True, env=environment
    ).stdout


@pytest.fixture(scope="module", params=["sha1", "sha256"])
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("history")
    git(folder, "init", "-q", "-b", "main", f"--object-format={request.param}")
    (folder / "sub").mkdir()
    for number in range(60):
        (folder / "sub" / f"f{number % 7}").write_text(
            "\n".join(f"line {i * number}" for i in range(200))
        )
        (folder / "long").write_text(
            "\n".join(f"row {i if i % 50 else number}" for i in range(2000))
        )
        (folder / f"new{number}").write_text(str(number))
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"commit {number}")
    git(folder, "tag", "-am", "a tag", "v1")
    git(folder, "repack", "-adfq", "--depth=20")
    return folder, request.param


def all_objects(folder: Path) -> dict[bytes, tuple[str, int]]:
    lines = git(folder, "cat-file", "--batch-all-objects", "--batch-check").decode().split("\n")
    return {
        bytes.fromhex(line.split()[0]): (line.split()[1], int(line.split()[2]))
        for line in lines
        if line
    }


def test_ids_types_sizes_and_bytes_are_gits(history: tuple[Path, str]) -> None:
    folder, algorithm = history
    (path,) = (folder / ".git/objects/pack").glob("*.pack")
    got = ingest(path.read_bytes(), kind=1 if algorithm == "sha1" else 2)
    want = all_objects(folder)
    assert ids_of(got) == set(want)
    names = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
    flat = got.sorted_ids()
    size = 20 if algorithm == "sha1" else 32
    for rank, oid in enumerate(sorted(want)):
        assert flat[rank * size : (rank + 1) * size] == oid
        kind, length = got.facts_at(rank)
        assert (names[kind], length) == want[oid]
        assert object_id(kind, got.read(got.find(oid)), algorithm) == oid


def test_a_cache_of_one_byte_gives_the_same_ids(history: tuple[Path, str]) -> None:
    folder, algorithm = history
    (path,) = (folder / ".git/objects/pack").glob("*.pack")
    got = ingest(path.read_bytes(), kind=1 if algorithm == "sha1" else 2, cache=1)
    assert ids_of(got) == set(all_objects(folder))


def laid_out(pack: bytes, kind: int, **spill: int) -> list[bytes]:
    """Return all that an ingest of a pack on one thread gives: ids, index, graph, segments."""
    got = Ingest(
        kind,
        size_max=1 << 32,
        memory_max=1 << 24,
        cache_max=1 << 26,
        objects_max=1 << 31,
        depth_max=4095,
        **spill,
    )
    got.scan(pack)
    got.link()
    got.resolve()
    got.finish()
    segments = got.layout(target=1 << 16, most=1 << 18, count_most=100)
    assert got.externals() == []
    graph = got.graph()
    assert got.graph() == graph
    return [
        got.sorted_ids(),
        *got.index(),
        graph,
        *(got.segment(number, bytes(64)) for number in range(segments)),
    ]


def test_large_arrays_in_a_file_change_nothing(history: tuple[Path, str], tmp_path: Path) -> None:
    folder, algorithm = history
    (path,) = (folder / ".git/objects/pack").glob("*.pack")
    pack, kind = path.read_bytes(), 1 if algorithm == "sha1" else 2
    want = laid_out(pack, kind)
    with (tmp_path / "spill").open("w+b") as spill:
        assert laid_out(pack, kind, spill=spill.fileno(), spill_bytes=4096) == want
        assert os.fstat(spill.fileno()).st_size > 100 * len(want[0]) // 20
        # Nothing of it is kept on the disk, but for the last page that a file system may round to.
        assert os.fstat(spill.fileno()).st_blocks <= 16
    with path.open("rb") as closed:  # no room can be made in a file that is only read
        assert laid_out(pack, kind, spill=closed.fileno(), spill_bytes=4096) == want
    assert laid_out(pack, kind, spill_bytes=4096) == want


def test_an_ingest_keeps_no_file_open(history: tuple[Path, str], tmp_path: Path) -> None:
    folder, algorithm = history
    (path,) = (folder / ".git/objects/pack").glob("*.pack")
    before = len(os.listdir("/proc/self/fd"))
    with (tmp_path / "spill").open("w+b") as spill:
        laid_out(path.read_bytes(), 1 if algorithm == "sha1" else 2, spill=spill.fileno())
    assert len(os.listdir("/proc/self/fd")) == before


def test_segments_are_packs_that_git_accepts(history: tuple[Path, str], tmp_path: Path) -> None:
    folder, algorithm = history
    size = 20 if algorithm == "sha1" else 32
    (path,) = (folder / ".git/objects/pack").glob("*.pack")
    got = ingest(path.read_bytes(), kind=1 if algorithm == "sha1" else 2)
    count = got.layout(target=4096, most=1 << 20, count_most=65535)
    assert count > 4
    seen: set[bytes] = set()
    body = b""
    for number in range(count):
        block = got.segment(number, bytes(64))
        objects, length, entry_bytes, _, hops, alone = got.segment_facts(number)
        assert len(block) == length
        assert not alone
        assert hops == 0
        entries_end, n = struct.unpack_from("<II", block, len(block) - 48)
        assert (n, entries_end - 64) == (objects, entry_bytes)
        footer_ids = [
            block[entries_end + i * size : entries_end + (i + 1) * size] for i in range(n)
        ]
        width = block[-48 + 23] >> 3
        assert block[-48 + 23] & 7 == 3
        sizes_at = entries_end + n * (size + 3)
        sizes = [
            int.from_bytes(block[sizes_at + i * width : sizes_at + (i + 1) * width], "little")
            for i in range(n)
        ]
        assert sizes == [got.size_at(got.find(oid)) for oid in footer_ids]
        seen.update(footer_ids)
        body += block[64:entries_end]
    assert seen == set(all_objects(folder))
    pack = b"PACK" + struct.pack(">II", 2, len(seen)) + body
    git(tmp_path, "init", "-q", "--bare", f"--object-format={algorithm}", "out.git")
    git(
        tmp_path / "out.git",
        "index-pack",
        "--stdin",
        "--strict",
        stdin=pack + hashlib.new(algorithm, pack).digest(),
    )
    assert set(all_objects(tmp_path / "out.git")) == seen


def test_a_family_larger_than_a_block_is_cut_into_ref_deltas(tmp_path: Path) -> None:
    maker = PackMaker()
    text = os.urandom(3000)
    at = maker.add(3, text)
    for _ in range(40):
        longer = text + os.urandom(900)
        at = maker.ofs(at, delta(text, longer))
        text = longer
    got = ingest(maker.pack())
    count = got.layout(target=8192, most=16384, count_most=65535)
    blocks = [got.segment(number, bytes(64)) for number in range(count)]
    assert count > 2
    assert all(len(block) <= 16384 for block in blocks)
    assert got.segment_facts(count - 1)[4] >= 1
    body = b"".join(
        block[64 : struct.unpack_from("<I", block, len(block) - 48)[0]] for block in blocks
    )
    pack = b"PACK" + struct.pack(">II", 2, 41) + body
    git(tmp_path, "init", "-q", "--bare", "out.git")
    git(
        tmp_path / "out.git",
        "index-pack",
        "--stdin",
        "--strict",
        stdin=pack + hashlib.sha1(pack).digest(),
    )
    assert set(all_objects(tmp_path / "out.git")) == ids_of(got)


def test_an_entry_larger_than_a_block_stands_alone_in_parts() -> None:
    maker = PackMaker()
    big = os.urandom(50_000)
    at = maker.add(3, big)
    maker.ofs(at, delta(big, big + b"more"))
    maker.ofs(at, varint(50_000) + varint(50_000) + insert(os.urandom(50_000)))
    got = ingest(maker.pack())
    count = got.layout(target=8192, most=16384, count_most=65535)
    alone = [n for n in range(count) if got.segment_facts(n)[5]]
    assert len(alone) == 2  # the delta of 50,000 bytes is written whole
    entry = got.alone_entry(alone[0], 0, 1 << 30)
    pieces = b"".join(got.alone_entry(alone[0], at, 1000) for at in range(0, len(entry), 1000))
    assert pieces == entry
    assert entry.startswith(entry_header(3, 50_000))
    assert zlib.decompress(entry[len(entry_header(3, 50_000)) :]) == big
    block = got.segment(alone[0], bytes(64), bytes(96))
    assert len(block) == got.segment_facts(alone[0])[1] + 96


def test_ref_deltas_in_any_order_and_nested_resolve() -> None:
    texts = [b"base" * 100 + b"%d" % i for i in range(30)]
    maker = PackMaker()
    for i in range(29, 0, -1):
        maker.ref(object_id(3, texts[i - 1]), delta(texts[i - 1], texts[i]))
    maker.add(3, texts[0])
    assert ids_of(ingest(maker.pack())) == {object_id(3, text) for text in texts}


def test_a_chain_of_the_deepest_allowed_depth_resolves_and_one_more_does_not() -> None:
    def chain(depth: int) -> bytes:
        maker = PackMaker()
        text = b"x" * 50
        at = maker.add(3, text)
        body = bytearray(maker.body)
        for i in range(depth):
            new = text[:40] + b"%010d" % i
            entry_at = 12 + len(body)
            data = varint(50) + varint(50) + copy(0, 40) + insert(b"%010d" % i)
            body += entry_header(6, len(data)) + distance(entry_at - at) + zlib.compress(data, 1)
            at, text = entry_at, new
        maker.body = bytes(body)
        maker.count = depth + 1
        return maker.pack()

    assert ingest(chain(4095)).objects_scanned == 4096
    with pytest.raises(MalformedPack, match="too deep"):
        ingest(chain(4096))
    with pytest.raises(MalformedPack, match="too deep"):
        ingest(chain(100_000))


def test_what_a_delta_makes_has_a_bound_of_its_own() -> None:
    """It is made in memory, where a whole object is streamed."""

    def made(delta_max: int) -> Ingest:
        maker = PackMaker()
        at = maker.add(3, bytes(5_000))
        maker.ofs(at, varint(5_000) + varint(10_000) + copy(0, 5_000) * 2)
        got = Ingest(
            1,
            size_max=1 << 20,
            memory_max=1 << 20,
            cache_max=1 << 20,
            objects_max=10,
            depth_max=10,
            delta_max=delta_max,
        )
        got.scan(maker.pack())
        got.resolve()
        got.finish()
        return got

    assert made(10_000).objects_scanned == 2
    with pytest.raises(LimitExceeded):
        made(9_999)


def test_two_packs_with_the_same_objects_keep_one_of_each() -> None:
    a, b = b"a" * 500 + b"1", b"a" * 500 + b"2"
    one, two = PackMaker(), PackMaker()
    one.ofs(one.add(3, a), delta(a, b))
    two.ofs(two.add(3, b), delta(b, a))
    got = Ingest(
        1, size_max=1 << 30, memory_max=1 << 24, cache_max=1 << 26, objects_max=1000, depth_max=10
    )
    packs = [one.pack(), two.pack()]
    for pack in packs:
        got.scan(pack)
    got.resolve()
    got.finish()
    assert got.layout(target=4096, most=8192, count_most=100) == 1
    assert got.objects_kept == 2
    got.segment(0, bytes(64))


def test_a_blob_of_two_gib_of_zeros_is_hashed_without_being_held() -> None:
    deflate = zlib.compressobj(1)
    body = b"".join(deflate.compress(bytes(1 << 24)) for _ in range(128)) + deflate.flush()
    maker = PackMaker()
    maker.body = entry_header(3, 1 << 31) + body
    maker.count = 1
    got = ingest(maker.pack(), threads=1)
    digest = hashlib.sha1(b"blob %d\0" % (1 << 31))
    for _ in range(128):
        digest.update(bytes(1 << 24))
    assert got.id_at(0) == digest.digest()


def empty() -> PackMaker:
    maker = PackMaker()
    maker.add(3, b"hello")
    return maker


def bad_packs() -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    good = empty().pack()
    out["empty"] = b""
    out["no magic"] = b"KCAP" + good[4:]
    out["version 4"] = empty().pack(version=4)
    out["truncated"] = good[:-25]
    out["truncated in the trailer"] = good[:-3]
    out["trailing bytes"] = empty().pack(extra=b"x")
    out["trailing bytes behind the trailer"] = good + b"x"
    out["wrong trailer"] = good[:-1] + bytes([good[-1] ^ 1])
    out["count too high"] = empty().pack(count=2)
    out["count too low"] = empty().pack(count=0)
    out["count of four billion"] = empty().pack(count=0xFFFFFFFF)
    for kind in (0, 5):
        maker = empty()
        maker.add(kind, b"x")
        out[f"type {kind}"] = maker.pack()
    for name, back in {"self": 0, "past the start": 1000, "into an entry": 3}.items():
        maker = empty()
        maker.add(6, delta(b"hello", b"hello2"), before=distance(back))
        out[f"ofs {name}"] = maker.pack()
    for name, size in {
        "too small": 3,
        "too large": 9,
        "of two gib": 1 << 31,
        "past 64 bits": 0,
    }.items():
        maker = PackMaker()
        maker.add(3, b"hello", size=size)
        if name == "past 64 bits":
            maker.body = b"\xb5" + b"\xff" * 9 + b"\x7f" + maker.body[1:]
        out[f"size {name}"] = maker.pack()
    maker = PackMaker()
    a, b = b"a" * 100, b"b" * 100
    maker.ref(object_id(3, a), delta(a, b))
    maker.ref(object_id(3, b), delta(b, a))
    out["ref cycle"] = maker.pack()
    maker = empty()
    maker.ref(bytes(20), delta(b"hello", b"hello2"))
    out["missing base"] = maker.pack()
    deltas = {
        "copy past the base": varint(5) + varint(9) + copy(0, 9),
        "copy from past the base": varint(5) + varint(1) + copy(6, 1),
        "copy past the result": varint(5) + varint(3) + copy(0, 5),
        "insert past the result": varint(5) + varint(1) + insert(b"xy"),
        "insert past the delta": varint(5) + varint(9) + b"\x09abc",
        "reserved instruction": varint(5) + varint(1) + b"\x00",
        "short result": varint(5) + varint(9) + insert(b"xy"),
        "other base size": varint(4) + varint(1) + insert(b"x"),
        "cut copy": varint(5) + varint(5) + b"\xff",
        "nothing": b"",
        "endless varint": b"\xff" * 20,
        "result of four gib": varint(5) + varint(0xFFFFFFF0) + copy(0, 5),
    }
    for name, data in deltas.items():
        maker = PackMaker()
        maker.ofs(maker.add(3, b"hello"), data)
        out[f"delta: {name}"] = maker.pack()
    maker = empty()
    maker.body = maker.body[:-6] + b"\0\0" + maker.body[-4:]
    out["damaged zlib"] = maker.pack()
    maker = empty()
    maker.add(3, b"hello")
    out["object twice"] = maker.pack()
    return out


@pytest.mark.parametrize("name", sorted(bad_packs()))
def test_a_bad_pack_is_one_typed_error(name: str) -> None:
    with pytest.raises((MalformedPack, LimitExceeded)):
        ingest(bad_packs()[name])


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (1, b""),
        (1, b"tree " + b"g" * 40 + b"\n"),
        (1, b"tree " + b"a" * 40),
        (1, b"tree " + b"a" * 40 + b"\nparent " + b"a" * 39 + b"\n\n"),
        (2, b"100644 name"),
        (2, b"100644 name\0" + b"x" * 19),
        (2, b"999 name\0" + b"x" * 20),
        (2, b" name\0" + b"x" * 20),
        (4, b"object nothing\n"),
    ],
)
def test_an_object_that_does_not_parse_is_malformed(kind: int, data: bytes) -> None:
    maker = PackMaker()
    maker.add(kind, data)
    with pytest.raises((MalformedObject, InvalidArgument)):
        ingest(maker.pack())


def test_an_object_over_the_limit_is_refused_before_it_is_inflated() -> None:
    maker = PackMaker()
    maker.add(3, b"x" * 1000)
    with pytest.raises(LimitExceeded):
        ingest(maker.pack(), size=999)


def test_deltas_that_ask_for_more_than_the_limit_in_all_are_refused() -> None:
    maker = PackMaker()
    base = bytes(1 << 16)
    at = maker.add(3, base)
    for number in range(200):
        body = b"".join(copy(0, 1 << 16) for _ in range(64)) + insert(b"%d" % number)
        size = (64 << 16) + len(str(number))
        maker.ofs(at, varint(1 << 16) + varint(size) + body)
    pack = maker.pack()
    assert len(pack) < 100_000
    got = Ingest(
        1,
        size_max=1 << 30,
        memory_max=1 << 24,
        cache_max=1 << 26,
        objects_max=1000,
        depth_max=10,
        raw_max=100 << 20,
    )
    got.scan(pack)
    got.resolve()
    assert got.bytes_made < 120 << 20
    with pytest.raises(LimitExceeded):
        got.finish()


def test_index_offsets_that_lie_are_found_out() -> None:
    from array import array

    maker = PackMaker()
    first = maker.add(3, b"hello")
    second = maker.add(3, b"world" * 50)
    for offsets in (
        [first, second + 1],
        [first],
        [first + 1, second],
        [first, second, second],
        [first, 1 << 60],
    ):
        got = Ingest(
            1,
            size_max=1 << 30,
            memory_max=1 << 24,
            cache_max=1 << 26,
            objects_max=1000,
            depth_max=10,
        )
        with pytest.raises(MalformedPack):
            got.scan(maker.pack(), array("Q", offsets))
