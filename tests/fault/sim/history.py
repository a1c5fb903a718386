"""Git objects that clients make: known whole to the model, so that every read can be judged."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reference.packs import TYPES, delta, entry_header

from shardgit.oid import HashKind, ObjectId

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

COMMIT, TREE, BLOB = 1, 2, 3
REF_DELTA = 7


@dataclass(frozen=True, slots=True)
class Made:
    """An object, and the ids that it links to."""

    type: int
    data: bytes
    links: tuple[ObjectId, ...]


@dataclass
class History:
    """All objects that anybody ever made, of one kind of hash."""

    kind: HashKind
    objects: dict[ObjectId, Made] = field(default_factory=dict)
    commits: list[ObjectId] = field(default_factory=list)
    _closures: dict[ObjectId, frozenset[ObjectId]] = field(default_factory=dict)

    def add(self, kind: int, data: bytes, links: Iterable[ObjectId] = ()) -> ObjectId:
        head = TYPES[kind] + b" %d\0" % len(data)
        oid = ObjectId(hashlib.new(self.kind.git_name, head + data).digest())
        self.objects.setdefault(oid, Made(kind, data, tuple(links)))
        return oid

    def closure(self, oid: ObjectId) -> frozenset[ObjectId]:
        """Return all that an object reaches, with itself."""
        found = self._closures.get(oid)
        if found is None:
            seen = {oid}
            waiting = [oid]
            while waiting:
                for link in self.objects[waiting.pop()].links:
                    if link in self._closures:
                        seen |= self._closures[link]
                    elif link not in seen:
                        seen.add(link)
                        waiting.append(link)
            found = self._closures[oid] = frozenset(seen)
        return found

    def files_of(self, commit: ObjectId) -> dict[bytes, ObjectId]:
        """Return the files of a commit's tree."""
        tree = self.objects[self.objects[commit].links[0]]
        size, out, at = self.kind.size, {}, 0
        while at < len(tree.data):
            end = tree.data.index(b"\0", at)
            name = tree.data[at:end].split(b" ", 1)[1]
            out[name] = ObjectId(tree.data[end + 1 : end + 1 + size])
            at = end + 1 + size
        return out

    def commit(self, dice: random.Random, parents: list[ObjectId], word: str) -> list[ObjectId]:
        """Make a commit over ``parents`` with some files changed; returns what is new, the commit last."""
        files = self.files_of(parents[0]) if parents else {}
        new: list[ObjectId] = []
        for _ in range(dice.choice((1, 1, 2, 3))):
            name = b"f%d" % dice.randrange(6)
            old = self.objects[files[name]].data if name in files else b""
            blob = self.add(BLOB, _text(dice, old, word))
            files[name] = blob
            new.append(blob)
        rows = b"".join(b"100644 " + name + b"\0" + files[name] for name in sorted(files))
        tree = self.add(TREE, rows, files.values())
        lines = [b"tree " + tree.hex().encode()]
        lines += [b"parent " + parent.hex().encode() for parent in parents]
        who = b"A <a@b.c> %d +0000" % (1_700_000_000 + len(self.objects))
        lines += [b"author " + who, b"committer " + who, b"", word.encode() + b"\n"]
        new += [tree, self.add(COMMIT, b"\n".join(lines), [tree, *parents])]
        self.commits.append(new[-1])
        return list(dict.fromkeys(new))

    def pack(self, dice: random.Random, ids: Iterable[ObjectId], bases: list[ObjectId]) -> bytes:
        """Return a pack of objects; blobs may be deltas on ``bases``, blobs that the other side has."""
        entries = []
        for oid in ids:
            made = self.objects[oid]
            if made.type == BLOB and bases and dice.random() < 0.5:
                base = dice.choice(bases)
                steps = delta(self.objects[base].data, made.data)
                entries.append(entry_header(REF_DELTA, len(steps)) + base + zlib.compress(steps, 1))
            else:
                entries.append(
                    entry_header(made.type, len(made.data)) + zlib.compress(made.data, 1)
                )
        body = b"PACK\0\0\0\2" + len(entries).to_bytes(4, "big") + b"".join(entries)
        return body + hashlib.new(self.kind.git_name, body).digest()


def _text(dice: random.Random, old: bytes, word: str) -> bytes:
    fresh = dice.randbytes(dice.choice((10, 40, 300))).hex().encode()
    return old[: dice.randrange(len(old) + 1)][:600] + word.encode() + b" " + fresh + b"\n"
