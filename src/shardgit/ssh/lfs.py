"""git-lfs-authenticate: tells git-lfs, which speaks HTTP only, where an SSH remote's objects are."""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from shardgit.errors import InvalidArgument
from shardgit.service.access import Action
from shardgit.service.lfs import lfs_repository
from shardgit.service.names import name_in_path
from shardgit.service.tokens import TICKET_S

if TYPE_CHECKING:
    from shardgit.service.access import Principal
    from shardgit.service.store import Store

COMMAND = "git-lfs-authenticate"
ACTIONS = {"download": Action.READ, "upload": Action.WRITE}


@dataclass(frozen=True, slots=True)
class LfsCommand:
    """What is asked: an operation on a repository."""

    name: str
    operation: str


def parse_lfs_command(text: str) -> LfsCommand | None:
    """Return the command in the words of ``git-lfs-authenticate '/NAME.git' download``; None for any other.

    Errors: InvalidArgument.
    """
    if text.split(maxsplit=1)[:1] != [COMMAND]:
        return None
    try:
        words = shlex.split(text)
    except ValueError as cause:
        raise InvalidArgument("command is not quoted properly") from cause
    # An old git-lfs adds the id of an object.
    if len(words) not in (3, 4) or words[2] not in ACTIONS:
        raise InvalidArgument(f"{COMMAND} takes a repository, and download or upload")
    return LfsCommand(name_in_path(words[1]), words[2])


def lfs_answer(store: Store, command: LfsCommand, principal: Principal, base: str) -> bytes:
    """Return the answer: where the LFS API is, and who asks, so that locks have their owner.

    The caller has seen to it that ``principal`` may. Errors: RepositoryMissing, LfsOff. Runs in the calling thread.
    """
    with store.journal.snapshot() as snapshot:
        lfs_repository(store, snapshot, command.name)
    # A name and, where the HTTP port wants one, a proof.
    doorkeeper, proof = store.doorkeeper, ""
    if doorkeeper.required:
        writes = command.operation == "upload"
        proof = doorkeeper.tokens.ticket(principal.name, command.name, writes=writes)
    name = "ticket" if proof else principal.name.replace(":", " ")  # a colon ends it
    user = base64.b64encode(f"{name}:{proof}".encode()).decode()
    href = f"{base.rstrip('/')}/{quote(command.name)}.git/info/lfs"
    answer: dict[str, object] = {"href": href, "header": {"Authorization": f"Basic {user}"}}
    if proof:
        answer["expires_in"] = TICKET_S
    return json.dumps(answer).encode() + b"\n"
