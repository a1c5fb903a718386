"""What is kept to be answered again is bounded, however small each thing is that is kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from reference.gits import make_history

from shardgit.kept import Kept
from shardgit.node import create_store, open_store
from shardgit.protocol.upload_pack import LsRefs
from shardgit.refs.update import RefUpdate
from shardgit.service import fetch as fetch_module
from shardgit.service import store as module
from shardgit.service.fetch import FetchService
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as made:
        import_repository(made, "demo", str(make_history(tmp_path / "origin", commits=12)))
        yield made


def test_answers_count_what_their_keys_hold() -> None:
    answers = Kept(1 << 20)
    for number in range(8_000):
        answers.put(number, b"0000")
    kept = [number for number in range(8_000) if answers.get(number) is not None]
    assert len(kept) < 5_300
    assert kept[-1] == 7_999
    answers.put("large", b"0000", key_bytes=1 << 20)
    assert answers.get("large") is None


async def test_prefixes_of_ls_refs_count(store: Store) -> None:
    fetches = FetchService(store, version="0")
    fetches.answers = Kept(16 << 20)
    plain = LsRefs(prefixes=(b"refs/heads/",))
    want = b"".join([piece async for piece in fetches.ls_refs("demo", plain)])
    for number in range(40):  # 20 MiB of prefixes, for answers of 4 bytes
        many = LsRefs(prefixes=tuple(b"%d-%d" % (number, at) for at in range(8_000)))
        assert [piece async for piece in fetches.ls_refs("demo", many)] == [b"0000"]
    assert fetches.answers.used_bytes <= 16 << 20
    assert b"".join([piece async for piece in fetches.ls_refs("demo", plain)]) == want


def test_small_bitsets_are_few(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REACH_CACHED_BYTES", 50 << 10)
    with store.journal.snapshot() as snapshot:
        view = store.view(store.state(snapshot, "demo").pool)
    assert view is not None
    made: list[int] = []

    def note(number: int) -> bytes:
        made.append(number)
        return b"x"

    for number in (*range(200), 199, 0):
        store.selected(view, b"%d" % number, partial(note, number))
    assert made == [*range(200), 0]


async def test_the_lines_of_pages_are_kept_and_changes_shown_over_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "PAGE_BYTES", 1_000)
    fetches = FetchService(store, version="0")

    def make(names: Sequence[bytes]) -> None:
        with store.journal.snapshot() as snapshot:
            record = store.repository(snapshot, "demo")
            main = store.refs.get(snapshot, record, b"refs/heads/main")
            assert main is not None
            updates = [RefUpdate(name, None, main.target) for name in names]
            change = store.refs.update(snapshot, record, updates)
        store.journal.commit_sync(change.conditions, change.operations)

    async def listed() -> list[bytes]:
        return [piece async for piece in fetches.ls_refs("demo", LsRefs())]

    make([b"refs/many/%06d" % number for number in range(30_000)])
    pages = await listed()
    assert len(pages) > 3
    assert store.refs.lines.used_bytes > 1 << 20
    assert await listed() == pages
    used = store.refs.lines.used_bytes
    make([b"refs/many/015000x"])
    changed = b"".join(await listed())
    at = changed.index(b"refs/many/015000x") - 45
    assert changed[:at] + changed[changed.index(b"\n", at) + 1 :] == b"".join(pages)
    assert (
        store.refs.lines.used_bytes == used
    )  # a page that has changes over it is written each time
    fetches.answers = Kept(0)
    pages = await listed()
    store.refs.lines.__init__(0)  # type: ignore[misc]
    assert await listed() == pages
