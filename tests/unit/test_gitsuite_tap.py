"""What the runner of git's tests reads out of their output."""

from __future__ import annotations

from gitsuite.tap import parse

OUTPUT = """\
ok 1 - setup
not ok 2 - push # to a place
#	the script's text
ok 3 # skip needs two hosts (missing MINGW,!WINDOWS)
not ok 4 - merge # TODO known breakage
ok 5 - merge twice # TODO known breakage vanished
# failed 1 among remaining 4 test(s)
1..5
"""


def test_each_line_is_counted_once_and_as_what_it_is() -> None:
    script = parse("t0000", OUTPUT)
    assert [test.state for test in script.tests] == [
        "passed",
        "failed",
        "skipped",
        "known",
        "known",
    ]
    assert script.tests[1].title == "push # to a place"
    assert script.tests[2].why == "missing MINGW,!WINDOWS"
    assert script.ended


def test_a_script_that_breaks_off_has_not_ended() -> None:
    assert not parse("t0000", "ok 1 - setup\nFATAL: Unexpected exit\n").ended


def test_a_script_may_skip_itself() -> None:
    script = parse("t0000", "1..0 # SKIP no web server\n")
    assert script.ended
    assert script.skipped_whole == "no web server"
