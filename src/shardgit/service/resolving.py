"""Running the ingest kernel: its limits and its threads."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, suppress
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from shardgit._layout import Ingest
from shardgit.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from typing_extensions import Buffer

    from shardgit.limits import Limits
    from shardgit.oid import HashKind
    from shardgit.progress import Report

TICK_S = 0.1
SPILL_OBJECTS = (
    150_000  # in packs whose arrays, of edges first, may be larger than those that stay in memory
)
THREADED_OBJECTS = 2_000  # fewer are made faster than threads start


def new_ingest(
    kind: HashKind,
    limits: Limits,
    *,
    scratch: Path | None = None,
    detect: bool = False,
    pushed_bytes: int | None = None,
) -> Ingest:
    """Return an ingest bounded by ``limits``.

    Its large arrays lie in a file without a name in ``scratch``, where that is given: some 350 bytes an object, which
    memory would have no room for with very many. With ``detect`` a SHA-1 collision attack in it is a CollisionAttack.
    ``pushed_bytes``: a stranger has sent so much, so what its deltas may make of it is bounded too.
    """
    raw_max, delta_max = limits.pack_raw_max_bytes, limits.object_size_max_bytes
    if pushed_bytes is not None:
        grown = limits.push_raw_floor_bytes + pushed_bytes * limits.push_raw_ratio_max
        raw_max, delta_max = min(raw_max, grown), limits.push_delta_max_bytes
    with _spill(scratch) as spill:
        return Ingest(
            int(kind),
            size_max=limits.object_size_max_bytes,
            memory_max=limits.object_memory_max_bytes,
            cache_max=limits.resolve_cache_max_bytes,
            objects_max=limits.pack_objects_max,
            depth_max=limits.delta_depth_max,
            raw_max=raw_max,
            delta_max=delta_max,
            spill=-1 if spill is None else spill.fileno(),
            detect=detect,
        )


@contextmanager
def _spill(scratch: Path | None) -> Iterator[BinaryIO | None]:
    """Give a file without a name; None, and the arrays stay in memory, where none is wanted or can be made."""
    with ExitStack() as held:
        file = None
        with suppress(OSError):
            file = held.enter_context(TemporaryFile(dir=scratch)) if scratch is not None else None
        yield file


def spills(packs: Iterable[Buffer]) -> bool:
    """Whether packs say that they hold so many objects that the arrays of an ingest should lie in a file."""
    heads = (bytes(memoryview(pack)[8:12]) for pack in packs)
    return sum(int.from_bytes(head, "big") for head in heads) >= SPILL_OBJECTS


def run_all(ingest: Ingest, *, threads: int) -> None:
    """Resolve what can be resolved, on ``threads`` threads where there is enough to do."""
    ingest.link()
    count = min(threads, 64) if ingest.objects_scanned >= THREADED_OBJECTS else 1
    more = [threading.Thread(target=ingest.resolve, name=f"resolve-{n}") for n in range(1, count)]
    for worker in more:
        worker.start()
    ingest.resolve()
    for worker in more:
        worker.join()


def resolve(ingest: Ingest, *, threads: int, stage: str, progress: Report) -> None:
    """Resolve all families on ``threads`` threads and raise what they met; tells progress as it goes."""
    if ingest.objects_scanned < THREADED_OBJECTS:
        run_all(ingest, threads=1)
        ingest.finish()
        return
    ingest.link()
    workers = [
        threading.Thread(target=ingest.resolve, name=f"resolve-{n}")
        for n in range(min(threads, 64))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(TICK_S)
            progress(Progress(stage, ingest.objects_resolved, ingest.objects_scanned, "objects"))
    ingest.finish()
