"""What a client asks for in its exec request, as git and others write it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from shardgit.errors import InvalidArgument
from shardgit.service.conversation import GitService
from shardgit.service.names import name_in_path

COMMAND_MAX_BYTES = 8_192
_SERVICES = {each.value: each for each in GitService}


@dataclass(frozen=True, slots=True)
class GitCommand:
    """A service and the repository that it is asked about."""

    service: GitService
    name: str


def parse_command(text: str) -> GitCommand:
    """Return the command in the words of ``git-upload-pack '/NAME.git'``; InvalidArgument otherwise.

    ``git upload-pack`` is taken for ``git-upload-pack``, as sshd's shell would.
    """
    if len(text) > COMMAND_MAX_BYTES:
        raise InvalidArgument("command is too long", bytes=len(text))
    try:
        words = shlex.split(text)
    except ValueError as cause:
        raise InvalidArgument("command is not quoted properly") from cause
    if len(words) > 1 and words[0] == "git":
        words[:2] = [f"git-{words[1]}"]
    if not words or words[0] not in _SERVICES:
        raise InvalidArgument(
            "only git-upload-pack, git-receive-pack and git-upload-archive are served",
            command=" ".join(words)[:80],
        )
    if len(words) != 2:
        raise InvalidArgument("command takes one repository and no options", words=len(words))
    return GitCommand(_SERVICES[words[0]], name_in_path(words[1]))
