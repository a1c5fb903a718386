"""Lock files: one holder of all threads and processes, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from shardgit.filelock import FileLock, holding, sweep

if TYPE_CHECKING:
    from pathlib import Path


def test_one_holds_it_and_its_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    first, second = FileLock(path), FileLock(path)
    assert first.try_take()
    assert first.try_take()
    assert not second.try_take()
    second.release()
    assert path.exists()
    first.release()
    assert not path.exists()
    with holding(path) as held:
        assert held
        with holding(path) as again:
            assert not again
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_removed_is_not_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    gone = FileLock(path)
    assert gone.try_take()
    path.unlink()
    other = FileLock(path)
    assert other.try_take()
    assert not FileLock(path).try_take()


def test_threads_take_turns(tmp_path: Path) -> None:
    path, inside, most, turns = tmp_path / "a.lock", [0], [0], [0]

    def work() -> None:
        done = 0
        while done < 50:
            with holding(path) as held:
                if held:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
                    turns[0] += 1
                    done += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert turns == [200]
    assert not path.exists()


def test_what_the_dead_left_is_swept_and_what_lives_stays(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from shardgit.filelock import FileLock\n"
        "assert FileLock(Path(sys.argv[1])).try_take(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "dead.lock"], check=False)
    assert done.returncode == 9
    live = FileLock(tmp_path / "live.lock")
    assert live.try_take()
    sweep(tmp_path, tmp_path / "nowhere")
    assert os.listdir(tmp_path) == ["live.lock"]
    assert not FileLock(tmp_path / "live.lock").try_take()
