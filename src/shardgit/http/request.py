"""What a request says about itself: repository, protocol version, who asks."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from urllib.parse import urlsplit

from aiohttp import HttpVersion10, HttpVersion11, web

from shardgit.errors import InvalidArgument, PermissionRefused, RepositoryMissing
from shardgit.service.doorkeeper import Shown
from shardgit.tls import common_name

_SLASHES = re.compile("/{2,}")
_VERSIONS = ("version=0", "version=1", "version=2")
_HOST = re.compile(r"([A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,64}\])(:[0-9]{1,5})?")


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


def shown_by(request: web.Request) -> Shown:
    """Return what a request shows of who sends it."""
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    headers = request.headers
    return Shown(
        request.remote or "",
        authorization=headers.get("Authorization"),
        certificate=common_name(certificate) if certificate else "",
        actor=headers.get("X-Shardgit-Actor", ""),
        for_address=headers.get("X-Shardgit-Address", ""),
    )


def check_head(request: web.Request) -> None:
    """Refuse a head that others on the way may read in another way than we do.

    A Host that is no HOST or HOST:PORT, or not that of the request line: addresses that other clients follow are made
    of it. A version that is not spoken here, and an encoding of the body that is not undone here.

    Errors: InvalidArgument; HTTP's 501 and 505.
    """
    if request.version not in (HttpVersion10, HttpVersion11):
        raise web.HTTPVersionNotSupported(text="HTTP/1.0 and HTTP/1.1 are spoken here")
    if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise web.HTTPNotImplemented(text="transfer encoding must be chunked")
    hosts = request.headers.getall("Host", [])
    if len(hosts) > 1 or any(host and not _HOST.fullmatch(host) for host in hosts):
        raise InvalidArgument("host header is no HOST:PORT")
    target = request.raw_path
    if target.startswith("/") or target == "*":
        return
    _, slashes, rest = target.partition("://")
    if not slashes or [rest.partition("/")[0].lower()] != [host.lower() for host in hosts]:
        raise InvalidArgument("request line names another host than the host header")


def check_not_rebound(request: web.Request, url: str) -> None:
    """Refuse a name of the network for a port of this machine, which a web page's name may lead to (DNS rebinding).

    Names of loopback, addresses, names without a dot, and that of ``url``, where we are reached by one, are ours.
    Errors: PermissionRefused.
    """
    host = request.headers.get("Host", "")
    name = (host if host.endswith("]") else host.rpartition(":")[0] or host).lower().rstrip(".")
    if "." not in name or name.endswith(".localhost"):
        return
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return
    if name != (urlsplit(url).hostname or ""):
        raise PermissionRefused(
            "a server without auth on loopback has no such name; say it in http_url",
            host=host[:100],
        )


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
