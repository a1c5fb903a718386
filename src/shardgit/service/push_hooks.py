"""Where a push meets its hooks: asked between its checks and its commit, told behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgit.errors import HookRefused
from shardgit.service.hooks import PushHookCall, silent

if TYPE_CHECKING:
    from shardgit.service.hooks import Tell
    from shardgit.service.push import Push, Pushed
    from shardgit.service.reading import Reading
    from shardgit.service.signed_push import CertificateFacts


async def ask_hooks(
    push: Push, *, facts: CertificateFacts | None = None, tell: Tell = silent
) -> None:
    """Ask the hooks about the commands of a checked push that still stand, and refuse what they refuse.

    Nothing is asked where nothing can come of it.
    """
    hooks = push.store.hooks
    if hooks is None or not hooks.wanted(push.record) or not push.accepted():
        return
    if push.request.atomic and push.errors:
        return  # commit will refuse all of it
    read = await push.store.workers.run(push.quarantined)
    call = _call(push, facts, tell, read=read)
    async with hooks.asking(call) as session:
        try:
            await session.pre_receive()
        except HookRefused as error:
            push.refuse_all(error.message)
            return
        for number, command in push.accepted():
            reason = await session.update(command)
            if reason is not None:
                push.refuse(number, reason)
                if push.request.atomic:
                    return


async def tell_hooks(
    push: Push,
    pushed: Pushed,
    *,
    facts: CertificateFacts | None = None,
    tell: Tell = silent,
) -> None:
    """Tell the post-receive hooks of what a push has committed; never fails."""
    if not pushed.sequence or push.store.events is None:
        return
    await push.store.events.pushed(_call(push, facts, tell), pushed.sequence)


def _call(
    push: Push, facts: CertificateFacts | None, tell: Tell, *, read: Reading | None = None
) -> PushHookCall:
    return PushHookCall(
        repository=push.record,
        principal=push.principal,
        commands=tuple(command for _, command in push.accepted()),
        options=push.request.options,
        certificate=facts,
        read=read,
        tell=tell,
    )
