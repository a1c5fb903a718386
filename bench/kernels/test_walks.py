"""What refs reach, beside pygit2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shardgit._graph import Walk
from shardgit.oid import ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shardgit.service.look import Look

    Measure = Callable[[Callable[[], object], int, str], object]


def _tips(repository: Path) -> list[str]:
    pygit2 = pytest.importorskip("pygit2")
    opened = pygit2.Repository(str(repository))
    return [str(opened.references[name].target) for name in opened.references]


@pytest.mark.benchmark(group="closure of all refs")
class TestClosure:
    """All objects that refs reach: ours walks the graph kept beside the pack, pygit2 reads trees."""

    def test_shardgit(self, measure: Measure, look: Look, repository: Path) -> None:
        assert look.view is not None
        graph = look.view.graph()
        tips = look.view.positions([ObjectId(bytes.fromhex(tip)) for tip in _tips(repository)])

        def work() -> int:
            walk = Walk(graph)
            walk.mark(tips)
            assert not walk.run()  # nothing has to be read
            return walk.count()

        assert measure(work, graph.objects, "objects") == graph.objects

    def test_pygit2(self, measure: Measure, look: Look, repository: Path) -> None:
        pygit2 = pytest.importorskip("pygit2")
        assert look.view is not None
        tips = _tips(repository)

        def work() -> int:
            opened = pygit2.Repository(str(repository))
            seen: set[object] = set()
            commits = []
            walker = opened.walk(opened[tips[0]].peel(pygit2.Commit).id)
            for tip in tips:
                seen.add(opened[tip].id)
                walker.push(opened[tip].peel(pygit2.Commit).id)
            commits = list(walker)
            seen.update(commit.id for commit in commits)
            trees = [commit.tree for commit in commits]
            while trees:
                tree = trees.pop()
                if tree.id in seen:
                    continue
                seen.add(tree.id)
                for entry in tree:
                    if entry.type_str == "tree":
                        trees.append(entry)
                    else:
                        seen.add(entry.id)
            return len(seen)

        count = look.view.graph().objects
        assert measure(work, count, "objects") == count
