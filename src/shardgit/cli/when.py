"""What stands in REF@{...}: a number of moves, or a time in the forms that git takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

from shardgit.errors import InvalidArgument

_UNITS = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_AGO = re.compile(
    r"(?:(\d{1,9}|[a-z]+) )?(second|minute|hour|day|week|month|year)s?(?: ago)?(?: |\Z)"
)
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?")
_ZONE = re.compile(r" ?(Z|[+-]\d\d:?\d\d|[+-]\d\d)\Z")


@dataclass(frozen=True, slots=True)
class When:
    """A moment in milliseconds since 1970, or so many moves ago."""

    time_ms: int | None = None
    back: int = 0


def split_when(text: str, now: datetime) -> tuple[str, When]:
    """Return ref and moment of REF@{MOMENT}. Errors: InvalidArgument."""
    name, mark, inside = text.partition("@{")
    if not mark or not inside.endswith("}") or not name:
        raise InvalidArgument("give a ref and a moment, such as refs/heads/main@{1.hour.ago}")
    return name, parse_when(inside[:-1], now)


def parse_when(text: str, now: datetime) -> When:
    """Return the moment that a text means, seen from ``now``. Errors: InvalidArgument.

    A number; @ and seconds since 1970; an ISO date, with a time and a zone; RFC 2822; sums of
    "2 weeks", "3.days.ago"; now, yesterday, noon, midnight. A date alone has the time of now, a
    time without zone is local, all as in git. Unlike git, what is not understood is an error.
    """
    words = re.sub(r"[\s.,_]+", " ", text).strip().lower()
    try:
        if re.fullmatch(r"\d{1,4}", text):
            return When(back=int(text))
        if re.fullmatch(r"@\d{1,11}", text):
            return When(int(text[1:]) * 1000)
        made = _named(words, now) or _iso(text.strip(), now) or _ago(words, now) or _mail(text)
    except (ValueError, OverflowError) as cause:
        raise InvalidArgument("no such moment", moment=text[:100]) from cause
    if made is None:
        raise InvalidArgument(
            "moment is not understood; try 2024-12-31 18:00, 2.hours.ago or yesterday",
            moment=text[:100],
        )
    return When(int(made.timestamp() * 1000))


def _named(words: str, now: datetime) -> datetime | None:
    if words == "now":
        return now
    if words == "yesterday":
        return now - timedelta(days=1)
    hour = {"midnight": 0, "noon": 12, "tea": 17}.get(words)
    if hour is None:
        return None
    day = now - timedelta(days=1) if now.hour < hour else now
    return day.replace(hour=hour, minute=0, second=0, microsecond=0)


def _iso(text: str, now: datetime) -> datetime | None:
    zone = _ZONE.search(text) if len(text) > len("2024-12-31") else None
    plain = text[: zone.start()] if zone else text
    if not _ISO.fullmatch(plain):
        return None
    if len(plain) == len("2024-12-31"):
        day = datetime.fromisoformat(plain)
        return now.replace(year=day.year, month=day.month, day=day.day)
    offset = zone[1] if zone else ""
    return datetime.fromisoformat(
        plain + (offset + "00" if len(offset) == 3 else offset)
    ).astimezone()


def _ago(words: str, now: datetime) -> datetime | None:
    at, made = 0, now
    while at < len(words):
        step = _AGO.match(words, at)
        if step is None:
            return None
        count, unit = step.groups()
        if count == "last" or count is None:
            number = 1
        elif count.isdigit():
            number = int(count)
        elif count in _NUMBERS:
            number = _NUMBERS.index(count)
        else:
            return None
        if unit in _UNITS:
            made -= _UNITS[unit] * number
        else:
            months = made.year * 12 + made.month - 1 - number * (12 if unit == "year" else 1)
            # A day that the month lacks counts on into the next, as in C's mktime.
            first = made.replace(year=months // 12, month=months % 12 + 1, day=1)
            made = first + timedelta(days=made.day - 1)
        at = step.end()
    return made if words else None


def _mail(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone()
    except (TypeError, ValueError):
        return None
