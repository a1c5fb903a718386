"""Ref listings and side-band framing, beside dulwich and plain Python."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

from shardgit import _refpage, _segment
from shardgit.oid import HashKind, ObjectId
from shardgit.protocol.pktline import band
from shardgit.refs.page import changes_of_refs
from shardgit.refs.ref import Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    Measure = Callable[[Callable[[], object], int, str], object]

REFS = 20_000


def _refs() -> list[tuple[bytes, bytes]]:
    some = random.Random(1)
    names = sorted(b"refs/pull/%d/head" % number for number in range(REFS))
    return [(name, some.randbytes(20)) for name in names]


def _lines(refs: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(
        b"%04x%s %s\n" % (len(name) + 46, oid.hex().encode(), name) for name, oid in refs
    )


@pytest.mark.benchmark(group="ls-refs of a page")
class TestRefs:
    """Lines of 20,000 refs."""

    def test_shardgit(self, measure: Measure) -> None:
        refs = _refs()
        some = (Ref(name, ObjectId(oid)) for name, oid in refs)
        page = changes_of_refs(some, HashKind.SHA1)

        def work() -> bytes:
            return _refpage.render(None, page, 20, b"", b"\xff", v0=False, peel=False)[0]

        assert measure(work, REFS, "refs") == _lines(refs)

    def test_python(self, measure: Measure) -> None:
        refs = _refs()
        assert measure(lambda: _lines(refs), REFS, "refs") == _lines(refs)

    def test_dulwich(self, measure: Measure) -> None:
        protocol = pytest.importorskip("dulwich.protocol")
        refs = [(name, oid.hex().encode()) for name, oid in _refs()]

        def work() -> bytes:
            return b"".join(protocol.pkt_line(oid + b" " + name + b"\n") for name, oid in refs)

        assert measure(work, REFS, "refs") == _lines(_refs())


@pytest.mark.benchmark(group="side-band framing, hashed")
class TestFraming:
    """16 MiB of pack: hashed for the trailer, copied, cut into packets."""

    def test_shardgit(self, measure: Measure) -> None:
        data = random.Random(1).randbytes(16 << 20)

        def work() -> bytes:
            framer = _segment.PackFramer(1, sideband=True)
            for at in range(0, len(data), 1 << 20):
                framer.frame(data, at, at + (1 << 20))
            return bytes(framer.digest())

        assert measure(work, len(data), "bytes") == hashlib.sha1(data).digest()

    def test_python(self, measure: Measure) -> None:
        data = random.Random(1).randbytes(16 << 20)

        def work() -> bytes:
            digest = hashlib.sha1()
            for at in range(0, len(data), 1 << 20):
                piece = data[at : at + (1 << 20)]
                digest.update(piece)
                band(1, piece)
            return digest.digest()

        assert measure(work, len(data), "bytes") == hashlib.sha1(data).digest()

    def test_dulwich(self, measure: Measure) -> None:
        protocol = pytest.importorskip("dulwich.protocol")
        data = random.Random(1).randbytes(16 << 20)

        def work() -> bytes:
            digest = hashlib.sha1()
            out = protocol.Protocol(lambda _: b"", lambda _: None)
            for at in range(0, len(data), 1 << 20):
                piece = data[at : at + (1 << 20)]
                digest.update(piece)
                out.write_sideband(1, piece)
            return digest.digest()

        assert measure(work, len(data), "bytes") == hashlib.sha1(data).digest()
