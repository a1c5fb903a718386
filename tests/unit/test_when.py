"""Moments: what git's approxidate makes of a text, we do too, or say that we do not understand."""

from __future__ import annotations

import contextlib
import subprocess
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgit.cli.when import When, parse_when, split_when
from shardgit.errors import InvalidArgument


def now() -> datetime:
    return datetime.now().astimezone()


def gits(text: str) -> int:
    done = subprocess.run(
        ["git", "rev-parse", f"--since={text}"], capture_output=True, text=True, check=True
    )
    return int(done.stdout.strip().removeprefix("--max-age="))


@pytest.mark.interop
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize(
    "text",
    [
        "now",
        "yesterday",
        "noon",
        "midnight",
        "2024-12-31",
        "2024-12-31 18:00",
        "2024-12-31 18:00:07",
        "2024-06-30T18:00:07",
        "2024-12-31T18:00:07Z",
        "2024-12-31 18:00:07 +0200",
        "2024-12-31T18:00:07+02:00",
        "2024-12-31T18:00:07-05",
        "1 second ago",
        "10 seconds ago",
        "5 minutes ago",
        "5.minutes.ago",
        "2 hours ago",
        "3.days.ago",
        "1 week ago",
        "2 weeks ago",
        "2.weeks",
        "one day ago",
        "last week",
        "1 day 2 hours ago",
        "3 months ago",
        "1 year ago",
        "Thu, 07 Apr 2005 22:13:13 +0200",
        "@1700000000",
    ],
)
def test_times_are_gits(text: str, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        ours = parse_when(text, now()).time_ms
        expected = gits(text)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ours is not None
    # A stretch of days that crosses a change of the clocks is told apart by git's own rules.
    slack = 3_600 if any(unit in text for unit in ("week", "month", "year")) else 2
    assert abs(ours // 1_000 - expected) <= slack


def test_numbers_are_moves_and_the_rest_is_not_understood() -> None:
    assert split_when("refs/heads/a@{3}", now()) == ("refs/heads/a", When(back=3))
    for text in (
        "",
        "soon",
        "2024-13-01",
        "2024-02-30",
        "99999 years ago",
        "@",
        "1 2",
        "ago",
        "-1",
    ):
        with pytest.raises(InvalidArgument):
            parse_when(text, now())
    for text in ("refs/heads/a", "@{1}", "refs/heads/a@{1", "refs/heads/a@{}"):
        with pytest.raises(InvalidArgument):
            split_when(text, now())


@given(st.text(max_size=40))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert isinstance(parse_when(text, now()), When)
