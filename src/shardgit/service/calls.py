"""The end of a call, the same on every edge: room for others, heat, the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import NotFound

if TYPE_CHECKING:
    from shardgit import telemetry
    from shardgit.service.access import Call
    from shardgit.service.store import Store


def end_call(
    store: Store,
    seen: telemetry.Request,
    call: Call,
    *,
    code: str | None = None,
    reads: bool = False,
) -> None:
    """Take note that a call has ended; see Audit.ended for ``code`` and ``reads``."""
    call.end()
    work_s = seen.spent.get("work", 0.0)
    for repository in call.inside if (code or seen.code) != NotFound.code else ():
        store.heat.add(repository, work_s)
    store.audit.ended(seen, call, code=code, reads=reads)
