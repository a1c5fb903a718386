"""Reads by id, revision and path, within what a repository's refs reach."""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, ObjectMissing, PathMissing, RefMissing
from shardgit.graph.closure import bit
from shardgit.objects import Commit, ObjectType, TreeEntry, parse_commit, parse_tree
from shardgit.oid import ObjectId, hex_of
from shardgit.pool.decoding import Decoding
from shardgit.service.look import Look, ShownLook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.pool.view import GitObject, ObjectInfo, PoolView

_HEX = re.compile(r"[0-9a-f]{4,64}")
_SUFFIX = re.compile(r"\^\{(\w*)\}|\^([0-9]{0,18}(?![0-9]))|~([0-9]{0,18}(?![0-9]))")
RULES = (
    "{}",
    "refs/{}",
    "refs/tags/{}",
    "refs/heads/{}",
    "refs/remotes/{}",
    "refs/remotes/{}/HEAD",
)
COMMITS_BATCH = 100
TREE_DEPTH_MAX = 4_096
TREE_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """A commit and its id."""

    id: ObjectId
    commit: Commit


class Reading(Look):
    """Reads of one repository. Methods run in the calling thread, a worker's."""

    @property
    def _pool(self) -> PoolView:
        if self.view is None:
            raise ObjectMissing("repository is empty", repository=self.record.name)
        return self.view

    def positions(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return positions of what the repository reaches or was given by id of late, -1 for all else."""
        return self.owned(ids)

    # ---- revisions ----

    def resolve(self, revision: str) -> int:
        """Return the position that a revision names.

        Takes ids, unique starts of ids, refs by git's rules, @, with ~N, ^N, ^{type} and :PATH behind. Errors:
        ObjectMissing, RefMissing, PathMissing, InvalidArgument.
        """
        text, colon, path = revision.partition(":")
        base = re.split(r"[\^~]", text, maxsplit=1)[0]
        position = self._base(base, revision)
        at = len(base)
        while at < len(text):
            step = _SUFFIX.match(text, at)
            if step is None:
                raise InvalidArgument("revision does not parse", revision=revision[:200])
            position = self._step(position, step, revision)
            at = step.end()
        return self.entry_at(position, path.encode())[0] if colon else position

    def _base(self, base: str, revision: str) -> int:
        if not base:
            raise InvalidArgument("revision is empty", revision=revision[:200])
        name = "HEAD" if base == "@" else base
        with self.store.journal.snapshot() as snapshot:
            if self.store.state(snapshot, self.record.name) != self.state:
                self._load(snapshot, self.record.name)
            target = self._ref_target(snapshot, name)
        if target is not None:
            return self.position(target)
        if _HEX.fullmatch(name):
            return self._abbreviated(name)
        raise RefMissing(
            "revision does not exist", revision=revision[:200], repository=self.record.name
        )

    def _ref_target(self, snapshot: JournalSnapshot, name: str) -> ObjectId | None:
        """Return what the first ref that git's rules give for a name leads to, None without one."""
        if len(name) == 2 * self.record.hash_kind.size and _HEX.fullmatch(name):
            return None
        for rule in RULES:
            full = rule.format(name)
            if full != "HEAD" and not full.startswith("refs/"):
                continue
            if self.hidden().hides(full.encode()):
                continue
            if self.store.refs.get(snapshot, self.record, full.encode()) is not None:
                return self.store.refs.resolve(snapshot, self.record, full.encode()).target
        return None

    def _abbreviated(self, text: str) -> int:
        if len(text) == 2 * self.record.hash_kind.size:
            return self.position(ObjectId(bytes.fromhex(text)))
        found = self._pool.find_prefix(text, self.owns) if self.view is not None else []
        positions = [at for at in self.positions(found) if at >= 0]
        if not positions:
            raise ObjectMissing("no object starts with that", id=text, repository=self.record.name)
        if len(positions) > 1:
            raise InvalidArgument(
                "short object id is ambiguous", id=text, repository=self.record.name
            )
        return positions[0]

    def _step(self, position: int, step: re.Match[str], revision: str) -> int:
        kind, parent, back = step.groups()
        if kind is not None:
            return self.peel(position, kind)
        commit = self.peel(position, "commit")
        graph = self._pool.graph()
        if back is not None:
            for _ in range(int(back or 1)):
                commit = self._parent(graph.parents_at(commit), 1, revision)
            return commit
        number = int(parent) if parent else 1
        return self._parent(graph.parents_at(commit), number, revision) if number else commit

    def _parent(self, parents: list[int], number: int, revision: str) -> int:
        if number > len(parents) or parents[number - 1] < 0:
            raise ObjectMissing("revision goes past the history's start", revision=revision[:200])
        return parents[number - 1]

    def peel(self, position: int, kind: str) -> int:
        """Return what a tag, or a commit, leads to of type ``kind`` ("" for the first that is no tag)."""
        graph = self._pool.graph()
        if kind in ("object", "tag") and (
            kind == "object" or graph.type_at(position) == ObjectType.TAG
        ):
            return position
        found = graph.peel(position)
        if found >= 0 and kind == "tree" and graph.type_at(found) == ObjectType.COMMIT:
            found = graph.tree_at(found)
        if found < 0 or (kind and ObjectType(graph.type_at(found)).git_name != kind):
            (info,) = self._pool.info([position])
            raise InvalidArgument(
                "object is of another type", oid=hex_of(info.id), wanted=kind or "object"
            )
        return found

    # ---- objects ----

    def objects(self, ids: Sequence[ObjectId]) -> list[GitObject | None]:
        """Return each object, None where the repository does not reach one."""
        positions = self.positions(ids)
        held = (
            iter(self._pool.read_positions([at for at in positions if at >= 0]))
            if self.view
            else iter(())
        )
        return [next(held) if at >= 0 else None for at in positions]

    def decoding(self, ids: Sequence[ObjectId], *, room: int, large: int) -> Decoding:
        """Return what makes messages of objects in the store's order; what the repository does not reach is absent."""
        return Decoding(self.view, ids, self.positions(ids), room=room, large=large)

    def infos(self, ids: Sequence[ObjectId]) -> list[ObjectInfo | None]:
        """Return id, type and size, None where the repository does not reach one."""
        positions = self.positions(ids)
        held = iter(self._pool.info([at for at in positions if at >= 0])) if self.view else iter(())
        return [next(held) if at >= 0 else None for at in positions]

    def all_infos(self) -> Iterator[list[ObjectInfo]]:
        """Return all that the refs reach, in clone order, a segment at a time."""
        for segment in self.view.segments if self.view else []:
            span = range(segment.base, segment.base + segment.entry.objects)
            some = [position for position in span if bit(self.reachable, position)]
            if some:
                yield self._pool.info(some)

    def stream(self, position: int) -> tuple[ObjectInfo, Iterator[bytes]]:
        """Return an object's facts and its bytes in pieces."""
        return self._pool.info([position])[0], self._pool.read_stream(position)

    # ---- trees ----

    def tree(self, position: int) -> list[TreeEntry]:
        """Return the entries of the tree that a commit, tag or tree leads to."""
        (found,) = self._pool.read_positions([self.peel(position, "tree")])
        return parse_tree(found.data, self.record.hash_kind)

    def entry_at(self, position: int, path: bytes) -> tuple[int, int]:
        """Return (position, mode) of what stands at a path; PathMissing without."""
        at, mode = self.peel(position, "tree"), 0o40000
        for part in (part for part in path.split(b"/") if part):
            entry = None
            if self._pool.graph().type_at(at) == ObjectType.TREE:
                entry = next((one for one in self.tree(at) if one.name == part), None)
            if entry is None:
                raise PathMissing("path does not exist", path=path.decode("utf-8", "replace")[:400])
            if entry.mode == 0o160000:
                raise PathMissing(
                    "path is in a submodule", path=path.decode("utf-8", "replace")[:400]
                )
            at, mode = self.position(entry.id), entry.mode
        return at, mode

    def walk_tree(
        self, position: int, *, recursive: bool
    ) -> Iterator[list[tuple[bytes, TreeEntry]]]:
        """Return (path, entry) rows; ``recursive`` enters folders and leaves them out, as git ls-tree -r does."""
        stack = [(b"", iter(self.tree(position)))]
        rows: list[tuple[bytes, TreeEntry]] = []
        while stack:
            prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
            elif recursive and entry.is_tree:
                if len(stack) == TREE_DEPTH_MAX:
                    raise InvalidArgument("tree is too deep", limit=TREE_DEPTH_MAX)
                stack.append((prefix + entry.name + b"/", iter(self.tree(self.position(entry.id)))))
            else:
                rows.append((prefix + entry.name, entry))
            if len(rows) == TREE_BATCH:
                yield rows
                rows = []
        yield rows

    # ---- commits ----

    def commits(self, positions: Sequence[int]) -> list[CommitInfo]:
        """Return commits."""
        kind = self.record.hash_kind
        return [
            CommitInfo(one.id, parse_commit(one.data, kind))
            for one in self._pool.read_positions(positions)
        ]

    def log(
        self, revisions: Sequence[str], *, limit: int | None = None
    ) -> Iterator[list[CommitInfo]]:
        """Return history by falling committer date, as git log does; ^REV leaves out what REV reaches."""
        wants = [
            self.peel(self.resolve(text), "commit")
            for text in revisions
            if not text.startswith("^")
        ]
        haves = [
            self.peel(self.resolve(text[1:]), "commit")
            for text in revisions
            if text.startswith("^")
        ]
        graph = self._pool.graph()
        allowed = set(graph.split(wants, haves)[0]) if haves else None
        seen: set[int] = set()
        heap: list[tuple[int, int, int]] = []
        for want in wants:
            if want not in seen and (allowed is None or want in allowed):
                seen.add(want)
                heapq.heappush(heap, (-graph.date_at(want), len(seen), want))
        batch: list[int] = []
        left = limit if limit else -1
        while heap and left:
            _, _, at = heapq.heappop(heap)
            batch.append(at)
            left -= 1
            for parent in graph.parents_at(at):
                if parent >= 0 and parent not in seen and (allowed is None or parent in allowed):
                    seen.add(parent)
                    heapq.heappush(heap, (-graph.date_at(parent), len(seen), parent))
            if len(batch) == COMMITS_BATCH:
                yield self.commits(batch)
                batch = []
        if batch:
            yield self.commits(batch)

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Return whether ``descendant`` is or reaches ``ancestor``."""
        a, b = (self.peel(self.resolve(text), "commit") for text in (ancestor, descendant))
        return self._pool.graph().is_ancestor(a, b)

    def merge_bases(self, first: str, second: str) -> list[ObjectId]:
        """Return the best common ancestors, those of later date first."""
        a, b = (self.peel(self.resolve(text), "commit") for text in (first, second))
        graph = self._pool.graph()
        if graph.is_ancestor(a, b):
            return self._pool.ids_at([a])
        if graph.is_ancestor(b, a):
            return self._pool.ids_at([b])
        # A best common ancestor has a child that only one side reaches, so it stands on that side's border.
        _, border = graph.split([a], [b])
        best: list[int] = []
        for candidate in sorted(border, key=graph.generation_at, reverse=True):
            if not any(graph.is_ancestor(candidate, kept) for kept in best):
                best.append(candidate)
        return self._pool.ids_at(sorted(best, key=graph.date_at, reverse=True))


class ShownReading(ShownLook, Reading):
    """Reads for those who fetch: hidden refs name and reach nothing."""
