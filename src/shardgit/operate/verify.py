"""repo verify: fsck of one repository, in git's words, over the store's own structures as well.

Every object of the pool is made and its id computed, every index row and every link is followed; what the repository
reaches is held against git's fsck messages; refs must lead to objects of the right type, and the ref log must end at
the refs. Objects are read once, a segment at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit._bits import union
from shardgit._fastpack import object_ids, tree_children, watched_id
from shardgit.errors import DataLoss, ShardgitError
from shardgit.fsck import FsckConfig, Special, check_object, check_special, git_line
from shardgit.graph.closure import bit, closure
from shardgit.objects import object_id, parse_commit, parse_tag, parse_tree
from shardgit.oid import HashKind, ObjectId, hex_of, oid_of
from shardgit.operate.repository_refs import PoolTips, check_log, check_refs, tips_of_pool
from shardgit.pool.grafts import parents_in
from shardgit.pool.manifest import ALONE
from shardgit.progress import Progress, Report, silent
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit.fsck import Finding
    from shardgit.operate.operation import Control
    from shardgit.pool.view import GitObject, ObjectInfo, PlacedSegment, PoolView
    from shardgit.service.store import RepositoryState, Store

BATCH_OBJECTS = 1_024
BATCH_BYTES = 32 << 20
KNOWN_MAX = 1 << 20  # ids that were found a moment ago
FINDINGS_MAX = 10_000
COMMIT, TREE, BLOB, TAG = 1, 2, 3, 4
NAMES = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
DAMAGE = frozenset({"damaged", "missing", "broken_link", "wrong_index", "bad_ref", "bad_log"})


@dataclass(frozen=True, slots=True)
class RepositoryFinding:
    """Something that fsck says.

    ``kind`` is one of DAMAGE, "dangling", "unborn", "collision_attack" or a message id of git's fsck.
    """

    severity: str  # error, warning or notice
    kind: str
    line: str
    object: str = ""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was verified, and what was found: the first ones, and all counted by severity."""

    repository: str
    objects: int
    segments: int
    refs: int
    log_entries: int
    findings: tuple[RepositoryFinding, ...]
    counts: dict[str, int]
    seconds: float

    @property
    def bad(self) -> tuple[str, ...]:
        """What is damaged or missing, fsck's opinions of sound objects left out."""
        return tuple(one.line for one in self.findings if one.kind in DAMAGE)

    @property
    def clean(self) -> bool:
        """Whether there is no error, fsck's among them."""
        return not self.counts.get("error")


def verify_repository(
    store: Store, name: str, *, progress: Report = silent, control: Control | None = None
) -> VerifyReport:
    """Verify one repository and the pool that holds its objects.

    Errors: RepositoryMissing, DataLoss when blocks are missing so that the pool does not open, Stopped.
    """
    return _Verify(store, name, progress, control).run()


