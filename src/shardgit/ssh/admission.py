"""Who is let in: keys of the store, lines of an authorized_keys file, or anybody while neither is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shardgit import telemetry
from shardgit.addresses import is_loopback
from shardgit.errors import InvalidArgument, Refused
from shardgit.service.access import ALL_REPOSITORIES, EVERYTHING, Holder
from shardgit.service.keys import Keys, keys_in, shown

if TYPE_CHECKING:
    from shardgit.service.access import Principal
    from shardgit.service.store import Store

FILE_MAX_BYTES = 8 << 20
GUEST = Holder("git", EVERYTHING)


class Admission:
    """Tells whom a public key stands for. Keys that are added or removed count from then on.

    ``file`` is an authorized_keys file, "" for none; its keys may read and write all repositories. Without any key in
    either place everybody is let in as "git" when the port is a loopback address and nobody has to show who it is.
    """

    def __init__(self, store: Store, *, file: str, host: str) -> None:
        self._store = store
        self._keys = Keys(store.journal)
        self._file = Path(file) if file else None
        self._loopback = is_loopback(host)
        self._read: tuple[tuple[int, int, int], dict[bytes, str]] | None = None

    async def open_to_all(self) -> bool:
        """Return whether anybody may come in without a key."""
        if self._file is not None or not self._loopback or self._store.doorkeeper.required:
            return False
        return not await self.any_key()

    async def any_key(self) -> bool:
        """Return whether there is any key that could be let in."""
        return await self._store.workers.run(lambda: self._keys.any() or bool(self.from_file()))

    async def holder_of(self, fingerprint: bytes) -> Holder | None:
        """Return whom a key stands for, None for one that is not let in."""
        return await self._store.workers.run(self._holder_of, fingerprint)

    def _holder_of(self, fingerprint: bytes) -> Holder | None:
        known = self._keys.holder_of(fingerprint)
        if known is None and (name := self.from_file().get(fingerprint)) is not None:
            known = Holder(name, ALL_REPOSITORIES)
        return known

    def principal(self, holder: Holder, address: str) -> Principal:
        """Return who has come in."""
        return self._store.doorkeeper.by_key(holder, address)

    def from_file(self) -> dict[bytes, str]:
        """Return names by fingerprint from the file, read again when it has changed.

        A file that cannot be read lets nobody in. Runs in the calling thread.
        """
        if self._file is None:
            return {}
        try:
            stat = self._file.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._read is None or self._read[0] != seen:
                self._read = (seen, _read(self._file))
            return self._read[1]
        except (OSError, Refused) as cause:
            telemetry.log().error("ssh_authorized_keys_unreadable", cause=str(cause))
            return {}


def _read(file: Path) -> dict[bytes, str]:
    """Return the keys of a file. Errors: OSError, Refused for one that is too large."""
    with file.open("rb") as opened:
        data = opened.read(FILE_MAX_BYTES + 1)
    if len(data) > FILE_MAX_BYTES:
        raise Refused("authorized keys file is too large", path=str(file), limit=FILE_MAX_BYTES)
    found: dict[bytes, str] = {}
    for key in keys_in(data.decode("utf-8", "replace")):
        if isinstance(key, InvalidArgument):
            telemetry.log().warning("ssh_key_line_ignored", error=str(key), path=str(file))
            continue
        known = key.comment if key.comment.isprintable() else ""
        found[key.fingerprint] = known[:200] or shown(key.fingerprint)
    return found


def check_authorized_keys(file: str) -> None:
    """Raise Refused for a file that is named in the configuration and cannot be read."""
    if not file:
        return
    try:
        _read(Path(file))
    except OSError as cause:
        raise Refused(
            "authorized keys file cannot be read", path=file, cause=cause.strerror
        ) from cause
