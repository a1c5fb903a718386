"""One fetch's look at its repository: wants checked, haves weighed, the pack planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import ObjectMissing
from shardgit.graph.closure import bit, difference
from shardgit.oid import ObjectId, hex_of
from shardgit.pool.transfer import Transfer, TransferOptions
from shardgit.protocol.upload_pack_v0 import NegotiationV0
from shardgit.protocol.upload_pack_v2 import acknowledgments, section_line
from shardgit.service.look import Look

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardgit.journal.interface import JournalSnapshot
    from shardgit.protocol.upload_pack import Fetch
    from shardgit.service.store import Store

COMMIT, TAG = 1, 4
WEIGHED_EACH_MAX = 256


class FetchSession(Look):
    """One request on one consistent look at a repository. Runs in the calling thread, a worker's.

    Errors of making one: RepositoryMissing; ObjectMissing, in git's words, for a want that the
    repository's refs do not reach, whether or not the pool has it.
    """

    def __init__(self, store: Store, name: str, request: Fetch) -> None:
        self.request = request
        self.tags: list[ObjectId] = []
        super().__init__(store, name)
        self.wants = self.positions(request.wants)
        for oid, position in zip(request.wants, self.wants, strict=True):
            if position < 0:
                raise ObjectMissing(f"upload-pack: not our ref {hex_of(oid)}")
        self.common: dict[ObjectId, int] = {}  # haves that were news, by id
        self._they_have: set[int] = set()
        self._weighed = (-1, False)  # commons at the last weighing, and how it ended
        self._talk = NegotiationV0(request, self._enough)

    def _load(self, snapshot: JournalSnapshot, name: str) -> None:
        super()._load(snapshot, name)
        if self.request.include_tag:
            tags = self.store.refs.list(snapshot, self.record, prefixes=(b"refs/tags/",))
            self.tags = [ref.target for ref in tags if ref.peeled and ref.target]

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
        if not request.wants and not request.wait_for_done:
            return b"", False
        head = b""
        if request.haves and not request.done:
            ready = not request.wait_for_done and self._enough()
            head = acknowledgments(known, ready=ready, sideband_all=request.sideband_all)
            if not ready:
                return head, False
        return head + section_line(b"packfile\n", sideband_all=request.sideband_all), True

    def _negotiate_v0(self) -> tuple[bytes, bool]:
        return self.round(self.request.haves, done=self.request.done)

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
        if graph.type_at(position) == COMMIT:
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
        common = list(self.common.values())
        if common:
            wanted, have = difference(self.view, self.wants, common)
        else:
            wanted, have = self.store.closure_of(self.view, self.wants), b""
        if self.tags:
            wanted = self._with_tags(wanted)
        options = TransferOptions(
            ofs_delta=self.request.ofs_delta,
            thin=self.request.thin_pack,
            sideband=self.request.sideband == 2,
        )
        return Transfer(self.view, wanted, have, options=options, trailers=self.store.trailers)

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
