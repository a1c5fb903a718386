"""Pages of refs, read the slow and obvious way: see docs/formats/refs.md."""

from __future__ import annotations

import struct

from shardgit.oid import ObjectId
from shardgit.refs.ref import Ref


def parse_page(page: bytes, size: int) -> list[Ref]:
    """Return what stands in a page from its magic on; ``size`` is the length of an id."""
    magic, count, restarts = struct.unpack_from("<4sII", page)
    assert magic == b"SGRP"
    assert restarts == -(-count // 16)
    offsets = struct.unpack_from(f"<{restarts}I", page, 12)
    entries = page[12 + 4 * restarts :]
    at, name, found = 0, b"", []
    for number in range(count):
        shared, rest = struct.unpack_from("<BH", entries, at)
        if number % 16 == 0:
            assert offsets[number // 16] == at
            assert shared == 0
        assert shared <= len(name)
        at += 3
        before, name = name, name[:shared] + entries[at : at + rest]
        assert before < name
        at += rest
        kind = entries[at]
        at += 1
        if kind == 1:
            found.append(Ref(name, ObjectId(entries[at : at + size])))
            at += size
        elif kind == 2:
            target, peeled = entries[at : at + size], entries[at + size : at + 2 * size]
            found.append(Ref(name, ObjectId(target), None, ObjectId(peeled)))
            at += 2 * size
        elif kind == 3:
            (length,) = struct.unpack_from("<H", entries, at)
            found.append(Ref(name, symbolic=entries[at + 2 : at + 2 + length]))
            at += 2 + length
        else:
            assert kind == 4
            found.append(Ref(name))
    assert at == len(entries)
    return found


def lines_of(refs: list[Ref], *, v0: bool, peel: bool) -> bytes:
    """Return the pkt-lines of refs that are not symbolic."""
    texts = []
    for ref in refs:
        assert ref.target is not None
        text = ref.target.hex().encode() + b" " + ref.name
        if v0:
            texts.append(text)
            if ref.peeled is not None:
                texts.append(ref.peeled.hex().encode() + b" " + ref.name + b"^{}")
        else:
            suffix = b" peeled:" + ref.peeled.hex().encode() if peel and ref.peeled else b""
            texts.append(text + suffix)
    return b"".join(b"%04x%s\n" % (len(text) + 5, text) for text in texts)
