"""fsck of what is pushed: how strict a repository is, and what becomes of the findings."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from shardgit.errors import FsckRefused
from shardgit.fsck import (
    FsckConfig,
    Severity,
    Special,
    check_special,
    describe,
    message_of,
    text_of,
)
from shardgit.oid import HashKind, ObjectId, oid_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardgit._layout import Ingest
    from shardgit.fsck import Finding
    from shardgit.service.look import Look
    from shardgit.service.settings import FsckSettings, RepositorySettings

LINES_MAX = 100
ERRORS_MAX = 1_000  # that a thread of an ingest keeps
BLOB = 3
BAD_TAG_NAME = message_of("badTagName")  # the message that shows a piece of the object


def severities(settings: RepositorySettings, kind: HashKind) -> FsckConfig | None:
    """Return how strict a repository's fsck is; None when it is off."""
    if not settings.receive.fsck_objects:
        return None
    return _parsed(_Key(settings.fsck), kind)


class _Key:
    """Settings as a key of a cache: equal by what they say."""

    def __init__(self, settings: FsckSettings) -> None:
        self.settings = settings
        self._key = (tuple(sorted(settings.severities.items())), settings.skip_list)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other._key == self._key


@functools.lru_cache(maxsize=256)
def _parsed(key: _Key, kind: HashKind) -> FsckConfig:
    length = 2 * kind.size
    skip = [oid_of(text, kind) for text in key.settings.skip_list if len(text) == length]
    return FsckConfig.parse(key.settings.severities, skip)


def judge(ingest: Ingest, config: FsckConfig, look: Look) -> list[str]:
    """Return the warnings of a resolved ingest, in git's words; FsckRefused when any object is refused."""
    lines: list[str] = []
    refused: list[str] = []
    errors = 0
    for oid, message, text in _findings(ingest, look):
        errors += config.severity(message) >= Severity.ERROR
        if not config.refuses(message, oid) and not config.tells(message, oid):
            continue
        line = describe(message, oid, config.severity(message), text)
        (refused if config.refuses(message, oid) else lines).append(line)
    if not refused and errors >= ERRORS_MAX:
        # The ingest keeps no more: behind those that the skip list lets pass others may be lost.
        raise FsckRefused("too many objects on the skip list are pushed at once", lines=())
    if refused:
        raise FsckRefused(
            "fsck error in packed object", lines=(*lines[: LINES_MAX // 2], *refused)[:LINES_MAX]
        )
    return lines


def _findings(ingest: Ingest, look: Look) -> Iterator[tuple[ObjectId, int, str]]:
    for number, message, offset in ingest.findings():
        tag = memoryview(ingest.read(number)) if message == BAD_TAG_NAME else None
        text = text_of(message, offset, tag)
        yield ObjectId(ingest.id_at(number)), message, text
    for kind, oid in ingest.specials():
        for finding in _special(ingest, Special(kind), ObjectId(oid), look):
            yield ObjectId(oid), finding.message, finding.text


def _special(ingest: Ingest, special: Special, oid: ObjectId, look: Look) -> list[Finding]:
    """Check a blob that a pushed tree calls .gitmodules or .gitattributes."""
    number = ingest.find(oid)
    if number >= 0:
        type_ = ingest.type_at(number)
        size = ingest.size_at(number)
        data = ingest.read(number) if type_ == BLOB and size <= special.max_bytes else None
        return check_special(special, type_, data)
    (at,) = look.positions([oid])
    if at < 0 or look.view is None:
        return check_special(special, None, None)
    (info,) = look.view.info([at])
    if info.type != BLOB or info.size > special.max_bytes:
        return check_special(special, info.type, None)
    return check_special(special, BLOB, look.view.read_positions([at])[0].data)


def lines_of(error: FsckRefused) -> list[str]:
    """Return the lines that git would print for a refused pack."""
    lines = error.facts.get("lines", ())
    assert isinstance(lines, tuple)
    return [str(line) for line in lines]
