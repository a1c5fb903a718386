"""What a test script of git's printed, test by test."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LINE = re.compile(r"(not )?ok (\d+)(?: - | )?(.*)")
_SKIP = re.compile(r"# skip(?: (.*?))?(?: \((missing .*)\))?$", re.IGNORECASE)
_TODO = re.compile(r"(.*?) # TODO known breakage(.*)")
_PLAN = re.compile(r"1\.\.(\d+)(?: # SKIP (.*))?")


@dataclass(frozen=True, slots=True)
class Test:
    """One test. ``state`` is passed, failed, skipped, or known (broken in git itself)."""

    number: int
    title: str
    state: str
    why: str = ""


@dataclass(slots=True)
class Script:
    """All that one script reported. ``ended`` is False when it stopped before its plan."""

    name: str
    tests: list[Test] = field(default_factory=list)
    ended: bool = False
    skipped_whole: str = ""
    seconds: float = 0.0

    def count(self, state: str) -> int:
        """Return how many tests ended so."""
        return sum(test.state == state for test in self.tests)


def parse(name: str, output: str) -> Script:
    """Read a script's TAP."""
    script = Script(name)
    for line in output.splitlines():
        plan = _PLAN.fullmatch(line)
        if plan:
            script.ended = True
            script.skipped_whole = plan[2] or ""
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        failed, number, title = bool(found[1]), int(found[2]), found[3]
        skip, todo = _SKIP.search(title), _TODO.fullmatch(title)
        if skip is not None:
            test = Test(number, skip[1] or title, "skipped", skip[2] or "asked for")
        elif todo is not None:
            test = Test(number, todo[1], "known")
        else:
            test = Test(number, title, "failed" if failed else "passed")
        script.tests.append(test)
    return script
