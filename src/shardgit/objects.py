"""Git's objects: commits, trees and tags parsed; ids computed. No I/O."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, MalformedObject
from shardgit.oid import HashKind, ObjectId, oid_of

if TYPE_CHECKING:
    from collections.abc import Iterable


class ObjectType(enum.IntEnum):
    """The four types, numbered as in packs."""

    COMMIT = 1
    TREE = 2
    BLOB = 3
    TAG = 4

    @property
    def git_name(self) -> str:
        """The type's name in Git."""
        return self.name.lower()


GITLINK = 0o160000
DIRECTORY = 0o40000


@dataclass(frozen=True, slots=True)
class Signature:
    """Who did something and when. ``zone`` is the offset as written, such as b"+0200"."""

    name: bytes
    email: bytes
    seconds: int
    zone: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit. ``extra`` are header lines beyond the usual ones, such as gpgsig, with continuations joined by \\n."""

    tree: ObjectId
    parents: tuple[ObjectId, ...]
    author: Signature
    committer: Signature
    message: bytes
    extra: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Tag:
    """An annotated tag; old ones have no tagger."""

    target: ObjectId
    type: ObjectType
    name: bytes
    tagger: Signature | None
    message: bytes


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One entry of a tree."""

    mode: int
    name: bytes
    id: ObjectId

    @property
    def is_tree(self) -> bool:
        """Whether it is a folder."""
        return self.mode & 0o170000 == DIRECTORY


def object_id(kind: int, pieces: Iterable[bytes], size: int, hash_kind: HashKind) -> ObjectId:
    """Return the id of an object of ``size`` bytes that comes in pieces."""
    name = ObjectType(kind).git_name.encode()
    head = name + b" %d\0" % size
    hashed = (
        hashlib.sha1(head, usedforsecurity=False)
        if hash_kind is HashKind.SHA1
        else hashlib.sha256(head)
    )
    for piece in pieces:
        hashed.update(piece)
    return ObjectId(hashed.digest())


def _headers(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Split an object into header lines (continuations joined) and message."""
    head, gap, message = data.partition(b"\n\n")
    if not gap:
        head = head.removesuffix(b"\n")
    rows: list[tuple[bytes, bytes]] = []
    for line in head.split(b"\n"):
        if line.startswith(b" ") and rows:
            key, value = rows[-1]
            rows[-1] = (key, value + b"\n" + line[1:])
            continue
        key, _, value = line.partition(b" ")
        rows.append((key, value))
    return rows, message


def parse_signature(text: bytes) -> Signature:
    """Return the parts of ``name <mail> seconds zone``, as leniently as git reads it."""
    name, _, rest = text.partition(b"<")
    email, _, when = rest.rpartition(b">")
    seconds, _, zone = when.strip().partition(b" ")
    try:
        number = int(seconds) if len(seconds) <= 20 else 0
    except ValueError:
        number = 0
    if not -(1 << 63) <= number < 1 << 63:
        number = 0
    return Signature(name.rstrip(b" "), email, number, zone.strip())


def parse_commit(data: bytes, hash_kind: HashKind) -> Commit:
    """Return a commit; MalformedObject when it has no tree, author or committer."""
    rows, message = _headers(data)
    parents: list[ObjectId] = []
    found: dict[bytes, bytes] = {}
    extra: list[tuple[bytes, bytes]] = []
    for key, value in rows:
        if key == b"parent":
            parents.append(_oid(value, hash_kind))
        elif key in (b"tree", b"author", b"committer") and key not in found:
            found[key] = value
        else:
            extra.append((key, value))
    if b"tree" not in found:
        raise MalformedObject("commit has no tree")
    author = parse_signature(found.get(b"author", b""))
    committer = parse_signature(found.get(b"committer", b""))
    return Commit(
        _oid(found[b"tree"], hash_kind), tuple(parents), author, committer, message, tuple(extra)
    )


def parse_tag(data: bytes, hash_kind: HashKind) -> Tag:
    """Return a tag; MalformedObject when it has no object, type or name."""
    rows, message = _headers(data)
    found = dict(reversed(rows))
    try:
        kind = ObjectType[found[b"type"].decode("ascii").upper()]
        target, name = _oid(found[b"object"], hash_kind), found[b"tag"]
    except (KeyError, UnicodeDecodeError) as cause:
        raise MalformedObject("tag does not parse") from cause
    tagger = found.get(b"tagger")
    return Tag(target, kind, name, parse_signature(tagger) if tagger is not None else None, message)


def parse_tree(data: bytes, hash_kind: HashKind) -> list[TreeEntry]:
    """Return a tree's entries in order; MalformedObject when it does not parse."""
    entries: list[TreeEntry] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        nul = data.find(b"\0", space + 1)
        end = nul + 1 + hash_kind.size
        if space < 0 or nul < 0 or end > len(data) or nul == space + 1:
            raise MalformedObject("tree does not parse", offset=at)
        try:
            mode = int(data[at:space], 8)
        except ValueError as cause:
            raise MalformedObject("tree has an impossible mode", offset=at) from cause
        entries.append(TreeEntry(mode, data[space + 1 : nul], ObjectId(data[nul + 1 : end])))
        at = end
    return entries


def _oid(text: bytes, hash_kind: HashKind) -> ObjectId:
    try:
        return oid_of(text, hash_kind)
    except InvalidArgument as cause:
        raise MalformedObject("object names no valid id") from cause
