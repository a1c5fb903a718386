"""Packs that are small on the wire and large behind it, and requests that would have much be looked for."""

from __future__ import annotations

import base64
import hashlib
import struct
import threading
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from attacking import Target, target
from reference.packs import PackMaker, copy, distance, entry_header, object_id, varint
from served import git

from shardgit.protocol.pktline import Mark, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.protocol.pktline import Packet

pytestmark = pytest.mark.interop
PEAK_MAX_BYTES = 400 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("bombs")) as made:
        yield made


def post(served: Target, service: str, body: bytes, *lines: str) -> bytes:
    proof = base64.b64encode(f"x:{served.writer}".encode()).decode()
    head = [
        f"POST /team/app.git/{service} HTTP/1.1",
        "Host: x",
        f"Authorization: Basic {proof}",
        f"Content-Type: application/x-{service}-request",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *lines,
    ]
    return served.raw("\r\n".join([*head, "", ""]).encode() + body, quiet_s=60)


def pushed(served: Target, pack: bytes, tip: bytes, ref: str = "refs/heads/bomb") -> bytes:
    words = b"0" * 40 + b" " + tip.hex().encode() + b" " + ref.encode()
    line = words + b"\0report-status object-format=sha1"
    return post(served, "git-receive-pack", encode([line, Mark.FLUSH]) + pack)


class Peak:
    """The most memory that the workers had meanwhile."""

    def __init__(self, served: Target) -> None:
        self._served = served
        self._over = threading.Event()
        self._before = served.memory()
        self.grown = 0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.grown = max(self.grown, self._served.memory() - self._before)


def sealed(body: bytes, count: int) -> bytes:
    pack = b"PACK" + struct.pack(">II", 2, count) + body
    return pack + hashlib.sha1(pack).digest()


def zeros(size: int) -> bytes:
    deflate = zlib.compressobj(1)
    block = bytes(1 << 20)
    return b"".join(deflate.compress(block) for _ in range(size >> 20)) + deflate.flush()


def doubling(levels: int, size: int = 1 << 16) -> bytes:
    """Return a pack whose deltas each copy their base twice."""
    maker = PackMaker()
    at = maker.add(3, bytes(size))
    for _ in range(levels):
        copies = copy(0, size) * 2 if size < 1 << 24 else b""
        if not copies:  # a copy has 24 bits for its size
            piece = (1 << 24) - 1
            copies = (
                b"".join(copy(start, min(piece, size - start)) for start in range(0, size, piece))
                * 2
            )
        at = maker.ofs(at, varint(size) + varint(2 * size) + copies)
        size *= 2
    return maker.pack()


BOMBS = {
    "an object over the bound": lambda: sealed(entry_header(3, 5 << 30) + zeros(1 << 20), 1),
    "2^60 bytes claimed": lambda: sealed(entry_header(3, 1 << 60) + zeros(1 << 20), 1),
    "more than it claims": lambda: sealed(entry_header(3, 10) + zeros(256 << 20), 1),
    "less than it claims": lambda: sealed(entry_header(3, 3 << 30) + zeros(1 << 20), 1),
    "2^32 objects claimed": lambda: sealed(entry_header(3, 0) + zlib.compress(b""), 0xFFFFFFFF),
    "2^30 objects claimed": lambda: sealed(entry_header(3, 0) + zlib.compress(b""), 1 << 30),
    "deltas that double to 8 GiB": lambda: doubling(17),
    "a delta of 2^60 bytes": lambda: delta_of(varint(1 << 60)),
    "a base of 2^60 bytes": lambda: delta_of(varint(10), varint(1 << 60)),
    "a delta on itself": lambda: sealed(
        entry_header(6, 2) + distance(0) + zlib.compress(b"\0\0"), 1
    ),
}


def delta_of(result: bytes, source: bytes = varint(16)) -> bytes:
    maker = PackMaker()
    at = maker.add(3, bytes(16))
    maker.ofs(at, source + result + copy(0, 16) * 10)
    return maker.pack()


@pytest.mark.parametrize("name", BOMBS)
def test_packs_that_are_larger_than_they_look_are_refused(served: Target, name: str) -> None:
    pack = BOMBS[name]()
    with served.unharmed(), Peak(served) as peak:
        answer = pushed(served, pack, bytes(19) + b"\1")
    assert b"unpack ok" not in answer
    assert b"unpack " in answer or b"ERR " in answer, answer
    # A base and what is made of it: 256 and 512 MiB are the most.
    assert peak.grown < (PEAK_MAX_BYTES if "double" not in name else 1 << 30)


@pytest.mark.heavy
def test_a_gigabyte_of_zeros_is_taken_or_refused_in_little_memory(served: Target) -> None:
    pack = sealed(entry_header(3, 1 << 30) + zeros(1 << 30), 1)
    with served.unharmed(), Peak(served) as peak:
        answer = pushed(served, pack, bytes(19) + b"\1")
    assert b"unpack " in answer
    assert peak.grown < PEAK_MAX_BYTES


