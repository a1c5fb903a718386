"""The audit log: who changed what from where, and who was not allowed to; a JSON object a line."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from shardgit import clock, telemetry
from shardgit.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from shardgit.oid import ObjectId
    from shardgit.service.access import Call, Principal

REFS_TOLD = 100  # of one push or update; all of them stand in the repository's ref log
TEXT_MAX = 300
# Of RPCs: what changes nothing is told only when it was refused.
_READS = ("Get", "List", "Watch", "Find", "Plan", "Check")
# What is pushed, and updates of refs, have lines of their own.
_PUSHES = ("ReceivePack", "receive_pack", "git-receive-pack", "UpdateRefs")


class Audit:
    """Writes lines to a file, or to the server's own log without one.

    The file is opened anew when it was moved away, as logrotate does. What cannot be written is an error in the
    server's log: the change has happened.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._opened = -1
        self._inode = 0

    def write(
        self, what: str, principal: Principal, repository: str | None, outcome: str, **facts: Any
    ) -> None:
        """Write a line. ``outcome`` is OK or the code of the error."""
        entry = {
            "what": what[:TEXT_MAX],
            "actor": principal.name,
            "address": principal.address,
            "proved": principal.proved,
            "repository": repository[:TEXT_MAX] if repository else repository,
            "outcome": outcome,
            "request_id": telemetry.request_id.get(),
            **facts,
        }
        if self._file is None:
            telemetry.log().info("audit", **entry)
            return
        time = datetime.fromtimestamp(clock.now_ms() / 1_000, UTC)
        line = json.dumps({"time": time.isoformat(timespec="milliseconds"), **entry}) + "\n"
        try:
            os.write(self._descriptor(self._file), line.encode())  # at once: lines never mix
        except OSError as error:
            telemetry.log().error("audit_not_written", error=str(error), **entry)

    def _descriptor(self, file: Path) -> int:
        try:
            inode = file.stat().st_ino
        except FileNotFoundError:
            inode = 0
        if self._opened < 0 or inode != self._inode:
            self.close()
            self._opened = os.open(
                file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            self._inode = os.fstat(self._opened).st_ino
        return self._opened

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1

    # -- what edges and services tell

    def refs(
        self,
        what: str,
        principal: Principal,
        repository: str,
        changes: Iterable[tuple[bytes, ObjectId | None, ObjectId | bytes | None]],
        *,
        reasons: Mapping[bytes, str],
    ) -> None:
        """Tell of refs: name, old and new (of a symbolic ref its target), and why some were not changed."""
        every = list(changes)
        told = []
        for name, old, new in every[:REFS_TOLD]:
            row = {"ref": _text(name), "old": old.hex() if old else None, "new": _value(new)}
            told.append({**row, "refused": reasons[name][:TEXT_MAX]} if name in reasons else row)
        outcome = "OK" if len(every) > len(reasons) else "FAILED_PRECONDITION"
        self.write(what, principal, repository, outcome, refs=told, count=len(every))

    def ended(
        self, seen: telemetry.Request, call: Call, *, code: str | None = None, reads: bool = False
    ) -> None:
        """Tell of a request that has ended, where it was to change something or was not allowed to.

        ``code`` is how it ended, where the request's own is not that; what only ``reads`` is told when it was refused.
        """
        wanted, code = call.asked, code or seen.code
        is_quiet = reads or seen.method.startswith(_READS) or seen.method in _PUSHES
        is_usual = code == "OK" or (
            reads and code == Unauthenticated.code
        )  # git asks without a token first
        if wanted and not (is_usual and is_quiet):
            for action, repository in wanted:
                facts = {"edge": seen.edge, "action": action.value}
                self.write(seen.what, call.principal, repository, code, **facts)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")[:TEXT_MAX]


def _value(new: ObjectId | bytes | None) -> str | None:
    if new is None:
        return None
    return f"ref: {_text(new)}" if new.startswith(b"refs/") else new.hex()
