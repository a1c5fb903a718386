"""Git's placeholders of a commit, as export-subst expands them. No I/O."""

from __future__ import annotations

import re
import time as clock
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

from shardgit.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.objects import Commit, Signature
    from shardgit.oid import ObjectId

_PLACEHOLDER = re.compile(
    rb"%(?:(?P<pad>[+\- ])?(?P<word>[HhTtPp]|[ac][nNeElLdDrtiIs]|[dDesfbBnmN]|G[?GSKFPT]|g[DdnNeEs]"
    rb"|x(?P<hex>[0-9a-fA-F]{2})|%|C(?:\([^)]*\)|red|green|blue|reset)"
    rb"|\((?P<long>[^()]*(?:\([^()]*\)[^()]*)*)\)))"
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MINUTE = 60
EXPANDED_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class CommitFacts:
    """A commit and what is told about it; the functions are called only when they are needed.

    ``abbreviated`` shortens an id, ``decorations`` gives the refs at the commit as %D shows them,
    ``describe`` answers ``%(describe)`` with its options, None to leave that as it is.
    """

    id: ObjectId
    commit: Commit
    abbreviated: Callable[[ObjectId], bytes]
    decorations: Callable[[], list[bytes]]
    describe: Callable[[list[bytes]], bytes | None]


class Budget:
    """How much the placeholders of one file may make: 10 MB of ``%B`` could ask for terabytes."""

    def __init__(self, most_bytes: int = EXPANDED_MAX_BYTES) -> None:
        self.most_bytes = most_bytes
        self._spent = 0

    def spend(self, size: int) -> None:
        """Count bytes; LimitExceeded when they are too many."""
        self._spent += size
        if self._spent > self.most_bytes:
            raise LimitExceeded("export-subst makes a file too large", limit=self.most_bytes)


def expand(form: bytes, facts: CommitFacts, budget: Budget | None = None) -> bytes:
    """Return a format with its placeholders filled in; what is none stays as it is."""
    work = len(facts.commit.message) >> 6  # each placeholder may look through the message

    def one(found: re.Match[bytes]) -> bytes:
        value = _value(found, facts)
        if value is None:
            return found[0]
        if budget is not None:
            budget.spend(len(value) + work)
        pad = found["pad"]
        if pad == b"+" and value:
            return b"\n" + value
        if pad == b" " and value:
            return b" " + value
        return value

    return _PLACEHOLDER.sub(one, form)


def _value(found: re.Match[bytes], facts: CommitFacts) -> bytes | None:
    word, commit = found["word"], facts.commit
    if found["long"] is not None:
        return _long(found["long"], facts)
    if found["hex"] is not None:
        return bytes([int(found["hex"], 16)])
    if word[:1] in b"ac" and len(word) == 2:
        return _person(word[1:], commit.author if word[:1] == b"a" else commit.committer, commit)
    ids: dict[bytes, list[ObjectId]] = {
        b"H": [facts.id],
        b"T": [commit.tree],
        b"P": list(commit.parents),
    }
    if word.upper() in ids and word in b"HhTtPp":
        shown = facts.abbreviated if word.islower() else _hex
        return b" ".join(shown(oid) for oid in ids[word.upper()])
    return _text(word, facts)


def _text(word: bytes, facts: CommitFacts) -> bytes:
    message = _recoded(facts.commit.message, facts.commit).lstrip(b"\n")
    subject, _, body = message.partition(b"\n\n")
    subject = b" ".join(line.strip() for line in subject.split(b"\n") if line.strip())
    if word in (b"d", b"D"):
        shown = b", ".join(facts.decorations())
        return b" (" + shown + b")" if shown and word == b"d" else shown
    plain = {
        b"s": subject,
        b"b": body.lstrip(b"\n"),
        b"B": message,
        b"n": b"\n",
        b"m": b">",
        b"%": b"%",
        b"e": dict(facts.commit.extra).get(b"encoding", b""),
        b"G?": b"N",
        b"GT": b"undefined",
    }
    if word == b"f":
        return _slug(subject)
    return plain.get(word, b"")


def _long(text: bytes, facts: CommitFacts) -> bytes | None:
    name, _, rest = text.partition(b":")
    if name == b"describe":
        return facts.describe([word for word in rest.split(b",") if word])
    return None


def _person(word: bytes, who: Signature, commit: Commit) -> bytes:
    if word in b"nN":
        return _recoded(who.name, commit)
    if word in b"eE":
        return who.email
    if word in b"lL":
        return who.email.partition(b"@")[0]
    return _date(word, who)


def _date(word: bytes, who: Signature) -> bytes:
    if word == b"t":
        return b"%d" % who.seconds
    if word == b"r":
        return _ago(int(clock.time()) - who.seconds)
    sign = -1 if who.zone[:1] == b"-" else 1
    digits = who.zone.lstrip(b"+-").rjust(4, b"0")
    minutes = int(digits[:-2] or b"0") * 60 + int(digits[-2:]) if digits.isdigit() else 0
    minutes = sign * min(minutes, 1_439)
    zone = timezone(timedelta(minutes=minutes))
    try:
        at = datetime.fromtimestamp(who.seconds, UTC).astimezone(zone)
    except (OverflowError, ValueError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    shown = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    times = f"{at:%H:%M:%S}"
    texts = {
        b"d": f"{day} {month} {at.day} {times} {at.year} {shown}",
        b"D": f"{day}, {at.day} {month} {at.year} {times} {shown}",
        b"i": f"{at:%Y-%m-%d} {times} {shown}",
        b"I": f"{at:%Y-%m-%d}T{times}" + ("Z" if not minutes else f"{shown[:3]}:{shown[3:]}"),
        b"s": f"{at:%Y-%m-%d}",
    }
    return texts[word].encode()


def _ago(seconds: int) -> bytes:
    if seconds < 0:
        return b"in the future"
    if seconds < 90:
        return _plural(seconds, "second")
    if (minutes := (seconds + 30) // _MINUTE) < 90:
        return _plural(minutes, "minute")
    if (hours := (minutes + 30) // 60) < 36:
        return _plural(hours, "hour")
    days = (hours + 12) // 24
    if days < 14:
        return _plural(days, "day")
    if days < 70:
        return _plural((days + 3) // 7, "week")
    if days < 365:
        return _plural((days + 15) // 30, "month")
    if days < 1_825:
        months = (days * 12 * 2 + 365) // (365 * 2)
        whole, left = divmod(months, 12)
        if left:
            told = _plural(whole, "year").removesuffix(b" ago")
            return told + b", " + _plural(left, "month")
        return _plural(whole, "year")
    return _plural((days + 183) // 365, "year")


def _plural(count: int, unit: str) -> bytes:
    return f"{count} {unit}{'' if count == 1 else 's'} ago".encode()


def _slug(subject: bytes) -> bytes:
    kept = re.sub(rb"[^A-Za-z0-9._]+", b"-", subject)
    kept = re.sub(rb"\.+", b".", kept).strip(b"-")
    return kept.rstrip(b".-")


def _recoded(text: bytes, commit: Commit) -> bytes:
    """Return text in UTF-8, as the commit's encoding header lets read it."""
    encoding = dict(commit.extra).get(b"encoding", b"")
    if not encoding or encoding.lower() in (b"utf-8", b"utf8"):
        return text
    try:
        return text.decode(encoding.decode("ascii")).encode()
    except (LookupError, ValueError):
        return text


def _hex(oid: ObjectId) -> bytes:
    return oid.hex().encode()
