"""Hooks that are called over HTTP: one POST of JSON, no redirects, a bounded answer. See docs/hooks.md."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp

from shardgit import telemetry
from shardgit.errors import HookFailed
from shardgit.service.hooks import POST_RECEIVE, Answer

if TYPE_CHECKING:
    from shardgit.limits import Limits
    from shardgit.protocol.receive_pack import Command
    from shardgit.service.hooks import HookEvent, Tell
    from shardgit.service.settings import Hook
    from shardgit.workers import Workers

LATER = (408, 425, 429)  # refusals that mean "not now"


class HttpCaller:
    """POSTs events to URLs. Connections are not kept: a hook's host may change between pushes."""

    def __init__(self, workers: Workers, limits: Limits, *, version: str) -> None:
        self._workers = workers
        self._limits = limits
        self._agent = f"shardgit/{version}"

    async def call(self, hook: Hook, event: HookEvent, _: Tell) -> Answer:
        """See HookCaller. 2xx accepts unless the answer says otherwise, 4xx refuses."""
        body = await self._workers.run(lambda: json.dumps(_body(event)).encode())
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": self._agent,
            "X-Shardgit-Event": event.event,
            **telemetry.carry_trace(),
        }
        if event.request_id:
            headers["X-Request-Id"] = event.request_id
        try:
            async with (
                aiohttp.ClientSession(
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=None),  # the hook's own is over all
                ) as client,
                client.post(
                    hook.target, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                status = answer.status
                told = await self._read(answer)
        except (aiohttp.ClientError, ValueError, OSError) as cause:
            raise HookFailed("hook cannot be reached", cause=type(cause).__name__) from cause
        accepted, text = _answer(told)
        if 200 <= status < 300:
            return Answer(accepted, text)
        if 400 <= status < 500 and status not in LATER and event.event != POST_RECEIVE:
            return Answer(accepted=False, text=text)
        raise HookFailed("hook answered with an error", status=status)

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        most = self._limits.hook_answer_max_bytes
        told = bytearray()
        async for piece in answer.content.iter_chunked(most):
            told += piece
            if len(told) > most:
                raise HookFailed("hook's answer is too large", limit_bytes=most)
        return bytes(told)


def _answer(told: bytes) -> tuple[bool, str]:
    """Return whether an answer accepts, and its text: JSON, or plain text."""
    text = told.decode("utf-8", "replace")
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return True, text
    if not isinstance(found, dict):
        return True, text
    message = found.get("message", "")
    return found.get("accepted", True) is not False, message if isinstance(message, str) else ""


def _body(event: HookEvent) -> dict[str, Any]:
    body: dict[str, Any] = {
        "event": event.event,
        "request_id": event.request_id,
        "repository": event.repository.name,
        "repository_id": event.repository.id,
        "object_format": event.repository.hash_kind.git_name,
        "actor": event.principal.name,
        "address": event.principal.address,
        "commands": [_command(each) for each in event.first_commands()],
        "commands_total": event.count,
        "options": [option.decode("utf-8", "replace") for option in event.options],
        "server": event.server,
    }
    if event.event == POST_RECEIVE:
        more = {"sequence": event.sequence, "time_ms": event.time_ms, "reason": event.reason}
        body.update(more)
    facts = event.certificate
    if facts is not None:
        body["certificate"] = {
            "text": facts.certificate.decode("utf-8", "replace"),
            "signer": facts.signer,
            "key": facts.key,
            "status": facts.status,
            "nonce": facts.nonce,
            "nonce_status": facts.nonce_status.value,
            "nonce_slop_s": facts.slop_s,
        }
    return body


def _command(command: Command) -> dict[str, Any]:
    row: dict[str, Any] = {
        "ref": command.name.decode("utf-8", "replace"),
        "old": command.old.hex() if command.old else None,
        "new": command.new.hex() if command.new else None,
    }
    if "\ufffd" in row["ref"]:
        row["ref_hex"] = command.name.hex()
    return row
