"""Where a push meets its hooks: asked between its checks and its commit, told behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardgit.errors import HookRefused
from shardgit.protocol.receive_pack import Command
from shardgit.refs.update import ANY, Old
from shardgit.service.hooks import PushHookCall, silent
from shardgit.service.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.refs.update import RefUpdate
    from shardgit.service.access import Principal
    from shardgit.service.hooks import Tell
    from shardgit.service.push import Push, Pushed
    from shardgit.service.signed_push import CertificateFacts
    from shardgit.service.store import Store


async def ask_hooks(
    push: Push, *, facts: CertificateFacts | None = None, tell: Tell = silent
) -> None:
    """Ask the hooks about the commands of a checked push that still stand, and refuse what they refuse.

    Nothing is asked where nothing can come of it.
    """
    hooks = push.store.hooks
    if hooks is None or not hooks.wanted(push.record) or not push.verdicts.standing():
        return
    if push.request.atomic and push.verdicts.errors:
        return  # commit will refuse all of it
    read = await push.store.workers.run(push.shown)
    call = _call(push, facts, tell, read=read)
    async with hooks.asking(call) as session:
        try:
            await session.pre_receive()
        except HookRefused as error:
            push.verdicts.refuse_all(error.message)
            return
        # Deletions first, as git updates refs: one may make room for a ref of another name.
        for number, command in sorted(
            push.verdicts.standing(), key=lambda each: each[1].new is not None
        ):
            reason = await session.update(command)
            if reason is not None:
                push.verdicts.refuse(number, reason)
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
        commands=tuple(command for _, command in push.verdicts.standing()),
        options=push.request.options,
        certificate=facts,
        read=read,
        tell=tell,
    )


async def ask_about_updates(
    store: Store, name: str, updates: Sequence[RefUpdate], *, principal: Principal
) -> tuple[list[RefUpdate], dict[bytes, HookRefused]]:
    """Ask the hooks about changes of refs that bring no objects; returns those allowed, and why others are not.

    An update that expects nothing of its ref then expects what the hooks were told of it. What
    changes symbolic refs is no command, as with git.
    """
    hooks = store.hooks
    if hooks is None:
        return list(updates), {}
    read = await store.workers.run(Reading, store, name)
    if not hooks.wanted(read.record):
        return list(updates), {}
    firm = await store.workers.run(_firm, read, updates)
    commands = {
        each.name: Command(each.name, None if isinstance(each.old, Old) else each.old, each.new)
        for each in firm
        if each.symbolic is None
    }
    if not commands:
        return firm, {}
    call = PushHookCall(
        repository=read.record,
        principal=principal,
        commands=tuple(commands.values()),
        read=read,
    )
    refused: dict[bytes, HookRefused] = {}
    async with hooks.asking(call) as session:
        try:
            await session.pre_receive()
        except HookRefused as error:
            refused = {each: HookRefused(error.message, **error.facts) for each in commands}
        else:
            for command in commands.values():
                reason = await session.update(command)
                if reason is not None:
                    refused[command.name] = HookRefused(reason)
    return [each for each in firm if each.name not in refused], refused


def _firm(read: Reading, updates: Sequence[RefUpdate]) -> list[RefUpdate]:
    with read.store.journal.snapshot() as snapshot:
        now = read.store.refs.get_many(snapshot, read.record, [each.name for each in updates])
    firm = []
    for each in updates:
        ref = now.get(each.name)
        if each.old is not ANY or (ref is not None and ref.symbolic is not None):
            firm.append(each)
        else:
            firm.append(replace(each, old=ref.target if ref is not None else None))
    return firm
