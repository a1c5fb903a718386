"""What a repository's settings forbid: reasons in git's words, where git has some.

A reason stands in the status report, behind the ref; ``explained`` gives the line that a user
reads above it. Whether objects are whole and refs stand as the client believes is not policy.
"""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from shardgit.limits import DEFAULT
from shardgit.refs.name import is_ref_name
from shardgit.service.hiding import hidden_from_push

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardgit.protocol.receive_pack import Command, PushRequest
    from shardgit.service.access import Principal
    from shardgit.service.settings import MirrorSettings, ProtectedRef, RepositorySettings

HEADS = b"refs/heads/"
FUNNY = "funny refname"
DELETION = "deletion prohibited"
CURRENT = "deletion of the current branch prohibited"
FORCED = "non-fast-forward"


def refusal(
    settings: RepositorySettings,
    command: Command,
    *,
    principal: Principal,
    is_ff: Callable[[], bool],
    current: bytes | None = None,
) -> str | None:
    """Return why a command may not be done; None when it may.

    ``is_ff`` tells whether the new commit reaches the old one, and is called only where it
    matters; it is false where one of them is no commit. ``current`` is the branch that HEAD
    points to.
    """
    name = command.name
    receive = settings.receive
    if hidden_from_push(settings).hides(name):
        return f"deny {'deleting' if command.new is None else 'updating'} a hidden ref"
    if not _is_good_name(name, deletes=command.new is None):
        return FUNNY
    if len(name) > DEFAULT.ref_name_max_bytes:
        return f"ref name is longer than {DEFAULT.ref_name_max_bytes} bytes"
    is_branch = name.startswith(HEADS)
    if command.old is not None and command.new is None:
        if receive.deny_deletes and is_branch:
            return DELETION
        if name == current and receive.deny_delete_current == "refuse":
            return CURRENT
    moves = command.old is not None and command.new is not None
    guards = [each for each in receive.protected_refs if matches(each.pattern, name)]
    for guard in guards:
        if guard.writers and not any(fnmatchcase(principal.name, each) for each in guard.writers):
            instead = guard.advice or "push to another branch"
            return f"protected by {guard.pattern}: it is changed by others only; {instead}"
    cares = (receive.deny_non_fast_forwards and is_branch) or any(
        not each.force and each.update for each in guards
    )
    forced = moves and cares and not is_ff()
    if forced and receive.deny_non_fast_forwards and is_branch:
        return FORCED
    for guard in guards:
        found = _guarded(guard, command, forced=forced)
        if found is not None:
            return found
    return None


def matches(pattern: str, name: bytes) -> bool:
    """Return whether a glob matches a whole ref name; see ProtectedRef."""
    return fnmatchcase(name.decode("utf-8", "surrogateescape"), pattern)


def follows(mirror: MirrorSettings, name: bytes) -> bool:
    """Return whether a mirror takes a ref of what it follows."""
    return not mirror.refs or any(matches(each, name) for each in mirror.refs)


def _is_good_name(name: bytes, *, deletes: bool) -> bool:
    """As git: refs/x may be deleted, but not made."""
    return name.startswith(b"refs/") and is_ref_name(name) and (deletes or b"/" in name[5:])


def _guarded(guard: ProtectedRef, command: Command, *, forced: bool) -> str | None:
    if command.new is None:
        if command.old is None or guard.delete:
            return None
        what, instead = "it may not be deleted", "ask an administrator"
    elif command.old is None:
        if guard.create:
            return None
        what, instead = "it may not be created", "choose another name"
    elif not guard.update:
        what, instead = "it may not be updated", "push to another branch"
    elif forced and not guard.force:
        what, instead = "not a fast-forward", "pull first, or push to another branch"
    else:
        return None
    return f"protected by {guard.pattern}: {what}; {guard.advice or instead}"


def push_refusal(settings: RepositorySettings, request: PushRequest) -> str | None:
    """Return why nothing of a push may be done, judged by its commands alone."""
    most = settings.receive.max_push_refs
    if most and len(request.commands) > most:
        return f"a push may name at most {most} refs, not {len(request.commands)}; push fewer"
    return None


def repeated(commands: Sequence[Command]) -> frozenset[bytes]:
    """Return the names that more than one command names: none of these may be done."""
    if len(commands) < 2:
        return frozenset()
    times = Counter(each.name for each in commands)
    return frozenset(name for name, count in times.items() if count > 1)


def repeated_reason(name: bytes) -> str:
    """Return why commands of a repeated name are refused."""
    return f"multiple updates for ref '{name.decode('utf-8', 'replace')}' not allowed"


def explained(command: Command, reason: str) -> str | None:
    """Return the line that tells a user more than the reason does; None without."""
    name = command.name.decode("utf-8", "replace")
    return {
        FUNNY: f"error: refusing to update funny ref '{name}' remotely",
        DELETION: f"error: denying ref deletion for {name}",
        CURRENT: f"error: refusing to delete the current branch: {name}",
        "hook declined": f"error: hook declined to update {name}",
        FORCED: f"error: denying non-fast-forward {name} (you should pull first)",
    }.get(reason)


def warning(
    settings: RepositorySettings, command: Command, *, current: bytes | None = None
) -> str | None:
    """Return what a user is warned of when a command is done."""
    if command.new is not None:
        return None
    if command.old is None:
        return "warning: deleting a non-existent ref"
    if command.name == current and settings.receive.deny_delete_current == "warn":
        return "warning: deleting the current branch"
    return None
