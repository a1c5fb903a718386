"""The spool: whole files or none, one maker at a time, bounded."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from shardgit.errors import LimitExceeded
from shardgit.service import spool as module
from shardgit.service.spool import Spool
from shardgit.workers import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(4)
    yield made
    made.close()


def maker(
    *pieces: bytes, made: list[int] | None = None, wait_s: float = 0
) -> Callable[[], AsyncGenerator[bytes, None]]:
    async def make() -> AsyncGenerator[bytes, None]:
        if made is not None:
            made.append(1)
        for piece in pieces:
            await asyncio.sleep(wait_s)
            yield piece

    return make


def content(spool: Spool, key: str) -> bytes | None:
    file = spool.open(key)
    if file is None:
        return None
    try:
        return file.read(0, file.size)
    finally:
        file.close()


async def test_many_who_want_a_file_share_one_maker(tmp_path: Path, workers: Workers) -> None:
    made: list[int] = []
    spools = [Spool(tmp_path / "s", workers, most_bytes=1000) for _ in range(2)]
    files = await asyncio.gather(
        *[spools[n % 2].take("a", maker(b"one", b"two", made=made, wait_s=0.02)) for n in range(8)]
    )
    assert len(made) == 1
    for file in files:
        assert (file.size, file.read(0, 10), file.read(2, 2)) == (6, b"onetwo", b"et")
        file.close()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["a"]


async def test_a_maker_that_fails_leaves_nothing_and_the_next_goes_on(
    tmp_path: Path, workers: Workers
) -> None:
    spool = Spool(tmp_path / "s", workers, most_bytes=1000)

    async def breaks() -> AsyncGenerator[bytes, None]:
        yield b"half"
        await asyncio.sleep(0.05)
        raise RuntimeError("broken")

    first = asyncio.ensure_future(spool.take("a", breaks))
    await asyncio.sleep(0.02)
    second = await spool.take("a", maker(b"whole"))
    second.close()
    with pytest.raises(RuntimeError, match="broken"):
        await first
    assert content(spool, "a") == b"whole"
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["a"]


async def test_a_cancelled_maker_leaves_nothing(tmp_path: Path, workers: Workers) -> None:
    spool = Spool(tmp_path / "s", workers, most_bytes=1000)
    task = asyncio.ensure_future(spool.take("a", maker(b"x", b"y", wait_s=0.05)))
    await asyncio.sleep(0.07)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "s").iterdir()) == []


async def test_the_least_used_files_go_first(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOUCH_S", 0)
    spool = Spool(tmp_path / "s", workers, most_bytes=100)
    for number, key in enumerate("abc"):
        (await spool.take(key, maker(b"x" * 30))).close()
        os.utime(tmp_path / "s" / key, (number, number))
    kept = await spool.take("a", maker(b"never"))  # used, so that b is the oldest
    (await spool.take("d", maker(b"y" * 30))).close()
    assert content(spool, "b") is None
    assert content(spool, "a") == content(spool, "c") == b"x" * 30
    (await spool.take("e", maker(b"z" * 90))).close()
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["e"]
    assert kept.read(0, 99) == b"x" * 30  # who reads it may go on
    kept.close()


async def test_a_file_over_the_bound_is_refused(tmp_path: Path, workers: Workers) -> None:
    spool = Spool(tmp_path / "s", workers, most_bytes=10)
    with pytest.raises(LimitExceeded, match="over the bound"):
        await spool.take("a", maker(b"12345", b"67890", b"1"))
    assert list((tmp_path / "s").iterdir()) == []


async def test_what_a_killed_maker_left_is_taken_over_and_removed(
    tmp_path: Path, workers: Workers
) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from shardgit.service.spool import Spool
from shardgit.workers import Workers
async def make():
    yield b"half"
    print("made", flush=True)
    await asyncio.sleep(60)
async def main():
    await Spool(Path(sys.argv[1]), Workers(2), most_bytes=1000).take("a", make)
asyncio.run(main())
"""
    folder = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        spool = Spool(folder, workers, most_bytes=1000)
        waiting = asyncio.ensure_future(spool.take("a", maker(b"whole")))
        await asyncio.sleep(0.1)
        assert not waiting.done()  # another process is at it
        process.kill()
        file = await asyncio.wait_for(waiting, 10)
        file.close()
    assert content(spool, "a") == b"whole"
    old = folder / "gone.tmp"
    old.write_bytes(b"left")
    os.utime(old, (time.time() - 7200,) * 2)
    (await spool.take("b", maker(b"b"))).close()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_a_note_is_replaced_whole(tmp_path: Path, workers: Workers) -> None:
    spool = Spool(tmp_path / "s", workers, most_bytes=10)
    assert spool.noted("last-1") == b""
    spool.note("last-1", b"one")
    spool.note("last-1", b"two")
    assert spool.noted("last-1") == b"two"
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["last-1"]


async def test_who_is_cancelled_while_it_takes_the_lock_gives_it_back(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "s", workers, most_bytes=1000)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    flock = fcntl.flock

    def slow(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.1)

    monkeypatch.setattr(fcntl, "flock", slow)
    descriptors = len(os.listdir("/proc/self/fd"))
    first = asyncio.ensure_future(spool.take("a", maker(b"one")))
    await begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(os.listdir("/proc/self/fd")) == descriptors
    async with asyncio.timeout(5):
        second = await spool.take("a", maker(b"one"))
    assert second.read(0, 10) == b"one"
    second.close()


async def test_a_file_that_is_lost_is_closed(tmp_path: Path, workers: Workers) -> None:
    spool = Spool(tmp_path / "s", workers, most_bytes=1000)
    file = await spool.take("a", maker(b"one"))
    path = f"/proc/self/fd/{file.descriptor}"
    assert os.readlink(path) == str(tmp_path / "s" / "a")
    file.__del__()
    assert not os.path.lexists(path)
    file.close()
