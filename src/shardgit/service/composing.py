"""Commits made without a work tree: changed paths over a tree become new objects."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, PathMissing
from shardgit.objects import (
    DIRECTORY,
    GITLINK,
    ObjectType,
    Signature,
    TreeEntry,
    object_id,
    parse_signature,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shardgit.oid import HashKind, ObjectId

FILE, EXECUTABLE, SYMLINK = 0o100644, 0o100755, 0o120000
FILE_MODES = (FILE, EXECUTABLE, SYMLINK, GITLINK)
PATH_MAX_BYTES = 4_096
MESSAGE_MAX_BYTES = 1 << 20
_ZONE = re.compile(rb"[+-]\d{4}")
_BAD_PERSON = re.compile(rb"[\x00\n<>]")


@dataclass(frozen=True, slots=True)
class FileChange:
    """What becomes of a path: new bytes, an object that is there already, or nothing (deleted).

    ``mode`` 0 keeps that of the file that stands there, and is 100644 for a new one.
    """

    data: bytes | None = None
    id: ObjectId | None = None
    mode: int = 0


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object that is to be stored."""

    id: ObjectId
    type: ObjectType
    data: bytes


@dataclass(frozen=True, slots=True)
class NewTree:
    """A composed tree and the objects that it needs beyond those that were there."""

    id: ObjectId
    objects: tuple[NewObject, ...]


def compose_tree(
    kind: HashKind,
    root: Sequence[TreeEntry],
    changes: Mapping[bytes, FileChange],
    read_tree: Callable[[ObjectId], Sequence[TreeEntry]],
) -> NewTree:
    """Return the tree that changes make of ``root``; deletions come before the rest.

    A deleted folder goes whole. Errors: InvalidArgument for paths and modes that are off, a file
    below a file or in a folder's place; PathMissing where nothing is there to be deleted.
    """
    work = _Work(kind, read_tree, {b"": {entry.name: entry for entry in root}})
    for path in changes:
        check_path(path)
    # The deepest first: a folder may go after what was in it.
    for path in sorted(changes, key=lambda one: -one.count(b"/")):
        if changes[path].data is None and changes[path].id is None:
            work.delete(path)
    for path, change in changes.items():
        if change.data is not None or change.id is not None:
            work.set(path, change)
    return work.finish()


@dataclass(slots=True)
class _Work:
    """Folders that changes touch, by path; each one's parents stand among them."""

    kind: HashKind
    read_tree: Callable[[ObjectId], Sequence[TreeEntry]]
    folders: dict[bytes, dict[bytes, TreeEntry]]
    objects: dict[ObjectId, NewObject] = field(default_factory=dict)

    def folder(self, path: bytes) -> dict[bytes, TreeEntry]:
        """Return the entries of a folder, read or new."""
        at = b""
        entries = self.folders[at]
        for name in path.split(b"/") if path else []:
            below = at + b"/" + name if at else name
            found = self.folders.get(below)
            if found is None:
                entry = entries.get(name)
                if entry is not None and not entry.is_tree:
                    raise InvalidArgument("path is below a file", path=_text(below))
                some = self.read_tree(entry.id) if entry else ()
                found = self.folders[below] = {each.name: each for each in some}
            at, entries = below, found
        return entries

    def delete(self, path: bytes) -> None:
        """Take a file or a folder away."""
        above, _, name = path.rpartition(b"/")
        at = b""
        for part in above.split(b"/") if above else []:  # no folder is made for a deletion
            entry = self.folder(at).get(part)
            if entry is None or not entry.is_tree:
                raise PathMissing("path does not exist", path=_text(path))
            at = at + b"/" + part if at else part
        if self.folder(above).pop(name, None) is None:
            raise PathMissing("path does not exist", path=_text(path))
        if path in self.folders:
            for each in self._inside(path):
                del self.folders[each]

    def _inside(self, path: bytes) -> list[bytes]:
        """Return the folders at and below a path that were looked into."""
        return [one for one in self.folders if (one + b"/").startswith(path + b"/")]

    def _is_empty(self, path: bytes) -> bool:
        """Whether deletions left nothing of a folder."""
        return path in self.folders and all(
            entry.is_tree and inside + b"/" + name in self.folders
            for inside in self._inside(path)
            for name, entry in self.folders[inside].items()
        )

    def set(self, path: bytes, change: FileChange) -> None:
        """Put a file."""
        above, _, name = path.rpartition(b"/")
        entries = self.folder(above)
        old = entries.get(name)
        if (old is not None and old.is_tree) or path in self.folders:
            if not self._is_empty(path):
                raise InvalidArgument("path is a folder", path=_text(path))
            for each in self._inside(path):
                del self.folders[each]
            old = None
        mode = change.mode or (old.mode if old and old.mode in FILE_MODES[:3] else FILE)
        if mode not in FILE_MODES or (mode == GITLINK and change.id is None):
            raise InvalidArgument("file has an impossible mode", path=_text(path), mode=oct(mode))
        oid = change.id
        if oid is None:
            assert change.data is not None
            oid = self.add(ObjectType.BLOB, change.data)
        entries[name] = TreeEntry(mode, name, oid)

    def add(self, type_: ObjectType, data: bytes) -> ObjectId:
        """Note a new object."""
        oid = object_id(type_, [data], len(data), self.kind)
        self.objects[oid] = NewObject(oid, type_, data)
        return oid

    def finish(self) -> NewTree:
        """Make trees from the leaves up; folders that became empty go."""
        for path in sorted(self.folders, key=lambda one: (-one.count(b"/"), one == b"")):
            entries = self.folders[path]
            if not path:
                break
            above, _, name = path.rpartition(b"/")
            if entries:
                oid = self.add(ObjectType.TREE, tree_bytes(entries.values()))
                self.folders[above][name] = TreeEntry(DIRECTORY, name, oid)
            else:
                self.folders[above].pop(name, None)
        root = self.add(ObjectType.TREE, tree_bytes(self.folders[b""].values()))
        return NewTree(root, tuple(self.objects.values()))


