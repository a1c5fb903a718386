"""Targets of the fuzzer: what reads outside bytes, with seeds and what mends their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
import zlib
from array import array
from collections.abc import Callable

from blake3 import blake3
from reference import broken
from reference.packs import PackMaker, copy, delta, insert, object_id, varint

from shardgit import _delta, _fastpack, _segment, fsck
from shardgit._graph import PoolGraph, Walk, pack_stream, unpack_stream
from shardgit._layout import Ingest
from shardgit._packstream import PackStream, index_offsets
from shardgit.blocks.block import BlockKind, block_id, new_header, verify_block
from shardgit.errors import ShardgitError
from shardgit.objects import parse_commit, parse_tag, parse_tree
from shardgit.oid import HashKind, PoolId
from shardgit.protocol.pktline import PacketReader, line
from shardgit.protocol.receive_pack import PushReader
from shardgit.protocol.upload_archive import ArchiveReader
from shardgit.protocol.upload_pack_v0 import parse_v0
from shardgit.protocol.upload_pack_v2 import parse_v2
from shardgit.ring.builder import build
from shardgit.ring.ring import Ring, RingShard

Target = tuple[list[bytes], Callable[[bytes], None], Callable[[bytes], bytes]]


def step(data: bytes) -> int:
    """Return how many bytes at once an input is given in little pieces: one, of a long one more."""
    return 1 + len(data) // 2_000


def packs() -> list[bytes]:
    """Return small packs with every kind of entry."""
    rand = random.Random(1)
    out = []
    for number in range(6):
        maker = PackMaker()
        text = bytes(rand.choices(b"abcdef\n", k=400))
        at = maker.add(3, text)
        for _ in range(rand.randint(1, 6)):
            new = (
                text[: rand.randint(0, 400)]
                + bytes(rand.choices(b"xyz", k=30))
                + text[rand.randint(0, 400) :]
            )
            at = (
                maker.ofs(at, delta(text, new))
                if rand.random() < 0.6
                else maker.ref(object_id(3, text), delta(text, new))
            )
            text = new
        blob = object_id(3, text)
        tree = (
            b"".join(b"100644 f%d\0" % i + blob for i in range(9))
            + b"40000 sub\0"
            + blob
            + b"160000 mod\0"
            + blob
        )
        tree_at = maker.add(2, tree)
        changed = tree[:60] + b"100755 new\0" + blob + tree[60:]
        maker.ofs(tree_at, delta(tree, tree + b"100644 zz\0" + blob))
        maker.ofs(tree_at, delta(tree, changed))
        row = b"100644 last\0" + blob
        split = copy(0, 29) + copy(29, len(tree) - 29) + insert(row)
        maker.ofs(tree_at, varint(len(tree)) + varint(len(tree) + len(row)) + split)
        commit = (
            b"tree "
            + object_id(2, tree).hex().encode()
            + b"\nauthor A <a> 1 +0\ncommitter A <a> %d +0\n\nm" % number
        )
        maker.add(1, commit)
        maker.add(
            4, b"object " + object_id(1, commit).hex().encode() + b"\ntype commit\ntag t\n\nm"
        )
        maker.add(3, insert(b"q" * 300))
        out.append(maker.pack())
    return out


def mend_pack(data: bytes) -> bytes:
    """Give a pack a trailer that fits."""
    return data[:-20] + hashlib.sha1(data[:-20]).digest() if len(data) > 20 else data


def resolve(data: bytes) -> Ingest:
    """Resolve a pack, with limits low enough for fuzzing."""
    ingest = Ingest(
        1, size_max=1 << 22, memory_max=1 << 16, cache_max=1 << 16, objects_max=10_000, depth_max=50
    )
    ingest.scan(data)
    ingest.resolve()
    ingest.finish()
    return ingest


def run_pack(data: bytes) -> None:
    """Take a pack all the way to segments and graph."""
    ingest = resolve(data)
    count = ingest.layout(target=2048, most=4096, count_most=50)
    for number in range(count):
        parts = bytes(32) if ingest.segment_facts(number)[5] else b""
        block = ingest.segment(number, bytes(64), parts)
        _segment.check(block, 20)
    ingest.externals()
    graph = PoolGraph(1)
    stream = ingest.graph()
    graph.add_run(stream, [-1] * len(PoolGraph.externals_of(stream, 1)))


def run_packstream(data: bytes) -> None:
    """Find a pack's end in one piece and byte by byte: the same must come out."""

    def read(size: int) -> tuple[object, ...]:
        pack = PackStream(1, size_max=1 << 22, objects_max=10_000, raw_max=1 << 24)
        taken = 0
        try:
            for at in range(0, len(data), size):
                taken += pack.feed(data[at : at + size])
            pack.finish()
        except ShardgitError as error:
            return (type(error), error.message)
        return (taken, list(pack.offsets), pack.raw_bytes)

    whole = read(len(data) or 1)
    assert whole == read(step(data)) == read(977)
    if isinstance(whole[0], int) and whole[0] == len(data):
        with contextlib.suppress(ShardgitError):
            resolve(data)


