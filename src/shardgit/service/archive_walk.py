"""What goes into an archive: the tree found, its entries in git's order, files read in batches."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from shardgit.archive.convert import Conversion, conversion
from shardgit.archive.pathspec import Pathspec
from shardgit.archive.pretty import Budget, expand
from shardgit.attributes import Attributes, AttributesFile, parse_attributes
from shardgit.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PathMissing,
    RefMissing,
)
from shardgit.objects import DIRECTORY, GITLINK, ObjectType, TreeEntry, parse_commit, parse_tree
from shardgit.oid import ObjectId, hex_of
from shardgit.service.commit_facts import CommitReading
from shardgit.service.reading import TREE_DEPTH_MAX
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.protocol.upload_archive import ArchiveRequest
    from shardgit.service.store import Store

ATTRIBUTES_NAME = b".gitattributes"
LINK, FILE = 0o120000, 0o100000
BATCH_ENTRIES = 512
BATCH_BYTES = 4 << 20
ATTRIBUTES_MAX_BYTES = 1 << 20  # of one file, parsed; git's bound of 100 MiB is no use to anybody


@dataclass(slots=True)
class Entry:
    """What stands at a path in the archive; ``data`` is None for a file that is streamed."""

    path: bytes
    mode: int
    id: ObjectId
    position: int = -1
    size: int = 0
    data: bytes | None = None
    conversion: Conversion = field(default_factory=Conversion)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.mode & 0o170000 == FILE

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode & 0o170000 == LINK


@dataclass(slots=True)
class _Folder:
    """A folder that is walked: where it is, what is left of it, whether its entry is out."""

    path: bytes
    id: ObjectId
    rows: Iterator[tuple[TreeEntry, int]]
    attributes: Attributes
    told: bool


class ArchiveWalk(CommitReading):
    """One archive's look at its repository. Runs in the calling thread, a worker's.

    Errors of making one: RepositoryMissing, RefMissing, InvalidArgument, in git's words.
    """

    def __init__(self, store: Store, name: str, request: ArchiveRequest) -> None:
        super().__init__(store, name)
        self.request = request
        self._paths = Pathspec(request.paths)
        self._settings = settings_of(self.record)
        treeish = request.treeish.decode("utf-8", "replace")
        position = self._found(treeish)
        self.commit_hex = b""
        self.time = int(time.time())
        self._commit = -1
        try:
            self._commit = self.peel(position, "commit")
        except InvalidArgument:
            pass
        else:
            (info,) = self._pool.info([self._commit])
            self.commit_hex = hex_of(info.id).encode()
            (found,) = self._pool.read_positions([self._commit])
            commit = parse_commit(found.data, self.record.hash_kind)
            self.time = commit.committer.seconds
            self._facts = self.facts(info.id, commit)
        if request.mtime is not None:
            self.time = request.mtime
        try:
            self._root = self.peel(position, "tree")
        except InvalidArgument as cause:
            (info,) = self._pool.info([position])
            raise InvalidArgument(f"not a tree object: {hex_of(info.id)}") from cause

    def _found(self, treeish: str) -> int:
        """Return the position that a tree-ish names: a ref with or without a path behind it, and
        any revision where the settings say so.
        """
        name = treeish.partition(":")[0]
        if not self._settings.fetch.archive_unreachable:
            target: ObjectId | None = None
            with self.store.journal.snapshot() as snapshot, suppress(RefMissing):
                target = self._ref_target(snapshot, name)
            if target is None:
                raise RefMissing(f"no such ref: {name[:200]}")
        try:
            return self.resolve(treeish)
        except (NotFound, InvalidArgument) as cause:
            raise InvalidArgument(f"not a valid object name: {treeish[:200]}") from cause

    # ---- paths ----

    def check_paths(self) -> None:
        """Raise PathMissing, in git's words, for a path that names nothing in the tree."""
        for text in self.request.paths:
            one = Pathspec([text])
            if one.items and not self._any(one):
                shown = text.decode("utf-8", "replace")[:200]
                raise PathMissing(f"pathspec '{shown}' did not match any files")

    def _any(self, spec: Pathspec) -> bool:
        stack = [(b"", self._rows(self._root))]
        while stack:
            base, rows = stack[-1]
            row = next(rows, None)
            if row is None:
                stack.pop()
                continue
            entry, position = row
            path = base + entry.name
            if spec.matches(path):
                return True
            if entry.is_tree and spec.enters(path):
                self._deep(len(stack))
                stack.append((path + b"/", self._rows(position)))
        return False

    @staticmethod
    def _deep(depth: int) -> None:
        if depth >= TREE_DEPTH_MAX:
            raise InvalidArgument("tree is too deep", limit=TREE_DEPTH_MAX)

    def _rows(self, tree: int) -> Iterator[tuple[TreeEntry, int]]:
        """Return a tree's entries with their positions, -1 for submodules."""
        (found,) = self._pool.read_positions([tree])
        entries = parse_tree(found.data, self.record.hash_kind)
        kept = [entry for entry in entries if _kind(entry.mode) != GITLINK]
        positions = iter(self._pool.positions([entry.id for entry in kept]))
        for entry in entries:
            yield entry, (-1 if _kind(entry.mode) == GITLINK else next(positions))

    # ---- entries ----

    def entries(self) -> Iterator[Entry]:
        """Return what the archive holds, in order; small files with their data."""
        prefix = self.request.prefix
        if prefix.endswith(b"/"):
            (info,) = self._pool.info([self._root])
            yield Entry(prefix.rstrip(b"/") + b"/", 0o40777, info.id)
        batch: list[Entry] = []
        for entry in self._walk():
            batch.append(entry)
            if len(batch) == BATCH_ENTRIES:
                yield from self._filled(batch)
                batch = []
        yield from self._filled(batch)

    def _walk(self) -> Iterator[Entry]:
        """Return entries without data; a folder's comes with the first thing in it."""
        stack = [self._folder(b"", ObjectId(b""), self._root, Attributes(), told=True)]
        while stack:
            folder = stack[-1]
            row = next(folder.rows, None)
            if row is None:
                stack.pop()
                continue
            entry, position = row
            path = folder.path + entry.name
            mode = _canonical(entry.mode)
            if mode == DIRECTORY:
                if not self._enters(path, folder.attributes):
                    continue
                self._deep(len(stack))
                stack.append(
                    self._folder(path + b"/", entry.id, position, folder.attributes, told=False)
                )
                continue
            if not self._paths.matches(path):
                continue
            for above in stack:
                if not above.told:  # as in git, even when what follows is ignored
                    above.told = True
                    yield Entry(self.request.prefix + above.path, DIRECTORY, above.id)
            says = folder.attributes.of(path, folder=mode == GITLINK)
            if says.get(b"export-ignore") is True:
                continue
            if position < 0 and mode != GITLINK:
                raise DataLoss("pool lacks an object that a tree names", oid=hex_of(entry.id))
            end = b"/" if mode == GITLINK else b""
            made = conversion(says) if mode & 0o170000 == FILE else Conversion()
            yield Entry(self.request.prefix + path + end, mode, entry.id, position, conversion=made)

    def _enters(self, path: bytes, attributes: Attributes) -> bool:
        if not (self._paths.enters(path) or self._paths.matches(path)):
            return False
        return attributes.of(path, folder=True).get(b"export-ignore") is not True

    def _folder(
        self, path: bytes, oid: ObjectId, tree: int, above: Attributes, *, told: bool
    ) -> _Folder:
        if tree < 0:
            raise DataLoss("pool lacks an object that a tree names", oid=hex_of(oid))
        rows = list(self._rows(tree))
        file: AttributesFile | None = None
        if self.request.attributes:
            for entry, position in rows:
                if entry.name == ATTRIBUTES_NAME and position >= 0 and not entry.is_tree:
                    file = self._attributes_file(position)
        attributes = above.inside(path, file) if path else Attributes(file)
        return _Folder(path, oid, iter(rows), attributes, told)

    def _attributes_file(self, position: int) -> AttributesFile | None:
        (info,) = self._pool.info([position])
        if info.type != ObjectType.BLOB or info.size > ATTRIBUTES_MAX_BYTES:
            return None
        return parse_attributes(self._pool.read_positions([position])[0].data)

    # ---- files ----

    def _filled(self, batch: list[Entry]) -> Iterator[Entry]:
        """Return entries with sizes, and with data where they are small or must be changed."""
        held = [entry for entry in batch if entry.position >= 0]
        for entry, info in zip(
            held, self._pool.info([entry.position for entry in held]), strict=True
        ):
            entry.size = info.size
        waiting: list[Entry] = []
        total = 0
        for entry in batch:
            if waiting and total + entry.size > BATCH_BYTES:
                yield from self._read(waiting)
                waiting, total = [], 0
            waiting.append(entry)
            total += entry.size
        yield from self._read(waiting)

    def _read(self, entries: list[Entry]) -> list[Entry]:
        wanted = [entry for entry in entries if entry.position >= 0 and self._whole(entry)]
        found = self._pool.read_positions([entry.position for entry in wanted])
        for entry, blob in zip(wanted, found, strict=True):
            data = blob.data
            if entry.conversion:
                subst = partial(self._subst, Budget()) if self._commit >= 0 else None
                data = entry.conversion.apply(data, hex_of(entry.id).encode(), subst)
            entry.data, entry.size = data, len(data)
        return entries

    def _whole(self, entry: Entry) -> bool:
        """Return whether a file is read at once. What attributes change is, up to a bound."""
        if entry.size <= BATCH_BYTES:
            return True
        most = self.store.limits.object_memory_max_bytes
        return entry.size <= most and (bool(entry.conversion) or not entry.is_file)

    def _subst(self, budget: Budget, form: bytes) -> bytes:
        return expand(form, self._facts, budget)

    def stream_of(self, entry: Entry) -> Iterator[bytes]:
        """Return a file's bytes in pieces."""
        return self._pool.read_stream(entry.position)


def _kind(mode: int) -> int:
    return _canonical(mode) & 0o170000


def _canonical(mode: int) -> int:
    """Return a mode as git reads it from a tree."""
    kind = mode & 0o170000
    if kind == FILE:
        return 0o100755 if mode & 0o100 else 0o100644
    return kind if kind in (LINK, DIRECTORY) else GITLINK
