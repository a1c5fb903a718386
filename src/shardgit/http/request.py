"""What a request says about itself: repository, protocol version, who asks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import BasicAuth

from shardgit.errors import InvalidArgument, RepositoryMissing
from shardgit.service.access import ANONYMOUS, Principal

if TYPE_CHECKING:
    from aiohttp import web

_SLASHES = re.compile("/{2,}")
_VERSIONS = ("version=0", "version=1", "version=2")
_HOST = re.compile(r"([A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,64}\])(:[0-9]{1,5})?")
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
    given = request.headers.get("Authorization")
    if given is None:
        return Principal(user, request.remote or "")
    try:
        told = BasicAuth.decode(given, encoding="utf-8").login
    except (ValueError, UnicodeError):
        told = ""
    if told and len(told) <= USER_MAX and told.isprintable():
        user = told
    return Principal(user, request.remote or "")


def check_host(request: web.Request) -> None:
    """Refuse a Host that is no HOST or HOST:PORT: addresses that other clients follow are made of it.

    Errors: InvalidArgument.
    """
    hosts = request.headers.getall("Host", [])
    if len(hosts) > 1 or any(host and not _HOST.fullmatch(host) for host in hosts):
        raise InvalidArgument("host header is no HOST:PORT")


def base_url(request: web.Request, configured: str) -> str | None:
    """Return the URL of our root as this client reaches it: as configured, else as it called us.

    The scheme is then that of X-Forwarded-Proto, if there is one; None without a Host.
    """
    if configured:
        return configured.rstrip("/")
    host = request.headers.get("Host", "")
    if not host:
        return None
    forwarded = request.headers.get("X-Forwarded-Proto", "").strip().lower()
    scheme = forwarded if forwarded in ("http", "https") else request.scheme
    return f"{scheme}://{host}"
