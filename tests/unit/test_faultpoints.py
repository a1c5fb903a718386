from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shardgit
from shardgit import clock, faultpoints
from shardgit.faultpoints import Fault, Faults, faults_of, reach

SOURCE = Path(shardgit.__file__).parent
NO_DISK = {"memory.py", "cloud.py"}  # what they commit is not on a disk of ours


def test_every_commit_point_is_a_fault_point() -> None:
    missing = []
    for file in sorted(SOURCE.rglob("*.py")):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.strip().startswith("# commit point") and file.name not in NO_DISK:
                near = "\n".join(lines[max(number - 2, 0) : number + 28])
                if not re.search(r'reach\("[a-z_]+\.', near):
                    missing.append(f"{file.relative_to(SOURCE)}:{number + 1}")
    assert missing == []


def test_a_point_before_has_one_behind() -> None:
    found = set()
    for file in SOURCE.rglob("*.py"):
        found |= set(re.findall(r'reach\("([^"]+)"\)', file.read_text()))
    for name in found:
        noun, _, moment = name.partition(".")
        word, _, deed = moment.partition("_")
        other = {"before": "after"}.get(word)
        assert other is None or f"{noun}.{other}_{deed}" in found, name


def test_the_variable_names_point_count_and_action() -> None:
    assert faults_of("push.before_commit") == [Fault("push.before_commit")]
    assert faults_of("a.b:3:pause, *:*:sleep") == [Fault("a.b", 3, "pause"), Fault("*", 0, "sleep")]
    for wrong in ("", "a:b", "a:1:explode", "a:-1", ":1"):
        with pytest.raises(ValueError):
            faults_of(wrong)


def test_a_fault_strikes_the_time_it_was_asked_for() -> None:
    with faultpoints.listening(Faults(faults_of("here:2:fail"))):
        reach("here")
        reach("elsewhere")
        with pytest.raises(OSError) as caught:
            reach("here")
        reach("here")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("action", "sign"), [("kill", signal.SIGKILL), ("pause", signal.SIGSTOP)])
def test_a_process_dies_or_stops_at_its_point(action: str, sign: int) -> None:
    code = (
        "from shardgit.faultpoints import reach; reach('one'); print(1, flush=True); reach('two')"
    )
    variables = os.environ | {"SHARDGIT_FAULT": f"two:1:{action}"}
    child = subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert child.stdout is not None
    assert child.stdout.read(1) == b"1"
    if os.WIFSTOPPED(status):
        assert os.WSTOPSIG(status) == sign
        child.kill()
        _, status = os.waitpid(child.pid, 0)
    child.returncode = -os.WTERMSIG(status)
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL


def test_another_clock_can_tell_the_time() -> None:
    class Stopped:
        def now_ms(self) -> int:
            return 7

        def monotonic(self) -> float:
            return 0.5

        def sleep(self, seconds: float) -> None:
            del seconds

    with clock.replaced(Stopped()):
        clock.sleep(1_000)
        assert (clock.now_ms(), clock.monotonic()) == (7, 0.5)
    assert clock.now_ms() > 7
