"""Sizes of objects for the v2 command object-info, within what a repository's refs reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.protocol.object_info import (
    ObjectInfoRequest,
    object_info_head,
    object_info_lines,
)
from shardgit.protocol.pktline import FLUSH_BYTES
from shardgit.service.look import ShownLook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from shardgit.oid import ObjectId
    from shardgit.service.store import Store

BATCH_IDS = 8_192  # about half a MiB of lines


async def object_info(
    store: Store, name: str, request: ObjectInfoRequest
) -> AsyncGenerator[bytes, None]:
    """Return the answer. An object that no ref reaches reads as one that never was."""
    look = await store.workers.run(ShownLook, store, name)
    yield object_info_head(request)
    for at in range(0, len(request.ids), BATCH_IDS):
        ids = request.ids[at : at + BATCH_IDS]
        yield object_info_lines(request, ids, await store.workers.run(_sizes, look, ids))
    yield FLUSH_BYTES


def _sizes(look: ShownLook, ids: Sequence[ObjectId]) -> list[int | None]:
    positions = look.positions(ids)
    held = [position for position in positions if position >= 0]
    if not held or look.view is None:
        return [None] * len(ids)
    sizes = iter([info.size for info in look.view.info(held)])
    return [next(sizes) if position >= 0 else None for position in positions]