def segments() -> list[bytes]:
    """Return segment blocks."""
    out = []
    for pack in packs():
        ingest = resolve(pack)
        out += [
            ingest.segment(n, bytes(64))
            for n in range(ingest.layout(target=1500, most=1 << 20, count_most=50))
        ]
    return out


def run_segment(data: bytes) -> None:
    """Check a segment and, when it is sound, read and copy all of it."""
    count = _segment.check(data, 20)
    _segment.part_ids(data, 20)
    ids = _segment.ids_at(data, 20, range(count))
    _segment.sizes_at(data, 20, range(count))
    outside = _segment.externals_of(data, 20)
    for oid in ids[:4]:
        _segment.find(data, 20, oid)
    bits = bytes([0b10110101]) * (count // 8 + 1)
    for ofs in (False, True):
        _segment.copy_entries(
            data, 20, 0, bits, bytes(len(bits)), array("q", [-1] * len(outside)), ofs, True
        )
    start, end = _segment.entries_span(data, 20)
    _segment.PackFramer(1, sideband=True).frame(data, start, end)
    if not _segment.part_ids(data, 20):
        for ordinal in range(count):
            _segment.entry_at(data, 20, ordinal)
        bases = dict.fromkeys(outside, b"base")
        objects, _ = _segment.decode_many(data, 20, range(count), bases)
        assert objects == in_messages(data, count, bases)


def in_messages(data: bytes, count: int, bases: dict[bytes, bytes]) -> list[bytes]:
    """Return the objects of a segment as its messages carry them, each of which has little room."""
    from shardgit._objects import Messages
    from shardgit.v1.object_pb2 import GetObjectsResponse

    made = Messages(20, 1024, 2_000)
    made.begin(data, 0, array("q", range(count)), 0, count, 1 << 40, bases)
    sizes: list[int] = []
    held = b""
    done = False
    while not done:
        done = made.fill(data)
        answer = GetObjectsResponse.FromString(made.take())
        sizes += answer.sizes
        held += answer.data
    ends = [sum(sizes[: number + 1]) for number in range(count)]
    return [held[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def indexes() -> list[bytes]:
    """Return index pieces."""
    rand = random.Random(2)
    out = []
    for count in (1, 5, 60):
        keys = sorted(rand.randbytes(8) for _ in range(count))
        positions = b"".join(struct.pack("<I", rand.randrange(1 << 31)) for _ in range(count))
        out.append(bytes(64) + b"".join(keys) + positions + struct.pack("<I8x4s", count, b"SGIX"))
        ids = b"".join(key + bytes(12) for key in keys)
        out.append(bytes(64) + _segment.index_payload(ids, positions, 20))
    return out


def run_index(data: bytes) -> None:
    """Check an index piece and look ids up in it."""
    _segment.check_index(data)
    out = array("q", [0, 0])
    _segment.index_find(data, data[64:72].ljust(20, b"\0") + bytes(20), 20, array("q", [0, 1]), out)
    _segment.index_rows(data, 0, (1 << 64) - 1, 100)


def graphs() -> list[bytes]:
    """Return graph streams."""
    out = []
    for pack in packs():
        ingest = resolve(pack)
        ingest.layout(target=1500, most=1 << 20, count_most=50)
        out += [ingest.graph(), pack_stream(ingest.graph())]
    return out


def run_graph(data: bytes) -> None:
    """Load a graph and walk it from everywhere."""
    data = unpack_stream(data)
    graph = PoolGraph(1)
    graph.add_run(data, [n - 1 for n in range(len(PoolGraph.externals_of(data, 1)))])
    commits = [at for at in range(min(graph.objects, 500)) if graph.type_at(at) == 1]
    walk = Walk(graph)
    walk.mark(range(min(graph.objects, 50)))
    for _ in range(100):
        waiting = walk.run()
        if not waiting:
            break
        for _tree in waiting:
            walk.expand([0] if graph.objects else [])
    walk.bitset()
    graph.split(commits[:3], commits[3:6])
    graph.all_reach(commits[:3], commits[3:6])
    for at in range(min(graph.objects, 200)):
        graph.peel(at)


def deltas() -> list[bytes]:
    """Return sources and deltas, with the length of the source in front."""
    rand = random.Random(7)
    out = []
    for size in (0, 15, 16, 100, 3_000):
        source = bytes(rand.choice(b"abc \n") for _ in range(size))
        target = source[size // 3 :] + b"something new\n" + source[: size // 2]
        delta = _delta.encode(source, target)
        assert delta is not None
        out.append(struct.pack("<H", size) + source + delta)
    return out


def run_delta(data: bytes) -> None:
    """Read the rest as a delta on the source, and as a target that a delta must make."""
    size = struct.unpack_from("<H", data.ljust(2, b"\0"))[0]
    source, rest = data[2 : 2 + size], data[2 + size :]
    made = _delta.encode(source, rest)
    assert made is not None
    assert _delta.apply(source, made, len(rest)) == rest
    short = _delta.encode(source, rest, len(made) // 2)
    assert short is None or len(short) <= len(made) // 2
    _delta.apply(source, rest, 1 << 20)


def run_ids(data: bytes) -> None:
    """Cut the input into objects as its first bytes say, and hash them side by side: as alone."""
    sizes, rest = data[:32], data[32:]
    objects, at = [], 0
    for size in sizes:
        objects.append(rest[at : at + size * 3])
        at += size * 3
    wanted = [hashlib.sha1(b"blob %d\0" % len(one) + one).digest() for one in objects]
    for lanes in (1, 3, 8):
        attacks: list[int] = []
        assert _fastpack.object_ids(1, [3] * len(objects), objects, lanes) == wanted
        assert _fastpack.object_ids(1, [3] * len(objects), objects, lanes, attacks) == wanted
        assert _fastpack.message_digests(objects, lanes, attacks, plain=True) == [
            hashlib.sha1(one).digest() for one in objects
        ]
        assert attacks == []
    assert _fastpack.watched_id(3, [rest[:at], rest[at:]], len(rest)) == (
        hashlib.sha1(b"blob %d\0" % len(rest) + rest).digest(),
        False,
    )


def run_ring(data: bytes) -> None:
    """Decode a ring and encode it again."""
    ring = Ring.decode(data)
    assert Ring.decode(ring.encode()) == ring


def blocks() -> list[bytes]:
    """Return whole blocks."""
    pool = PoolId(bytes(16))
    return [new_header(kind, HashKind.SHA1, pool, 64 + 40) + bytes(range(40)) for kind in BlockKind]


def run_packets(data: bytes) -> None:
    """Read packets in one go and byte by byte: the same must come out."""

    def all_of(pieces: list[bytes]) -> list[object]:
        reader = PacketReader()
        found: list[object] = []
        try:
            for piece in pieces:
                found += reader.receive(piece)
            reader.finish()
        except ShardgitError as error:
            return [type(error)]  # what stood before the error may or may not have come out
        return found

    size = step(data)
    assert all_of([data]) == all_of([data[at : at + size] for at in range(0, len(data), size)])


def requests() -> list[bytes]:
    """Return bodies of upload-pack requests, v0 and v2."""
    oid = b"a1" * 20
    v0 = line(b"want " + oid + b" multi_ack_detailed no-done side-band-64k ofs-delta\n")
    v0 += line(b"want " + oid[::-1] + b"\n") + b"0000" + line(b"have " + oid + b"\n")
    v2 = line(b"command=fetch\n") + line(b"agent=git/2\n") + line(b"object-format=sha1\n") + b"0001"
    v2 += line(b"thin-pack\n") + line(b"want " + oid + b"\n") + line(b"have " + oid + b"\n")
    refs = line(b"command=ls-refs\n") + b"0001" + line(b"peel\n") + line(b"ref-prefix refs/\n")
    return [v0 + b"0000", v0 + line(b"done\n"), v2 + line(b"done\n") + b"0000", refs + b"0000"]


def run_request(data: bytes) -> None:
    """Parse a body as either protocol."""
    for parse in (parse_v0, parse_v2):
        with contextlib.suppress(ShardgitError):
            parse(data, HashKind.SHA1)


def pushes() -> list[bytes]:
    """Return what clients send before their pack: commands, options, a certificate."""
    oid, zero = b"a1" * 20, b"0" * 40
    words = b"\0 report-status-v2 side-band-64k push-options object-format=sha1 agent=git/2"
    first = zero + b" " + oid + b" refs/heads/main"
    plain = line(first + words) + line(b"shallow " + oid) + b"0000" + line(b"option") + b"0000PACK"
    text = [b"certificate version 0.1", b"pusher A <a@b.c> 1 +0000", b"nonce 1-ab", b"", first]
    text += [b"-----BEGIN PGP SIGNATURE-----", b"", b"abcd", b"-----END PGP SIGNATURE-----"]
    signed = line(b"push-cert" + words) + b"".join(line(each + b"\n") for each in text)
    return [plain, signed + line(b"push-cert-end\n") + b"0000" + line(b"a") + b"0000"]


def run_push(data: bytes) -> None:
    """Read a push whole and byte by byte: both end alike."""

    def read(size: int) -> tuple[object, ...]:
        reader, rest = PushReader(HashKind.SHA1), b""
        try:
            for at in range(0, len(data), size):
                rest += reader.receive(data[at : at + size]) or b""
            return reader.finish(), rest
        except ShardgitError as error:
            return type(error), str(error)

    assert read(len(data) or 1) == read(step(data))


def checked() -> list[bytes]:
    """Return a type and an object each, for fsck: longer than 512 bytes, so that they lie in memory of their own."""
    rand = random.Random(3)
    out = []
    for number in range(40):
        type, make = ((2, broken.tree), (1, broken.commit), (4, broken.tag))[number % 3]
        data = make(rand, 20) if type != 2 else b"".join(broken.tree(rand, 20) for _ in range(6))
        out.append(bytes([type]) + data + (b"" if type == 2 else b"text" * 130))
        out.append(b"\3" + broken.gitmodules(rand))
    return out


def run_fsck(data: bytes) -> None:
    """Check an object, and the text as configuration; an array has no byte past its end, unlike bytes."""
    for kind in HashKind:
        fsck.check_object(kind, data[0] % 5 if data else 0, array("B", data[1:]))
    fsck.check_gitmodules(data[1:])
    fsck.check_gitattributes(data[1:])


def indices() -> list[bytes]:
    """Return .idx files of packs, of both versions."""
    rand = random.Random(4)
    out = []
    for count in (0, 3, 40):
        ids = sorted(rand.randbytes(20) for _ in range(count))
        fan = b"".join(
            struct.pack(">I", sum(each[0] <= first for each in ids)) for first in range(256)
        )
        starts = [12 + 30 * number for number in range(count)]
        one = fan + b"".join(
            struct.pack(">I", at) + each for at, each in zip(starts, ids, strict=True)
        )
        large = bool(count) * struct.pack(">Q", 1 << 33)
        places = [*starts[:-1], 1 << 31] if count else []
        two = b"\xfftOc\0\0\0\2" + fan + b"".join(ids) + bytes(4 * count)
        two += b"".join(struct.pack(">I", at) for at in places) + large
        out += [each + bytes(20) + hashlib.sha1(each + bytes(20)).digest() for each in (one, two)]
    return out


def run_idx(data: bytes) -> None:
    """Read where the entries of a pack start."""
    for kind in HashKind:
        with contextlib.suppress(ShardgitError):
            starts = index_offsets(data, kind)
            assert starts is None or list(starts) == sorted(starts)


def run_object(data: bytes) -> None:
    """Parse an object of each type, and look for what a tree says twice: its own bytes."""
    for kind in HashKind:
        for parse in (parse_commit, parse_tag):
            with contextlib.suppress(ShardgitError):
                parse(data[1:], kind)
        with contextlib.suppress(ShardgitError):
            rows = parse_tree(data[1:], kind)
            assert sum(len(b"%o" % row.mode) + len(row.name) for row in rows) <= len(data)


def run_archive(data: bytes) -> None:
    """Read what git archive --remote sends, whole and byte by byte: both end alike."""

    def read(size: int) -> object:
        reader = ArchiveReader()
        try:
            for at in range(0, len(data), size):
                reader.receive(data[at : at + size])
            return reader.finish()
        except ShardgitError as error:
            return type(error), str(error)

    assert read(len(data) or 1) == read(step(data))


def archives() -> list[bytes]:
    """Return arguments of git archive."""
    words = (b"--format=tar", b"--prefix=a/", b"-9", b"--", b"main", b"sub")
    return [b"".join(line(b"argument " + word + b"\n") for word in words) + b"0000"]


def run_gzip(data: bytes) -> None:
    """Inflate a body as zlib does, however it is cut; a tail and an end that lacks are refused."""
    from aiohttp import web

    from shardgit.http.body import PIECE_BYTES, Inflater

    def read(size: int) -> bytes | None:
        inflater, found = Inflater(), b""
        try:
            for at in range(0, len(data), size):
                for piece in inflater.receive(data[at : at + size]):
                    assert len(piece) <= PIECE_BYTES
                    found += piece
                    if len(found) > 1 << 22:
                        return found[: 1 << 22]
            inflater.finish()
        except web.HTTPBadRequest:
            return None
        return found

    whole = read(len(data) or 1)
    assert whole == read(step(data))
    plain = zlib.decompressobj(31)
    try:
        found: bytes | None = plain.decompress(data, 1 << 22)
    except zlib.error:
        found = None
    if found is not None and len(found) < 1 << 22:
        assert whole == (found if plain.eof and not plain.unused_data else None)


def gzips() -> list[bytes]:
    """Return bodies, one of many members and one that grows a thousandfold."""
    import gzip

    named = gzip.compress(b"0000")
    named = named[:3] + b"\x08" + named[4:10] + b"name\0" + named[10:]
    return [gzip.compress(b"0032want"), gzip.compress(bytes(1 << 20)), named, named * 3]


def same(data: bytes) -> bytes:
    """Mend nothing."""
    return data


def http() -> Target:
    """Return the target that needs a server."""
    from fuzz.http_target import requests as seeds
    from fuzz.http_target import run

    return seeds(), run, same


TARGETS: dict[str, Callable[[], Target]] = {
    "pack": lambda: (packs(), run_pack, mend_pack),
    "packstream": lambda: (packs(), run_packstream, mend_pack),
    "segment": lambda: (segments(), run_segment, same),
    "index": lambda: (indexes(), run_index, same),
    "graph": lambda: (graphs(), run_graph, same),
    "delta": lambda: (deltas(), run_delta, same),
    "ids": lambda: ([bytes(range(32)) + bytes(2_000), bytes(600)], run_ids, same),
    "ring": lambda: (
        [
            build([RingShard(n, zone=n) for n in range(count)], replicas=min(3, count)).encode()
            for count in (1, 2, 5)
        ],
        run_ring,
        lambda data: data[:-32] + blake3(data[:-32]).digest(),
    ),
    "block": lambda: (blocks(), lambda data: verify_block(block_id(data), data), same),
    "push": lambda: (pushes(), run_push, same),
    "request": lambda: (requests(), run_request, same),
    "idx": lambda: (
        indices(),
        run_idx,
        lambda data: data[:-20] + hashlib.sha1(data[:-20]).digest(),
    ),
    "object": lambda: (checked(), run_object, same),
    "archive": lambda: (archives(), run_archive, same),
    "gzip": lambda: (gzips(), run_gzip, same),
    "http": http,
    "fsck": lambda: (checked(), run_fsck, same),
    "pktline": lambda: (
        [
            b"0000",
            line(b"want " + b"a" * 40) + b"0001" + line(b"x\n") + b"0002",
            line(b"y" * 3000) + b"0000",
        ],
        run_packets,
        same,
    ),
}
