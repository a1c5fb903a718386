"""One fetch's look at its repository: wants checked, haves weighed, the pack planned."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from shardgit._bits import without
from shardgit.errors import InvalidArgument, LimitExceeded, NotFound, ObjectMissing, RefMissing
from shardgit.graph.closure import bit, bits_of
from shardgit.graph.selection import Sieve, selection
from shardgit.graph.shallow import Boundary, moved, reached_grafts
from shardgit.graph.sparse import Patterns
from shardgit.oid import ObjectId, hex_of
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.protocol.filter_spec import FilterKind
from shardgit.protocol.packfile_uris import PackUri, packfile_uris
from shardgit.protocol.upload_pack import shown
from shardgit.protocol.upload_pack_v0 import NegotiationV0, shallow_lines
from shardgit.protocol.upload_pack_v2 import (
    acknowledgments,
    section_line,
    shallow_info,
    wanted_refs,
)
from shardgit.service.look import ShownLook
from shardgit.service.reading import ShownReading
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.protocol.upload_pack import Fetch
    from shardgit.service.hiding import HiddenRefs
    from shardgit.service.static_packs import StaticPack
    from shardgit.service.store import Store

COMMIT, BLOB, TAG = 1, 3, 4
_REF_RULES = (
    (b"", b""),
    (b"refs/", b""),
    (b"refs/tags/", b""),
    (b"refs/heads/", b""),
    (b"refs/remotes/", b""),
    (b"refs/remotes/", b"/HEAD"),
)
WEIGHED_EACH_MAX = 256
NAMED_EACH_MAX = 256  # with more wanted by name, all refs are read at once


class FetchSession(ShownLook):
    """One request on one consistent look at a repository. Runs in the calling thread, a worker's.

    Errors of making one: RepositoryMissing; ObjectMissing, in git's words, for a want that the
    repository's shown refs do not reach, whether or not the pool has it; RefMissing for a ref that
    is wanted by name; InvalidArgument for shallow ids and refs that mean nothing.
    """

    def __init__(self, store: Store, name: str, request: Fetch) -> None:
        self.request = request
        self.tags: list[ObjectId] = []
        self.wanted_refs: list[tuple[bytes, ObjectId]] = []
        self._without: list[ObjectId] = []
        self._hidden_tips: set[ObjectId | None] = set()
        self._shown_tips: set[ObjectId | None] | None = None  # None: any that is reachable
        self.follows_its_look = True  # what may be fetched, by one look at the journal
        super().__init__(store, name)
        ids = dict.fromkeys([*request.wants, *(oid for _, oid in self.wanted_refs)])
        self.wants = self._wanted(list(ids))
        for oid, position in zip(ids, self.wants, strict=True):
            if position < 0:
                raise ObjectMissing(f"upload-pack: not our ref {hex_of(oid)}")
        self._check_shown(request)
        self.client_ends = self._client_ends()
        self.common: dict[ObjectId, int] = {}  # haves that were news, by id
        self._they_have: set[int] = set()
        self._weighed = (-1, False)  # commons at the last weighing, and how it ended
        self._talk = NegotiationV0(request, self._enough)
        self.static: StaticPack | None = None  # a pack that the client fetches by its URI
        self._elsewhere: set[int] = set()  # objects that it fetches by URIs that settings name

    def _wanted(self, ids: Sequence[ObjectId]) -> list[int]:
        """Return the positions of wants, -1 for what may not be fetched."""
        places = self.positions(ids)
        hidden = self.hidden()
        absent = {oid for oid, at in zip(ids, places, strict=True) if at < 0}
        if not absent or not hidden or not settings_of(self.record).fetch.hidden_wants:
            return places
        self.follows_its_look = False
        with self.store.journal.snapshot() as snapshot:
            refs = self.store.refs.list(snapshot, self.record)
            self._hidden_tips = {
                ref.target for ref in refs if ref.target in absent and hidden.hides(ref.name)
            }
        return [
            whole if oid in self._hidden_tips else at
            for oid, at, whole in zip(ids, places, self._anywhere(ids), strict=True)
        ]

    def _anywhere(self, ids: Sequence[ObjectId]) -> list[int]:
        return self.view.positions(ids) if self.view is not None else [-1] * len(ids)

    def _check_shown(self, request: Fetch) -> None:
        """Refuse ids that no ref shows, in v0 and where settings say so."""
        if self._shown_tips is None:
            return
        for oid in request.wants:
            if oid not in self._shown_tips and oid not in self._hidden_tips:
                raise ObjectMissing(f"upload-pack: not our ref {hex_of(oid)}")

    def _shown(self, snapshot: JournalSnapshot) -> set[ObjectId | None] | None:
        """Return what refs show, None where a client may ask for all that they reach."""
        if self.request.version == 2 or settings_of(self.record).fetch.allow_reachable_wants:
            return None
        hidden = self.hidden()
        refs = self.store.refs.list(snapshot, self.record)
        head = self.store.refs.get(snapshot, self.record, b"HEAD")
        tips = {ref.target for ref in refs if not hidden.hides(ref.name)}
        return tips | ({head.target} if head is not None else set())

    def _load(self, snapshot: JournalSnapshot, name: str) -> None:
        super()._load(snapshot, name)
        self._shown_tips = self._shown(snapshot)
        refs, hidden = self.store.refs, self.hidden()
        if self.request.include_tag:
            tags = refs.list(snapshot, self.record, prefixes=(b"refs/tags/",))
            self.tags = [
                ref.target
                for ref in tags
                if ref.peeled and ref.target and not hidden.hides(ref.name)
            ]
        self.wanted_refs = self._named(snapshot, hidden, self.request.want_refs)
        self._without = [
            self._expanded(snapshot, hidden, each) for each in self.request.deepening.without
        ]

    def _named(
        self, snapshot: JournalSnapshot, hidden: HiddenRefs, names: Sequence[bytes]
    ) -> list[tuple[bytes, ObjectId]]:
        """Return what refs that are wanted by name lead to."""
        refs = self.store.refs
        known: dict[bytes, ObjectId | None] = {}
        if len(names) > NAMED_EACH_MAX:
            known = {ref.name: ref.target for ref in refs.list(snapshot, self.record)}
        found = []
        for name in names:
            target = None
            if not hidden.hides(name):
                target = known.get(name)
                with suppress(RefMissing):
                    target = target or refs.resolve(snapshot, self.record, name).target
            if target is None:
                raise RefMissing(f"unknown ref {shown(name)}")
            found.append((name, target))
        return found

    def _expanded(self, snapshot: JournalSnapshot, hidden: HiddenRefs, name: bytes) -> ObjectId:
        """Return what a short name of a ref leads to, by git's rules; it must be one ref's only."""
        found: list[ObjectId] = []
        for start, end in _REF_RULES:
            full = start + name + end
            if (full == b"HEAD" or full.startswith(b"refs/")) and not hidden.hides(full):
                with suppress(RefMissing):
                    target = self.store.refs.resolve(snapshot, self.record, full).target
                    found += [target] if target is not None else []
        if len(found) != 1:
            wrong = "ambiguous deepen-not" if found else "deepen-not is not a ref"
            raise InvalidArgument(f"git upload-pack: {wrong}: deepen-not {shown(name)}")
        return found[0]

    # ---- the shallow boundary ----

    def _client_ends(self) -> list[int]:
        """Return the commits that end the client's history; what the repository lacks ends nothing here."""
        ids = self.request.deepening.shallows
        out = []
        for oid, position in zip(ids, self.positions(ids), strict=True):
            if position >= 0 and self.view is not None:
                if self.view.graph().type_at(position) != COMMIT:
                    raise InvalidArgument(f"invalid shallow object {hex_of(oid)}")
                out.append(position)
        return out

    @cached_property
    def boundary(self) -> Boundary:
        """Where the client's history ends, and shall end. Errors: InvalidArgument when nothing would be left."""
        if self.view is None:
            return Boundary()
        return moved(
            self.view.graph(),
            self._commits(self.wants),
            self.client_ends,
            self.request.deepening,
            self._commits(at for at in self.positions(self._without) if at >= 0),
            grafts=self.view.cut if self.view.grafts else (),
        )

    def _ends(self) -> tuple[list[ObjectId], list[ObjectId]]:
        """Return the ids to tell of: (history ends here now, it does not any more)."""
        if self.view is None:
            return [], []
        ends = self.boundary.shallow
        if self.view.grafts and not self.request.deepening.asked:
            # What its own history does not reach, the repository cannot give: the client's ends there too.
            wants = self._commits(self.wants)
            ends = reached_grafts(self.view.graph(), wants, self.client_ends, self.view.cut)
        return (
            self.view.ids_at(ends),
            self.view.ids_at(self.boundary.unshallow),
        )

    def opening(self) -> bytes:
        """Return what a v0 client is told before its haves are answered: how its boundary moves, if it shall."""
        return shallow_lines(*self._ends()) if self.request.deepening.asked else b""

    # ---- haves ----

    def negotiate(self) -> tuple[bytes, bool]:
        """Return the answer to the haves, and whether the pack follows it."""
        return self._negotiate_v2() if self.request.version == 2 else self._negotiate_v0()

    def _negotiate_v2(self) -> tuple[bytes, bool]:
        request = self.request
        known: list[ObjectId] = []
        for oid, position in zip(request.haves, self.positions(request.haves), strict=True):
            if position >= 0:
                self._add(oid, position)
                known.append(oid)
        if not self.wants and not request.wait_for_done:
            return b"", False
        head = b""
        if request.haves and not request.done:
            ready = not request.wait_for_done and self._enough()
            head = acknowledgments(known, ready=ready, sideband_all=request.sideband_all)
            if not ready:
                return head, False
        banded = request.sideband_all
        # git's server sends these two the other way round, which no client takes.
        shallow = self.view is not None and bool(self.view.grafts)
        if request.deepening.asked or self.client_ends or shallow:
            head += shallow_info(*self._ends(), sideband_all=banded)
        head += wanted_refs(self.wanted_refs, sideband_all=banded)
        if self.static is not None:
            head += packfile_uris([self.static.uri], sideband_all=banded)
        elif request.uri_protocols:
            head += packfile_uris(self._listed_packs(), sideband_all=banded)
        return head + section_line(b"packfile\n", sideband_all=banded), True

    def _negotiate_v0(self) -> tuple[bytes, bool]:
        opening = self.opening()
        if self.request.shallow_only:
            return opening, False
        answer, pack_follows = self.round(self.request.haves, done=self.request.done)
        return opening + answer, pack_follows

    def round(self, haves: Sequence[ObjectId], *, done: bool) -> tuple[bytes, bool]:
        """Answer one round of a v0 conversation, knowing all before it; as ``negotiate``."""
        lines = [
            self._talk.have(oid, known=position >= 0, news=self._add(oid, position))
            for oid, position in zip(haves, self.positions(haves), strict=True)
        ]
        end, pack_follows = self._talk.done() if done else self._talk.flush()
        return b"".join(lines) + end, pack_follows

    def _add(self, oid: ObjectId, position: int) -> bool:
        """Note a have; False when it is not ours, or implied by one before: that or its child."""
        if position < 0 or self.view is None:
            return False
        graph = self.view.graph()
        if graph.type_at(position) == COMMIT and position not in self.client_ends:
            self._they_have.update(at for at in graph.parents_at(position) if at >= 0)
        if position in self._they_have:
            return False
        self._they_have.add(position)
        self.common[oid] = position
        return True

    def _enough(self) -> bool:
        """Return whether every wanted commit is or reaches something that the client has.

        A walk each time. It is asked again only when there is more to go by, and with many haves
        only when there is an eighth more, so that a client cannot make us walk for each line.
        """
        count, answer = self._weighed
        now = len(self.common)
        if not now or self.view is None:
            return False
        if not answer and now > count + (count >> 3 if count > WEIGHED_EACH_MAX else 0):
            answer = self.view.graph().all_reach(
                self._commits(self.wants), self._commits(self._they_have)
            )
            self._weighed = (now, answer)
        return answer

    def _commits(self, positions: Iterable[int]) -> list[int]:
        assert self.view is not None
        graph = self.view.graph()
        peeled = [graph.peel(position) for position in positions]
        return [at for at in peeled if at >= 0 and graph.type_at(at) == COMMIT]

    # ---- the pack ----

    def transfer(self) -> Transfer:
        """Plan the pack."""
        assert self.view is not None
        wanted, have = self._selected
        if self.tags:
            wanted = self._with_tags(wanted)
        if self.static is not None:
            wanted = without(wanted, self.static.holds)
        if self._elsewhere:
            wanted = without(wanted, bits_of(self._elsewhere, self.view.objects))
        options = TransferOptions(
            ofs_delta=self.request.ofs_delta,
            thin=self.request.thin_pack,
            sideband=self.request.sideband == 2,
        )
        return Transfer(
            self.view,
            wanted,
            have,
            options=options,
            trailers=self.store.trailers,
            entries=self.store.entries,
            sharing=self.store.sharing,
        )

    def _listed_packs(self) -> list[PackUri]:
        """Return the packs that settings name, with objects that the client would be sent, and leave these out.

        Haves are known by now.
        """
        listed = settings_of(self.record).fetch.listed_packs
        found: list[PackUri] = []
        if not listed or not self.request.sideband_all or self.view is None or not self.wants:
            return found
        wanted, _ = self._selected
        size = self.record.hash_kind.size
        for one in listed:
            oid, pack = bytes.fromhex(one.object), bytes.fromhex(one.pack)
            if len(oid) != size or one.uri.partition(":")[0] not in self.request.uri_protocols:
                continue
            (at,) = self.view.positions([ObjectId(oid)])
            if at >= 0 and bit(wanted, at) and at not in self._elsewhere:
                self._elsewhere.add(at)
                found.append(PackUri(pack, one.uri))
        return found

    @cached_property
    def _selected(self) -> tuple[bytes, bytes]:
        return self._selection()

    def _selection(self) -> tuple[bytes, bytes]:
        """Return (what is to be sent, what the client surely has)."""
        view, store = self.view, self.store
        assert view is not None
        sieve = Sieve(self.request.filters, self._patterns())
        haves = list(self.common.values())
        boundary = self.boundary
        graph = view.graph()
        alone = not any(graph.type_at(at) in (COMMIT, TAG) for at in self.wants)
        if haves or boundary.unshallow or alone:  # few ask the same again
            had = store.closures.of(view, haves) if haves and not boundary.client else None
            return selection(view, self.wants, haves, boundary=boundary, sieve=sieve, had=had)
        whole = None if boundary else store.closure_of(view, self.wants)
        if whole is not None and not sieve.filters:
            return whole, b""
        # Clones of one tip come in crowds: they share the answer.
        patterns = sorted((name, each.text) for name, each in sieve.patterns.items())
        asked = repr((sorted(self.wants), boundary, sieve.filters, patterns)).encode()

        def select() -> bytes:
            return selection(view, self.wants, (), boundary=boundary, sieve=sieve, whole=whole)[0]

        return store.selected(view, asked, select), b""

    def _patterns(self) -> dict[bytes, Patterns]:
        """Return the patterns of sparse filters; each is a blob that the repository may serve."""
        out: dict[bytes, Patterns] = {}
        for each in self.request.filters:
            if each.kind is FilterKind.SPARSE:
                out[each.name] = self._sparse(each.name)
        return out

    def _sparse(self, name: bytes) -> Patterns:
        limit = self.store.limits.sparse_blob_max_bytes
        try:
            reading = ShownReading(self.store, self.record.name)
            info, pieces = reading.stream(reading.resolve(name.decode()))
        except (NotFound, InvalidArgument, UnicodeDecodeError) as cause:
            words = f"unable to access sparse blob in '{shown(name)}'"
            raise InvalidArgument(words) from cause
        if info.type != BLOB:
            raise InvalidArgument(f"unable to parse sparse filter data in {hex_of(info.id)}")
        if info.size > limit:
            raise LimitExceeded("sparse specification is too large", bytes=info.size, limit=limit)
        return Patterns(b"".join(pieces))

    def _with_tags(self, wanted: bytes) -> bytes:
        """Add annotated tags whose object is sent."""
        assert self.view is not None
        graph = self.view.graph()
        out = bytearray(wanted)
        for at in self.view.positions(self.tags):
            target = graph.peel(at) if at >= 0 else -1
            if target >= 0 and bit(wanted, target):
                link = at
                while graph.type_at(link) == TAG and not out[link >> 3] >> (link & 7) & 1:
                    out[link >> 3] |= 1 << (link & 7)
                    link = graph.target_at(link)
        return bytes(out)
