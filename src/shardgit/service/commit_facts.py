"""What export-subst tells about a commit: short ids, the refs at it, what describes it."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from shardgit.archive.pretty import CommitFacts
from shardgit.oid import ObjectId, hex_of
from shardgit.service.fetch import shown_refs
from shardgit.service.reading import ShownReading
from shardgit.wildmatch import glob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.objects import Commit

ABBREVIATION_MIN = 7
CANDIDATES_MAX = 10  # as git describe
SHORT = ((b"refs/heads/", b""), (b"refs/tags/", b"tag: "), (b"refs/remotes/", b""))


class CommitReading(ShownReading):
    """Reads that tell of refs only those shown."""

    def facts(self, oid: ObjectId, commit: Commit) -> CommitFacts:
        """Return what is told of a commit, each thing found when it is asked for."""
        told: list[bytes] = []

        def describe(options: list[bytes]) -> bytes | None:
            if told:  # git describes once in an archive: it is dear
                return None
            told.append(b"")
            return self.describe(oid, options)

        return CommitFacts(oid, commit, self.abbreviated, lambda: self.decorations(oid), describe)

    def abbreviated(self, oid: ObjectId, least: int = 0) -> bytes:
        """Return the shortest start of an id that git would show and that names nothing else here."""
        count = int.from_bytes(self.reachable, "little").bit_count()
        length = least or max(ABBREVIATION_MIN, -(-count.bit_length() // 2))
        text = hex_of(oid)
        while length < len(text):
            if len(self._pool.find_prefix(text[:length], self.owns, limit=2)) <= 1:
                break
            length += 1
        return text[:length].encode()

    def decorations(self, oid: ObjectId) -> list[bytes]:
        """Return the refs at a commit as ``git log --decorate`` names them."""
        out: list[bytes] = []
        current = b""
        head = False
        with self.store.journal.snapshot() as snapshot:
            refs = shown_refs(self.store, snapshot, self.record, ())
        for ref in refs:
            if oid not in (ref.target, ref.peeled):
                continue
            if ref.name == b"HEAD":
                head, current = True, ref.symbolic or b""
                continue
            shown = ref.name
            for start, word in SHORT:
                if shown.startswith(start):
                    shown = word + shown[len(start) :]
                    break
            if ref.name == current:
                current = b"HEAD -> " + shown
                continue
            out.append(shown)
        out.reverse()
        if head:
            out.insert(0, current if current.startswith(b"HEAD -> ") else b"HEAD")
        return out

    # ---- describe ----

    def describe(self, oid: ObjectId, options: Sequence[bytes]) -> bytes:
        """Return what ``git describe`` would, b"" where no tag is reached."""
        words = [word.partition(b"=")[::2] for word in options]
        lightweight = any(key == b"tags" and value != b"false" for key, value in words)
        match = [value for key, value in words if key == b"match"]
        exclude = [value for key, value in words if key == b"exclude"]
        digits = next((int(v) for key, v in words if key == b"abbrev" and v.isdigit()), 0)
        plain = any(key == b"abbrev" and value == b"0" for key, value in words)
        names = self._tags(lightweight, match, exclude)
        at = self.position(oid)
        if at in names:
            return names[at]
        graph = self._pool.graph()
        best: tuple[int, int, bytes] | None = None
        for number, tag in enumerate(self._nearest(at, names)):
            depth = len(graph.split([at], [tag])[0])
            if best is None or (depth, number) < best[:2]:
                best = (depth, number, names[tag])
        if best is None:
            return b""
        short = self.abbreviated(oid, min(max(digits, 4), 40) if digits else 0)
        return best[2] if plain else b"%s-%d-g%s" % (best[2], best[0], short)

    def _tags(
        self, lightweight: bool, match: Sequence[bytes], exclude: Sequence[bytes]
    ) -> dict[int, bytes]:
        """Return tag names by the position of their commit; annotated ones go first."""
        with self.store.journal.snapshot() as snapshot:
            refs = shown_refs(self.store, snapshot, self.record, (b"refs/tags/",))
        found: dict[int, bytes] = {}
        for annotated in (False, True):
            some = [ref for ref in refs if (ref.peeled is not None) == annotated]
            if not annotated and not lightweight:
                continue
            ids = [ref.peeled or ref.target for ref in some]
            for ref, at in zip(some, self.positions([x for x in ids if x]), strict=True):
                name = ref.name.removeprefix(b"refs/tags/")
                meant = not match or any(glob(each, path=False).matches(name) for each in match)
                if meant and not any(glob(each, path=False).matches(name) for each in exclude):
                    found[at] = name
        return found

    def _nearest(self, start: int, names: dict[int, bytes]) -> list[int]:
        """Return up to ten tagged ancestors, those that a walk by date meets first."""
        graph = self._pool.graph()
        heap = [(-graph.date_at(start), start)]
        seen = {start}
        found: list[int] = []
        while heap and len(found) < CANDIDATES_MAX:
            _, at = heapq.heappop(heap)
            if at in names:
                found.append(at)
                continue
            for parent in graph.parents_at(at):
                if parent >= 0 and parent not in seen:
                    seen.add(parent)
                    heapq.heappush(heap, (-graph.date_at(parent), parent))
        return found
