"""Who may see what on the admin port."""

from __future__ import annotations

import enum
import hmac
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit import telemetry
from shardgit.addresses import is_loopback, split_address
from shardgit.console.desks import DeskRefused
from shardgit.errors import (
    InvalidArgument,
    PermissionRefused,
    RateLimited,
    ShardgitError,
    Unauthenticated,
    Unavailable,
)
from shardgit.service.doorkeeper import Secrets
from shardgit.survey import Asking
from shardgit.tls import common_name

if TYPE_CHECKING:
    from aiohttp import web

    from shardgit.config import ServeConfig
    from shardgit.console.desks import Desks

HEADER_MAX = 4_096
OWN_SITES = ("same-origin", "none")  # none: an address that was typed, or no browser at all


class Sight(enum.Enum):
    """What a request wants to see."""

    METRICS = "metrics"
    ALL = "all"


class Visitors:
    """Lets visitors in.

    On a loopback address everybody may see all, but under names of that address alone: a page of a stranger whose own
    name leads there is refused. On any address a page of another site gets METRICS at most. Beyond loopback a visitor
    shows what may administer the store, unless ``auth`` is off; for METRICS a secret of ``metrics_secret_file`` does as
    well, also while no worker answers.
    """

    def __init__(self, config: ServeConfig, desks: Desks) -> None:
        self._desks = desks
        self._loopback = config.admin_on_loopback
        self._asks = config.admin_asks
        file = config.metrics_secret_file
        self._secrets = Secrets(Path(file)) if file else None

    async def check(self, request: web.Request, sight: Sight, *, again: bool = False) -> None:
        """Raise unless the sender of a request may see that; ``again``: of a call that lasts, once more.

        Errors: PermissionRefused, Unauthenticated, RateLimited, Unavailable when no worker could look.
        """
        if self._loopback and not _is_local(request.host):
            raise PermissionRefused(
                "this port answers to names of loopback alone", host=request.host[:100]
            )
        if sight is Sight.ALL and request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITES:
            raise PermissionRefused("this port answers to no page of another site")
        if not self._asks:
            return
        authorization = request.headers.get("Authorization")
        if authorization is None and not _certificate(request):
            raise Unauthenticated("authentication is required")
        if sight is Sight.METRICS and self._is_secret(authorization):
            return
        asking = Asking(
            address=request.remote or "",
            authorization=authorization[:HEADER_MAX] if authorization is not None else None,
            certificate=_certificate(request),
            actor=request.headers.get("X-Shardgit-Actor", "")[:HEADER_MAX],
            for_address=request.headers.get("X-Shardgit-Address", "")[:HEADER_MAX],
            again=again,
        )
        try:
            answer = await self._desks.visitor(asking)
        except DeskRefused as cause:
            raise Unavailable("who asks cannot be told now") from cause
        if answer.code:
            error = _refusal(answer.code, answer.message, answer.retry_after_s)
            telemetry.log().info(
                "admin_port_refused", address=request.remote, error=str(error), code=error.code
            )
            raise error

    async def is_known(self, request: web.Request) -> bool:
        """Say whether the sender of a request may be told details; wrong credentials count as none."""
        try:
            await self.check(request, Sight.ALL)
        except ShardgitError:
            return False
        return True

    def _is_secret(self, authorization: str | None) -> bool:
        scheme, _, shown = (authorization or "").strip().partition(" ")
        if self._secrets is None or scheme.lower() != "bearer":
            return False
        given = shown.strip().encode("utf-8", "surrogateescape")
        right = [hmac.compare_digest(secret, given) for secret in self._secrets.all()]
        return any(right)


def _refusal(code: str, message: str, retry_after_s: int) -> ShardgitError:
    if code == PermissionRefused.code:
        return PermissionRefused(message)
    if code == RateLimited.code:
        return RateLimited(message, retry_after_s=retry_after_s or 1)
    if code == Unauthenticated.code:
        return Unauthenticated(message)
    return Unavailable("who asks cannot be told now")


def _certificate(request: web.Request) -> str:
    shown = request.get_extra_info("peercert")
    return common_name(shown) if shown else ""


def _is_local(host: str) -> bool:
    """Say whether a Host header names loopback, with a port or without."""
    name = host.rstrip(".").lower()
    try:
        name, _ = split_address(host)
    except InvalidArgument:
        name = host.removeprefix("[").removesuffix("]")
    return is_loopback(name.lower().rstrip("."))