class _Verify:
    def __init__(self, store: Store, name: str, progress: Report, control: Control | None) -> None:
        self.store = store
        self.name = name
        self.progress = control.report if control is not None else progress
        self.control = control
        self.findings: list[RepositoryFinding] = []
        self.counts: Counter[str] = Counter()
        self.detect = False  # SHA-1 collision attacks
        self.special: dict[tuple[int, bytes], None] = {}
        self.missing: set[bytes] = set()
        self.known: set[bytes] = set()
        self.named = bytearray()  # positions that an unreachable object links to

    def told(self, severity: str, kind: str, line: str, oid: bytes | None = None) -> None:
        """Take a finding."""
        self.counts[severity] += 1
        if len(self.findings) < FINDINGS_MAX:
            text = oid.hex() if oid is not None else ""
            self.findings.append(RepositoryFinding(severity, kind, line, text))

    def run(self) -> VerifyReport:
        begun = time.monotonic()
        store = self.store
        with store.journal.snapshot() as snapshot:
            state = store.state(snapshot, self.name)
            refs = list(store.refs.list(snapshot, state.record))
            head = store.refs.get(snapshot, state.record, b"HEAD")
            tips = tips_of_pool(store, snapshot, state.record)
        view = store.view(state.pool)
        log_entries = check_log(store, state.record, refs, self.told)
        check_refs(view, refs, head, self.told)
        if view is not None:
            self._objects(state, view, tips)
        segments = view.segments if view is not None else []
        return VerifyReport(
            self.name,
            view.objects if view else 0,
            len(segments),
            len(refs),
            log_entries,
            tuple(self.findings),
            dict(self.counts),
            time.monotonic() - begun,
        )

    # ---- objects ----

    def _objects(self, state: RepositoryState, view: PoolView, tips: PoolTips) -> None:
        kind = state.record.hash_kind
        self.detect = self.store.detects_always and kind is HashKind.SHA1
        asked = settings_of(state.record).fsck
        skip = [oid_of(text, kind) for text in asked.skip_list if len(text) == 2 * kind.size]
        self.config = FsckConfig.parse(asked.severities, skip, strict=False)
        self.tips = tips
        mine = self._closure(view, tips.own)
        everybody = mine
        for grafts, named in tips.by_grafts:
            theirs = (
                self._closure(view.with_grafts(grafts), named) if everybody is not None else None
            )
            everybody = (
                union(everybody, theirs) if everybody is not None and theirs is not None else None
            )
        self.named = bytearray(-(-view.objects // 8))
        done = 0
        for segment in sorted(view.segments, key=lambda one: one.base):
            self._segment(view, segment, mine, everybody)
            done += segment.entry.objects
            self.progress(Progress("verifying objects", done, view.objects, "objects"))
            if self.control is not None:
                self.control.pace(segment.entry.entry_bytes)
        self._specials(view)
        if everybody is not None:
            self._dangling(view, everybody)

    def _closure(self, view: PoolView, tips: frozenset[ObjectId]) -> bytes | None:
        """Return what tips reach; None when that cannot be told."""
        positions = [at for at in view.positions(sorted(tips)) if at >= 0]
        try:
            return closure(view, positions)
        except DataLoss as error:
            self.told("error", "damaged", f"error: cannot follow all links: {error}")
            return None

    def _segment(
        self,
        view: PoolView,
        segment: PlacedSegment,
        mine: bytes | None,
        everybody: bytes | None,
    ) -> None:
        positions = range(segment.base, segment.base + segment.entry.objects)
        try:
            infos = view.info(positions)
        except DataLoss as error:
            where = f"segment {segment.entry.serial}, {segment.entry.objects} objects"
            self.told("error", "damaged", f"error: {where}: {error}")
            return
        if segment.entry.flags & ALONE or infos[0].size > view.limits.object_memory_max_bytes:
            for position, info in zip(positions, infos, strict=True):
                self._large(view, position, info)
            return
        self._index(view, positions, infos)
        for some in _batches(positions, infos):
            found = list(self._read(view, some, infos, segment.base))
            types, objects = [one.type for _, one in found], [one.data for _, one in found]
            attacks: list[int] = []
            made = object_ids(view.hash_kind, types, objects, 0, attacks if self.detect else None)
            for number in attacks:
                self._attack(found[number][1].id)
            for (position, one), oid in zip(found, made, strict=True):
                if oid != one.id:
                    line = f"error: {hex_of(one.id)}: hash mismatch"
                    self.told("error", "damaged", line, one.id)
                    continue
                reached = mine is None or bit(mine, position)
                if reached:
                    self._fsck(view, one)
                loose = everybody is not None and not bit(everybody, position)
                self._links(view, one, loose=loose)

    def _read(
        self, view: PoolView, some: range, infos: list[ObjectInfo], base: int
    ) -> Iterator[tuple[int, GitObject]]:
        try:
            yield from zip(some, view.read_positions(some), strict=True)
        except ShardgitError:
            for position in some:
                try:
                    (one,) = view.read_positions([position])
                except ShardgitError as error:
                    oid = infos[position - base].id
                    line = f"error: {hex_of(oid)}: object corrupt or missing: {error}"
                    self.told("error", "damaged", line, oid)
                else:
                    yield position, one

    def _large(self, view: PoolView, position: int, info: ObjectInfo) -> None:
        try:
            pieces = view.read_stream(position)
            if self.detect:
                raw, attack = watched_id(info.type, pieces, info.size)
                made = ObjectId(raw)
                if attack:
                    self._attack(info.id)
            else:
                made = object_id(info.type, pieces, info.size, view.hash_kind)
        except ShardgitError as error:
            line = f"error: {hex_of(info.id)}: object corrupt or missing: {error}"
            self.told("error", "damaged", line, info.id)
            return
        if made != info.id:
            line = f"error: {hex_of(info.id)}: hash mismatch"
            self.told("error", "damaged", line, info.id)
        self._index(view, range(position, position + 1), [info])

    def _attack(self, oid: ObjectId) -> None:
        line = f"error: {hex_of(oid)}: looks like a SHA-1 collision attack"
        self.told("error", "collision_attack", line, oid)

    def _index(self, view: PoolView, positions: range, infos: list[ObjectInfo]) -> None:
        """Look every object up by its id: the index must lead to where it is."""
        try:
            found = view.positions([info.id for info in infos])
        except DataLoss as error:
            self.told("error", "wrong_index", f"error: index cannot be read: {error}")
            return
        for position, info, at in zip(positions, infos, found, strict=True):
            if at != position:
                line = f"error: {hex_of(info.id)}: index leads to position {at}, not {position}"
                self.told("error", "wrong_index", line, info.id)

    # ---- what an object says ----

    def _fsck(self, view: PoolView, one: GitObject) -> None:
        findings, special = check_object(view.hash_kind, one.type, one.data, self.config)
        for finding in findings:
            self._opinion(NAMES[one.type], one.id, finding)
        for kind_of, oid in special:
            self.special[int(kind_of), oid] = None

    def _specials(self, view: PoolView) -> None:
        for number, oid in self.special:
            special = Special(number)
            (at,) = view.positions([ObjectId(oid)])
            type_: int | None = None
            data: bytes | None = None
            if at >= 0:
                (info,) = view.info([at])
                type_ = info.type
                if type_ == BLOB and info.size <= special.max_bytes:
                    data = view.read_positions([at])[0].data
            for finding in check_special(special, type_, data):
                self._opinion(NAMES[type_ or BLOB], ObjectId(oid), finding)

    def _opinion(self, type_name: str, oid: ObjectId, finding: Finding) -> None:
        if self.config.tells(finding.message, oid):
            severity = self.config.severity(finding.message)
            word, line = git_line(type_name, oid, finding, severity)
            self.told(word, finding.name, line, oid)

    def _links(self, view: PoolView, one: GitObject, *, loose: bool) -> None:
        """Follow an object's links; ``loose`` is one that nothing reaches: what it names does not dangle."""
        size = view.hash_kind.size
        try:
            links = (
                tree_children(one.data, size)
                if one.type == TREE
                else [oid for _, oid in _links_of(view, one)]
            )
        except ShardgitError:
            return  # fsck has told why
        wanted = [ObjectId(oid) for oid in links if loose or oid not in self.known]
        if not wanted:
            return
        if len(self.known) > KNOWN_MAX:
            self.known.clear()
        for oid, at in zip(wanted, view.positions(wanted), strict=True):
            if at < 0:
                self._broken(view, one, oid)
                continue
            self.known.add(oid)
            if loose:
                self.named[at >> 3] |= 1 << (at & 7)

    def _broken(self, view: PoolView, one: GitObject, oid: ObjectId) -> None:
        if (
            one.type == COMMIT
            and self.tips.is_graft(one.id)
            and oid in parents_in(one.data, view.hash_kind)
        ):
            return
        types = {target: NAMES[type_] for type_, target in _links_of(view, one)}
        source, target = NAMES[one.type], types.get(oid, "object")
        line = f"broken link from {source:>7} {hex_of(one.id)}\n"
        line += f"              to {target:>7} {oid.hex()}"
        self.told("error", "broken_link", line, one.id)
        if oid not in self.missing:
            self.missing.add(oid)
            self.told("error", "missing", f"missing {target} {oid.hex()}", oid)

    def _dangling(self, view: PoolView, everybody: bytes) -> None:
        named = bytes(self.named)
        for base in range(0, view.objects, 8):
            byte = everybody[base >> 3] if base >> 3 < len(everybody) else 0
            if byte | named[base >> 3] == 0xFF:
                continue
            for position in range(base, min(base + 8, view.objects)):
                if bit(everybody, position) or bit(named, position):
                    continue
                (info,) = view.info([position])
                line = f"dangling {NAMES[info.type]} {hex_of(info.id)}"
                self.told("notice", "dangling", line, info.id)


def _links_of(view: PoolView, one: GitObject) -> list[tuple[int, bytes]]:
    """Return (type, id) of what an object names, submodules left out."""
    if one.type == COMMIT:
        commit = parse_commit(one.data, view.hash_kind)
        return [(TREE, commit.tree), *((COMMIT, parent) for parent in commit.parents)]
    if one.type == TAG:
        tag = parse_tag(one.data, view.hash_kind)
        return [(int(tag.type), tag.target)]
    if one.type == TREE:
        entries = parse_tree(one.data, view.hash_kind)
        return [
            (TREE if entry.is_tree else BLOB, entry.id)
            for entry in entries
            if entry.mode & 0o170000 != 0o160000
        ]
    return []


def _batches(positions: range, infos: list[ObjectInfo]) -> Iterator[range]:
    """Cut positions into runs of up to BATCH_OBJECTS objects and BATCH_BYTES."""
    start = held = 0
    for number, info in enumerate(infos):
        if number > start and (held + info.size > BATCH_BYTES or number - start == BATCH_OBJECTS):
            yield positions[start:number]
            start, held = number, 0
        held += info.size
    if start < len(infos):
        yield positions[start:]
