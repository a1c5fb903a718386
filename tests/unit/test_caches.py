"""What is kept to be answered again is bounded, however small each thing is that is kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from reference.gits import make_history

from shardgit.node import create_store, open_store
from shardgit.protocol.upload_pack import LsRefs
from shardgit.service import store as module
from shardgit.service.fetch import Answers, FetchService
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as made:
        import_repository(made, "demo", str(make_history(tmp_path / "origin", commits=12)))
        yield made


def test_answers_count_what_their_keys_hold() -> None:
    answers = Answers(1 << 20)
    for number in range(3_000):
        answers.put(number, b"0000")
    kept = [number for number in range(3_000) if answers.get(number) is not None]
    assert len(kept) < 1_100
    assert kept[-1] == 2_999
    answers.put("large", b"0000", key_bytes=1 << 20)
    assert answers.get("large") is None


async def test_prefixes_of_ls_refs_count(store: Store) -> None:
    fetches = FetchService(store, version="0")
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
