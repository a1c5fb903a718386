"""Post-receive events: from the committed log, in order, at least once, whatever dies in between."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hooking import (
    SOURCE,
    Client,
    configure,
    equip,
    move,
    program,
    push,
    record_of,
    small_history,
    telling,
)
from moved import Moved

from shardgit.journal.cursor_records import CURSORS, HookCursor, hook_id
from shardgit.journal.interface import DeleteRange, end_of
from shardgit.journal.records import log_key
from shardgit.node import create_store, open_store
from shardgit.protocol.receive_pack import Command
from shardgit.refs.update import ANY, RefUpdate
from shardgit.refs.writer import RefWriter
from shardgit.service import events as events_module
from shardgit.service.events import Events
from shardgit.service.hooks import HookPolicy
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shardgit.oid import ObjectId
    from shardgit.service.store import Store

TELL = 'while read old new ref; do echo "$SHARDGIT_SEQUENCE $ref $new" >>{out}; done'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_history(tmp_path / "origin")
    create_store(tmp_path / "data")
    return tmp_path


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(events_module, "POLL_S", 0.05)
    monkeypatch.setattr(events_module, "GRACE_MS", 0)
    with open_store(folder / "data", threads=2) as opened:
        import_repository(opened, "demo", str(folder / "origin"))
        equip(opened, HookPolicy(programs=folder / "hooks"))
        yield opened


@pytest.fixture
def tip(store: Store) -> ObjectId:
    with store.journal.snapshot() as snapshot:
        ref = store.refs.get(snapshot, record_of(store), b"refs/heads/side")
    assert ref is not None
    assert ref.target is not None
    return ref.target


def listener(folder: Path, text: str = TELL, name: str = "tell") -> dict[str, Any]:
    text = text.format(out=folder / f"{name}.out")
    target = program(folder / "hooks", name, text)
    return {"kind": "program", "event": "post_receive", "target": target}


def told(folder: Path, name: str = "tell") -> list[str]:
    out = folder / f"{name}.out"
    return out.read_text().splitlines() if out.exists() else []


async def until(says: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not says():
            await asyncio.sleep(0.02)


def cursor(store: Store, hook: dict[str, Any]) -> HookCursor | None:
    wanted = hook_id(hook["kind"], hook["target"])
    with store.journal.snapshot() as snapshot:
        for row in snapshot.range(CURSORS, end_of(CURSORS)):
            if row.key.endswith(wanted):
                return HookCursor.decode(row.value)
    return None


async def test_events_come_in_order_from_when_the_hook_was_set(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    move(store, "refs/heads/before", tip)
    configure(store, listener(folder))
    first = move(store, "refs/heads/a", tip)  # nobody tells yet
    async with telling(store):
        await until(lambda: len(told(folder)) == 1)
        for number in range(5):
            move(store, f"refs/heads/n{number}", tip)
        move(store, "refs/heads/a", None)
        await until(lambda: len(told(folder)) == 7)
    assert told(folder) == [
        f"{first} refs/heads/a {tip.hex()}",
        *(f"{first + 1 + n} refs/heads/n{n} {tip.hex()}" for n in range(5)),
        f"{first + 6} refs/heads/a {'0' * 40}",
    ]


async def test_a_push_shows_its_client_the_output_and_is_told_once(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    hook = listener(folder, TELL + "; echo hello $SHARDGIT_ACTOR from $SHARDGIT_REASON; exit 9")
    configure(store, hook)
    assert store.events is not None
    sequence = 0
    async with telling(store):
        for number in range(3):
            client = Client()
            sequence = move(store, f"refs/heads/n{number}", tip)
            call = push(store, Command(b"refs/heads/n", None, tip), client=client)
            await store.events.pushed(call, sequence)
            assert client.text in ("hello alice from push\n", "")  # "": the background was faster
        await until(lambda: len(told(folder)) >= 3)
        await asyncio.sleep(0.3)
    assert len(told(folder)) == 3
    now = cursor(store, hook)
    assert now is not None
    assert now.sequence == sequence


async def test_inline_telling_works_without_a_background(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    configure(store, listener(folder, TELL + "; echo heard"))
    assert store.events is not None
    client = Client()
    sequence = move(store, "refs/heads/n", tip)
    await store.events.pushed(push(store, client=client), sequence)
    assert client.text == "heard\n"
    assert told(folder) == [f"{sequence} refs/heads/n {tip.hex()}"]
    await store.events.pushed(push(store, client=client), sequence)
    assert len(told(folder)) == 1


async def test_a_client_that_leaves_does_not_end_the_hook(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    configure(store, listener(folder, "echo begun; sleep 1; " + TELL))
    assert store.events is not None
    begun = asyncio.Event()

    class Leaving(Client):
        async def tell(self, data: bytes) -> None:
            begun.set()
            await asyncio.Event().wait()  # takes no more

    async with telling(store):
        sequence = move(store, "refs/heads/n", tip)
        call = push(store, client=Leaving())
        task = asyncio.create_task(store.events.pushed(call, sequence))
        async with asyncio.timeout(10):
            waiting = asyncio.create_task(begun.wait())
            await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        task.cancel()
        await until(lambda: len(told(folder)) == 1)


async def test_a_hook_that_fails_is_tried_again_and_holds_up_nobody(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    healed = folder / "healed"
    bad = listener(folder, f"test -e {healed} || kill -9 $$; " + TELL, "bad")
    good = listener(folder, name="good")
    configure(store, bad, good)
    async with telling(store):
        for number in range(3):
            move(store, f"refs/heads/n{number}", tip)
        await until(lambda: len(told(folder, "good")) == 3)
        assert told(folder, "bad") == []
        failing = cursor(store, bad)
        assert failing is not None
        assert failing.tries > 0
        healed.touch()
        await until(lambda: len(told(folder, "bad")) == 3)
    assert told(folder, "bad") == told(folder, "good")


async def test_an_event_is_given_up_in_the_end(
    store: Store, folder: Path, tip: ObjectId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "TRIES_MAX", 2)
    bad = listener(
        folder, 'case $(cat) in *n0*) kill -9 $$;; esac; echo "$SHARDGIT_SEQUENCE" >>{out}'
    )
    configure(store, bad)
    moved = Moved()
    async with telling(store):
        first = move(store, "refs/heads/n0", tip)
        move(store, "refs/heads/n1", tip)
        await until(lambda: told(folder) == [str(first + 1)])
    asked = moved("shardgit_hooks_total")
    assert asked.pop("post_receive accepted", 0) <= 1  # its end may come just behind what it told
    assert asked == {"post_receive failed": 2, "post_receive given_up": 1}


async def test_two_who_tell_do_not_tell_twice(store: Store, folder: Path, tip: ObjectId) -> None:
    configure(store, listener(folder))
    assert store.hooks is not None
    async with telling(store), Events(store.hooks).serving(drain_s=1):
        for number in range(10):
            move(store, f"refs/heads/n{number}", tip)
        await until(lambda: len(told(folder)) == 10)
        await asyncio.sleep(0.3)
    assert len(told(folder)) == 10


async def test_a_hook_cut_off_by_the_end_of_the_server_is_told_again(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    configure(
        store,
        listener(folder, f"test -e {folder}/again || (touch {folder}/again; sleep 300); " + TELL),
    )
    sequence = move(store, "refs/heads/n", tip)
    async with telling(store):
        await until((folder / "again").exists)
    assert told(folder) == []
    async with telling(store):
        await until(lambda: told(folder) == [f"{sequence} refs/heads/n {tip.hex()}"])


async def test_what_is_no_event_is_not_told(store: Store, folder: Path, tip: ObjectId) -> None:
    configure(store, listener(folder))
    writer = RefWriter(store.refs, store.journal, store.workers)
    update = RefUpdate(b"HEAD", ANY, None, symbolic=b"refs/heads/side")
    writer.update_sync(record_of(store), [update])
    sequence = move(store, "refs/heads/n", tip)
    async with telling(store):
        await until(lambda: len(told(folder)) == 1)
    assert told(folder) == [f"{sequence} refs/heads/n {tip.hex()}"]


async def test_a_log_that_was_cut_is_noted_and_left_behind(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    hook = listener(folder)
    configure(store, hook)
    number = record_of(store).id
    last = 0
    for each in range(3):
        last = move(store, f"refs/heads/n{each}", tip)
    store.journal.commit_sync([], [DeleteRange(log_key(number, 0), log_key(number, last))])
    async with telling(store):
        await until(lambda: (cursor(store, hook) or HookCursor(0)).sequence == last)
        sequence = move(store, "refs/heads/after", tip)
        await until(lambda: len(told(folder)) == 1)
    assert told(folder) == [f"{sequence} refs/heads/after {tip.hex()}"]


async def test_cursors_go_with_hooks_and_repositories(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    one, other = listener(folder, name="one"), listener(folder, name="other")
    configure(store, one, other)
    assert cursor(store, one) == cursor(store, other) is not None
    configure(store, {**one, "timeout_s": 5.0})
    assert cursor(store, one) is not None
    assert cursor(store, other) is None
    move(store, "refs/heads/n", tip)
    Repositories(store).delete("demo")
    async with telling(store):
        await until(lambda: cursor(store, one) is None)
    assert told(folder, "one") == []


COMMIT_AND_DIE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hooking import move
from shardgit.node import open_store
from shardgit.oid import ObjectId
with open_store(Path(sys.argv[2]), threads=1) as store:
    move(store, "refs/heads/n", ObjectId(bytes.fromhex(sys.argv[3])))
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_process_killed_right_behind_its_commit_loses_no_event(
    store: Store, folder: Path, tip: ObjectId
) -> None:
    configure(store, listener(folder))
    tests = os.path.dirname(os.path.dirname(__file__))
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", COMMIT_AND_DIE, tests, str(folder / "data"), tip.hex()],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    async with telling(store):
        await until(lambda: len(told(folder)) == 1)
    assert told(folder)[0].endswith(f" refs/heads/n {tip.hex()}")
