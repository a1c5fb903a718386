"""What a request says about itself: repository, protocol version, who asks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import BasicAuth

from shardgit.errors import RepositoryMissing
from shardgit.service.access import ANONYMOUS, Principal

if TYPE_CHECKING:
    from aiohttp import web

_SLASHES = re.compile("/{2,}")
_VERSIONS = ("version=0", "version=1", "version=2")
USER_MAX = 200


def protocol_version(request: web.Request) -> int:
    """Return the version that the Git-Protocol header asks for: 0, 1 or 2; the highest known."""
    asked = request.headers.get("Git-Protocol", "").split(":")
    return max((int(word[-1]) for word in asked if word in _VERSIONS), default=0)


def repository_name(request: web.Request) -> str:
    """Return the repository's name in a URL: the path without .git, with slashes as one."""
    name = _SLASHES.sub("/", request.match_info["name"]).strip("/").removesuffix(".git")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise RepositoryMissing("repository does not exist") from None
    return name


def principal_of(request: web.Request) -> Principal:
    """Return who asks: the user of Basic authentication, not verified, and the peer's address."""
    user = ANONYMOUS.name
    try:
        told = BasicAuth.decode(request.headers.get("Authorization", ""), encoding="utf-8").login
    except (ValueError, UnicodeError):
        told = ""
    if told and len(told) <= USER_MAX and told.isprintable():
        user = told
    return Principal(user, request.remote or "")