def tree_bytes(entries: Iterable[TreeEntry]) -> bytes:
    """Return a tree object: entries in git's order, folders sorted as if "/" stood behind them."""
    ordered = sorted(entries, key=lambda one: one.name + (b"/" if one.is_tree else b""))
    return b"".join(b"%o %s\0%s" % (one.mode, one.name, one.id) for one in ordered)


def check_path(path: bytes) -> None:
    """Raise InvalidArgument for a path that no tree should hold."""
    parts = path.split(b"/")
    if len(path) > PATH_MAX_BYTES or b"\0" in path:
        raise InvalidArgument("path is too long or holds a NUL", path=_text(path))
    if any(part in (b"", b".", b"..") or part.lower() == b".git" for part in parts):
        raise InvalidArgument("path has an impossible part", path=_text(path))


def person(text: bytes, *, seconds: int, zone: bytes = b"+0000") -> Signature:
    """Return who "Name <mail>" is, at a time. Errors: InvalidArgument."""
    found = parse_signature(text)
    if not found.name or b"<" not in text or not text.endswith(b">"):
        raise InvalidArgument("write a person as Name <mail>", text=_text(text))
    if _BAD_PERSON.search(found.name) or _BAD_PERSON.search(found.email):
        raise InvalidArgument("name or mail holds an impossible character", text=_text(text))
    if not _ZONE.fullmatch(zone) or not 0 <= seconds < 1 << 62:
        raise InvalidArgument("time is impossible", seconds=seconds, zone=_text(zone))
    return Signature(found.name.strip(), found.email.strip(), seconds, zone)


def commit_bytes(
    tree: ObjectId,
    parents: Sequence[ObjectId],
    *,
    author: Signature,
    committer: Signature,
    message: bytes,
) -> bytes:
    """Return a commit object; the message ends in a newline. Errors: InvalidArgument."""
    if b"\0" in message or len(message) > MESSAGE_MAX_BYTES:
        raise InvalidArgument("message is too long or holds a NUL", bytes=len(message))
    lines = [b"tree " + tree.hex().encode()]
    lines += [b"parent " + parent.hex().encode() for parent in parents]
    lines += [b"author " + _stamp(author), b"committer " + _stamp(committer), b""]
    end = b"" if message.endswith(b"\n") or not message else b"\n"
    return b"\n".join(lines) + b"\n" + message + end


def _stamp(one: Signature) -> bytes:
    return b"%s <%s> %d %s" % (one.name, one.email, one.seconds, one.zone)


def _text(raw: bytes) -> str:
    return raw[:400].decode("utf-8", "replace")