@pytest.mark.heavy
def test_deltas_of_gigabytes_leave_others_their_turn(served: Target) -> None:
    """A few KB that stand for 24 GiB: others are served while they are worked on."""
    packs = [doubling(13) for _ in range(3)]
    with served.unharmed(), Peak(served) as peak:
        jobs = [
            threading.Thread(target=pushed, args=(served, pack, bytes(19) + b"\1"))
            for pack in packs * 8
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(300)
        assert not any(job.is_alive() for job in jobs)
    assert peak.grown < 3_000 << 20


def signed(text: bytes) -> bytes:
    return text + b"author A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nm"


def test_trees_and_tags_that_lie_deep_are_walked_without_recursion(served: Target) -> None:
    """1,000 folders in folders, and 1,000 tags of tags: git clones them, and nothing else waits for it."""
    maker = PackMaker()
    oid, mode = object_id(3, b"deep"), b"100644 f"
    maker.add(3, b"deep")
    for _ in range(1_000):
        tree = mode + b"\0" + oid
        maker.add(2, tree)
        oid, mode = object_id(2, tree), b"40000 d"
    commit = signed(b"tree " + oid.hex().encode() + b"\n")
    maker.add(1, commit)
    tip, kind = object_id(1, commit), b"commit"
    for number in range(1_000):
        head = b"object " + tip.hex().encode() + b"\ntype " + kind
        tag = head + b"\ntag t%d\ntagger A <a> 1 +0000\n\nm" % number
        maker.add(4, tag)
        tip, kind = object_id(4, tag), b"tag"
    with served.unharmed(), Peak(served) as peak:
        answer = pushed(served, maker.pack(), tip, "refs/tags/deep")
        assert b"ok refs/tags/deep" in answer, answer
        begun = time.monotonic()
        listed = served.git("ls-remote", served.url(), "refs/tags/deep*")
        assert object_id(1, commit).hex() in listed.stdout  # peeled
        done = served.git("clone", "-q", "--bare", "--branch=deep", served.url(), "deep")
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - begun < 60
    assert peak.grown < PEAK_MAX_BYTES
    words = ("-C", str(served.source), "push", "-q", served.url(), ":refs/tags/deep")
    assert served.git(*words).returncode == 0


def fetched(served: Target, packets: Sequence[Packet], version: int = 2) -> bytes:
    return post(served, "git-upload-pack", encode(packets), f"Git-Protocol: version={version}")


def nested(depth: int) -> bytes:
    spec = b"blob:none"
    for _ in range(depth):
        spec = b"combine:" + spec.replace(b"%", b"%25").replace(b"+", b"%2b") + b"+tree:1"
    return spec


def test_requests_that_ask_for_too_much_get_one_error_or_a_plain_answer(served: Target) -> None:
    tip = git(served.source, "rev-parse", "main~1").encode()
    some = [b"%040x" % number for number in range(1, 70_001)]
    fetch: list[Packet] = [b"command=fetch", Mark.DELIM]
    want = b"want " + tip
    asked: dict[str, list[Packet]] = {
        "haves": [*fetch, want, *(b"have " + each for each in some), Mark.FLUSH],
        "wants": [*fetch, *(b"want " + each for each in some), b"done", Mark.FLUSH],
        "shallows": [*fetch, want, *(b"shallow " + each for each in some), b"done", Mark.FLUSH],
        "refs": [*fetch, *(b"want-ref refs/heads/" + each for each in some), b"done", Mark.FLUSH],
        "nots": [*fetch, want, *(b"deepen-not " + each for each in some), b"done", Mark.FLUSH],
        "prefixes": [
            b"command=ls-refs",
            Mark.DELIM,
            *(b"ref-prefix " + each for each in some),
            Mark.FLUSH,
        ],
        "nested filters": [*fetch, want, b"filter " + nested(12), b"done", Mark.FLUSH],
        "many filters": [
            *fetch,
            want,
            b"filter combine:" + b"+".join([b"tree:1"] * 5_000),
            b"done",
            Mark.FLUSH,
        ],
        "depth": [*fetch, want, b"deepen 2147483647", b"done", Mark.FLUSH],
        "too deep": [*fetch, want, b"deepen 99999999999999999999", b"done", Mark.FLUSH],
        "since": [*fetch, want, b"deepen-since 18446744073709551615", b"done", Mark.FLUSH],
        "sizes": [
            b"command=object-info",
            Mark.DELIM,
            b"size",
            *(b"oid " + each for each in some),
            Mark.FLUSH,
        ],
    }
    with served.unharmed(), Peak(served) as peak:
        for name, packets in asked.items():
            answer = fetched(served, packets)
            status = answer[9:12]
            assert status in (b"200", b"413"), (name, answer[:200])
            body = answer.partition(b"\r\n\r\n")[2]
            told = body.count(b"ERR ") == 1 and len(body) < 1_100
            plain = b"ERR " not in body
            assert told or plain, (name, body[:200])
            if name in ("wants", "refs", "nested filters", "many filters", "too deep"):
                assert told, (name, body[:200])
    assert peak.grown < PEAK_MAX_BYTES
