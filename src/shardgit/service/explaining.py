"""What a clone is made of and what its time goes into: all its work is done, and sent nowhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardgit.pool.transfer import Sent
from shardgit.protocol.deepening import Deepening
from shardgit.protocol.filter_spec import parse_filter
from shardgit.protocol.upload_pack import Fetch, LsRefs
from shardgit.protocol.upload_pack_v2 import ls_refs_lines
from shardgit.service.explained import CloneExplained, Stage
from shardgit.service.fetch import shown_refs
from shardgit.service.hiding import hidden_from_fetch
from shardgit.service.negotiation import FetchSession
from shardgit.service.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from shardgit.oid import ObjectId
    from shardgit.pool.transfer import Transfer
    from shardgit.pool.view import PoolView
    from shardgit.service.store import Store

    T = TypeVar("T")

ASKED = (b"HEAD", b"refs/heads/", b"refs/tags/")  # by git clone
ASKED_SHALLOW = (b"HEAD",)  # with --depth it takes a single branch
SLOW_LOOK_S = 0.5
REFS_MANY = 50_000
RECENTS_MANY = 32
PICKED_SHARE = 0.2  # of a pack's bytes
MADE_SHARE = 0.1


@dataclass(slots=True)
class _Watch:
    """Takes the time of stages; one that was there before goes on."""

    times: dict[str, list[float]] = field(default_factory=dict)

    def run(self, stage: str, job: Callable[[], T]) -> T:
        """Run a job as a part of a stage."""
        begun, cpu = time.perf_counter(), time.thread_time()
        try:
            return job()
        finally:
            spent = self.times.setdefault(stage, [0.0, 0.0])
            spent[0] += time.perf_counter() - begun
            spent[1] += time.thread_time() - cpu

    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(name, *spent) for name, spent in self.times.items())


def explain_clone(
    store: Store, name: str, *, depth: int = 0, filters: Sequence[str] = ()
) -> Iterator[CloneExplained | None]:
    """Do what a clone takes, of all branches and tags; yields None after each part, at last what it was.

    ``depth`` (0: all; else of HEAD alone) and ``filters`` (``blob:none``, ...) are as of git clone. Errors:
    RepositoryMissing, InvalidArgument, those of a fetch.
    """
    watch = _Watch()
    asked = ASKED_SHALLOW if depth else ASKED
    wants, refs, refs_bytes, reach_known = watch.run("refs", lambda: _refs(store, name, asked))
    yield None
    request = Fetch(
        version=2,
        wants=wants,
        done=True,
        ofs_delta=True,
        include_tag=True,
        sideband=2,
        no_progress=True,
        deepening=Deepening(depth=depth),
        filters=tuple(
            one for text in filters for one in parse_filter(text.encode(), limits=store.limits)
        ),
    )
    session = watch.run("reach", lambda: FetchSession(store, name, request))
    yield None
    view = session.view
    if view is None or not wants:
        yield _told(watch, refs=refs, refs_bytes=refs_bytes, reach_known=reach_known)
        return
    watch.run("negotiate", session.negotiate)
    yield None
    transfer = watch.run("plan", session.transfer)
    yield None
    chunks = transfer.chunks()
    while watch.run("send", lambda: next(chunks, None)) is not None:
        yield None
    made = _told(watch, view, transfer, refs=refs, refs_bytes=refs_bytes, reach_known=reach_known)
    yield replace(made, advice=tuple(_advice(made, is_full=not depth and not filters)))


def explained(
    store: Store, name: str, *, depth: int = 0, filters: Sequence[str] = ()
) -> CloneExplained:
    """Do what ``explain_clone`` does in one go. Runs in the calling thread."""
    last = None
    for last in explain_clone(store, name, depth=depth, filters=filters):  # noqa: B007
        pass
    assert last is not None
    return last


def _refs(
    store: Store, name: str, asked: tuple[bytes, ...]
) -> tuple[tuple[ObjectId, ...], int, int, bool]:
    """Return what a clone wants, how many refs it is told of, in how many bytes, and whether their reach is known."""
    request = LsRefs(peel=True, symrefs=True, unborn=True, prefixes=asked)
    with store.journal.snapshot() as snapshot:
        state = store.state(snapshot, name)
        refs = shown_refs(store, snapshot, state.record, asked)
        hidden = hidden_from_fetch(settings_of(state.record))
        known = store.reach_of(snapshot, state, hidden).is_known
    wants = dict.fromkeys(ref.target for ref in refs if ref.target is not None)
    return tuple(wants), len(refs), len(ls_refs_lines(refs, request)), known


def _told(
    watch: _Watch,
    view: PoolView | None = None,
    transfer: Transfer | None = None,
    *,
    refs: int,
    refs_bytes: int,
    reach_known: bool,
) -> CloneExplained:
    sent = transfer.sent if transfer is not None else Sent()
    return CloneExplained(
        refs=refs,
        refs_bytes=refs_bytes,
        objects=transfer.objects if transfer is not None else 0,
        pool_objects=view.objects if view is not None else 0,
        pack_bytes=sent.whole_bytes + sent.picked_bytes + sent.made_bytes,
        whole_segments=sent.whole_segments,
        whole_bytes=sent.whole_bytes,
        picked_segments=sent.picked_segments,
        picked_bytes=sent.picked_bytes,
        made_objects=sent.made_objects,
        made_bytes=sent.made_bytes,
        recents=len(view.recents) if view is not None else 0,
        recents_bytes=view.recents_bytes if view is not None else 0,
        reach_known=reach_known,
        stages=watch.stages(),
    )


def _advice(made: CloneExplained, *, is_full: bool) -> Iterator[str]:
    """Say what makes this clone dearer than it need be, and what helps."""
    seconds = {stage.name: stage.seconds for stage in made.stages}
    waited = {stage.name: stage.seconds - stage.cpu_s for stage in made.stages}
    all_bytes = max(made.pack_bytes, 1)
    if made.refs > REFS_MANY:
        yield (
            f"{made.refs:,} branches and tags are listed to each client:"
            " hide those that nobody fetches (transfer.hidden_refs)"
        )
    if seconds.get("reach", 0.0) > SLOW_LOOK_S:
        yield (
            "what the refs reach was walked: it is known from now on in this process,"
            " until refs move in ways that a walk does not follow"
        )
    if made.recents > RECENTS_MANY:
        yield f"{made.recents} pushes are not settled yet: maintenance does that; is it off?"
    if made.made_objects and made.made_bytes > MADE_SHARE * all_bytes:
        yield (
            f"{made.made_objects:,} objects are inflated and deflated for the client, as what they are"
            " deltas of does not go with them: a clone without --depth and --filter copies them"
        )
    if is_full and made.picked_bytes > PICKED_SHARE * all_bytes:
        yield (
            f"{made.picked_bytes * 100 // all_bytes}% of the bytes are picked out of segments entry by"
            " entry: repo compact puts what is not reachable, or a fork's alone, apart"
        )
    if waited.get("send", 0.0) > max(SLOW_LOOK_S, seconds["send"] / 2):
        yield (
            f"{waited['send']:.1f} s of sending were spent waiting, for blocks that were not in memory or for a busy"
            " machine: the next clone is faster, if memory has room"
        )
