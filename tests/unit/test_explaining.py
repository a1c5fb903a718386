"""A clone that is explained is the clone that git makes: its objects, its bytes, and what makes it dear."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from daemon import daemon
from reference.gits import git, make_history

from shardgit.errors import InvalidArgument, RepositoryMissing
from shardgit.node import create_store, open_store
from shardgit.service.conversation import Conversations
from shardgit.service.explained import CloneExplained, Stage
from shardgit.service.explaining import _advice, explain_clone, explained
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardgit.service.store import Store

STAGES = ["refs", "reach", "negotiate", "plan", "send"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data")
    with open_store(tmp_path / "data") as made:
        import_repository(made, "demo", str(make_history(tmp_path / "origin", commits=60)))
        yield made


async def cloned(store: Store, folder: Path, *options: str) -> tuple[int, int]:
    """Return how many objects git gets in a clone, and in how many bytes of a pack."""
    # Kept as it came: git would write what is in it anew otherwise.
    kept = ("-c", "fetch.unpackLimit=1", "-c", "protocol.version=2")
    async with daemon(Conversations(store, version="0")) as server:
        url = f"git://127.0.0.1:{server.port}/demo"
        words = [
            "git",
            *kept,
            "clone",
            "--quiet",
            "--bare",
            "--no-checkout",
            *options,
            url,
            str(folder),
        ]
        await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, timeout=60)
    (pack,) = (folder / "objects" / "pack").glob("*.pack")
    shown = git(folder, "verify-pack", "-v", str(pack.with_suffix(".idx"))).decode()
    objects = sum(1 for line in shown.splitlines() if line[:40].isalnum() and " " in line[:42])
    return objects, pack.stat().st_size


@pytest.mark.parametrize(
    ("options", "depth", "filters"),
    [((), 0, ()), (("--filter=blob:none",), 0, ("blob:none",)), (("--depth=1",), 1, ())],
)
async def test_its_objects_and_bytes_are_those_that_git_gets(
    store: Store,
    tmp_path: Path,
    options: tuple[str, ...],
    depth: int,
    filters: tuple[str, ...],
) -> None:
    objects, size = await cloned(store, tmp_path / "clone", *options)
    made = explained(store, "demo", depth=depth, filters=filters)
    assert made.objects == objects
    assert made.pack_bytes + 12 + 20 == size
    assert made.pack_bytes == made.whole_bytes + made.picked_bytes + made.made_bytes
    assert [stage.name for stage in made.stages] == STAGES
    assert made.seconds == pytest.approx(sum(stage.seconds for stage in made.stages))
    assert (made.picked_segments > 0) == bool(depth)


def test_the_second_finds_known_what_the_first_walked(store: Store) -> None:
    assert not explained(store, "demo").reach_known
    assert explained(store, "demo").reach_known


def test_an_empty_repository_costs_nothing(store: Store) -> None:
    store.create_repository("empty")
    made = explained(store, "empty")
    assert (made.refs, made.objects, made.pack_bytes, made.advice) == (1, 0, 0, ())


def test_what_cannot_be_cloned_cannot_be_explained(store: Store) -> None:
    with pytest.raises(RepositoryMissing):
        explained(store, "nobody")
    with pytest.raises(InvalidArgument):
        explained(store, "demo", filters=("blob:some",))


def test_the_work_comes_in_parts_that_others_get_between(store: Store) -> None:
    *parts, last = explain_clone(store, "demo")
    assert len(parts) >= len(STAGES)
    assert set(parts) == {None}
    assert last is not None


def made_of(**facts: int) -> CloneExplained:
    every = dict.fromkeys(CloneExplained.__dataclass_fields__, 0) | {"pack_bytes": 100} | facts
    every |= {"stages": (Stage("send", 0.1, 0.1),), "advice": ()}  # type: ignore[dict-item]
    return CloneExplained(**every)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"refs": 60_000}, "hidden_refs"),
        ({"recents": 60}, "settled"),
        ({"picked_bytes": 30}, "repo compact"),
        ({"made_bytes": 30, "made_objects": 3}, "deflated"),
    ],
)
def test_advice_names_what_helps(facts: dict[str, int], word: str) -> None:
    (said,) = _advice(made_of(**facts), is_full=True)
    assert word in said
    assert not list(_advice(made_of(), is_full=True))


def test_waiting_is_told_apart_from_work() -> None:
    waited = replace(made_of(), stages=(Stage("send", 3.0, 0.5),))
    (said,) = _advice(waited, is_full=True)
    assert said.startswith("2.5 s of sending were spent waiting")
