"""Random requests over random histories: git's own upload-pack beside ours, boundary and objects compared."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.gits import git, shallow_copy, shallow_ends
from reference.histories import random_history
from reference.upload_packs import (
    Answer,
    Ask,
    gits_answer,
    judge_version,
    listed,
    objects_of,
    our_answer,
)

from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.service.importing import import_repository

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shardgit.service.store import Store

pytestmark = [pytest.mark.interop, pytest.mark.slow]
SHALLOW = 3  # histories that end where they have parents
SKEWED = "case1"
FILTERS = (
    *(b"blob:none", b"blob:limit=0", b"blob:limit=20", b"blob:limit=1k", b"tree:0", b"tree:1"),
    *(b"tree:2", b"tree:3", b"tree:9", b"object:type=commit", b"object:type=tree"),
    *(b"object:type=blob", b"object:type=tag", b"sparse:oid=spec:spec"),
)


class Case:
    """One history in both places."""

    def __init__(self, folder: Path, store: Store, name: str, kind: HashKind) -> None:
        self.folder, self.store, self.name, self.kind = folder, store, name, kind
        self.skewed = name == SKEWED
        self.scratch = folder.parent / f"{name}.scratch"
        rows = git(folder, "for-each-ref", "--format=%(objectname) %(refname:short)").decode()
        self.tips = sorted({row.split()[0] for row in rows.splitlines()})
        self.refs = sorted({row.split()[1] for row in rows.splitlines()})
        self.roots = set(git(folder, "log", "--all", "--format=%T").decode().split())
        self.peeled = {
            tip: git(folder, "rev-parse", tip + "^{}").decode().strip() for tip in self.tips
        }
        self.ends = {each.decode() for each in shallow_ends(folder)}
        self.commits = sorted(git(folder, "rev-list", "--all").decode().split())

    def check_ends(self, ask: Ask, theirs: Answer, ours: Answer) -> None:
        """Hold the boundary that a client is told of against git's."""
        by_list = any(each.startswith((b"deepen-since", b"deepen-not")) for each in ask.extra)
        if by_list and self.ends:
            # git's server forgets then where its own history ends: it does not tell, or tells that it goes on.
            assert theirs.shallow <= ours.shallow <= theirs.shallow | self.ends
            assert ours.unshallow == theirs.unshallow - self.ends
        else:
            assert (ours.shallow, ours.unshallow) == (theirs.shallow, theirs.unshallow)

    def either(self, wants: Sequence[str], *, inner: bool = False) -> set[str]:
        """Return what git's server may send or not: trees that are wanted, and are a commit's own as well.

        They are filtered as the one or the other, by what it meets first; so are ``inner`` ones.
        """
        peeled = {self.peeled.get(want, want) for want in wants}
        twice = peeled - set(self.commits) if inner else peeled & self.roots
        if len(wants) == 1:
            return set()
        return listed(self.folder, sorted(twice)) if twice else set()

    async def answers(self, ask: Ask, version: int) -> tuple[Answer, Answer]:
        theirs = gits_answer(self.folder, ask, version=version, kind=self.kind)
        ours = await our_answer(self.store, self.name, ask, version=version, kind=self.kind)
        return theirs, ours

    def objects(self, answer: Answer) -> set[str]:
        return objects_of(answer.pack, self.scratch, self.kind)

    def owned(self, haves: tuple[str, ...], shallows: tuple[str, ...]) -> set[str]:
        """Return what a client has that says so: the closure of its haves down to its boundary."""
        if not haves:
            return set()
        path = self.scratch.with_suffix(".shallow")
        path.write_text("".join(f"{one}\n" for one in {*shallows, *self.ends}))
        words = ["--shallow-file", str(path), "rev-list", "--objects", "--stdin"]
        out = git(self.folder, *words, stdin="\n".join(haves).encode())
        return {row.split()[0].decode() for row in out.splitlines()}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Case]]:
    folder = tmp_path_factory.mktemp("judge")
    create_store(folder / "data")
    with open_store(folder / "data") as store:
        made = []
        seed = int(os.environ.get("JUDGE_SEED", "0"))
        for number in range(3 + SHALLOW):
            kind = HashKind.SHA256 if number in (2, 3) else HashKind.SHA1
            name = f"case{number}"
            made_here = random_history(
                folder / f"{name}.git", seed + number, kind.git_name, skewed=name == SKEWED
            )
            if number >= 3:
                rand = random.Random(seed + number)
                made_here = shallow_copy(made_here, folder / f"{name}.cut.git", rand)
            import_repository(store, name, str(made_here))
            made.append(Case(made_here, store, name, kind))
        yield made


def some(values: list[str], most: int, least: int = 0) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True)


JUDGED = settings(
    max_examples=int(os.environ.get("JUDGE_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def draw_deepening(data: st.DataObject, case: Case, *, relative: bool = False) -> tuple[bytes, ...]:
    # git's walk over what refs do not reach goes by dates, and stops too early when they lie.
    ways = ["depth", "since", "all"] if case.skewed else ["depth", "since", "not", "both", "all"]
    how = data.draw(st.sampled_from([*ways, "relative"] if relative else ways))
    since = 1_700_000_000 + 60 * data.draw(st.integers(-5, 80))
    without = [b"deepen-not " + each.encode() for each in data.draw(some(case.refs, 2, 1))]
    return {
        "depth": (b"deepen %d" % data.draw(st.integers(1, 12)),),
        "since": (b"deepen-since %d" % since,),
        "not": tuple(without),
        "both": (b"deepen-since %d" % since, *without),
        "all": (b"deepen 2147483647",),
        "relative": (b"deepen %d" % data.draw(st.integers(1, 6)), b"deepen-relative"),
    }[how]


@JUDGED
@given(data=st.data())
async def test_clones_are_gits(cases: list[Case], data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(cases))
    version = data.draw(st.sampled_from([0, 2]))
    extra: tuple[bytes, ...] = ()
    if data.draw(st.booleans()):
        extra += draw_deepening(data, case)
    if data.draw(st.booleans()):
        extra += (b"filter " + data.draw(st.sampled_from(FILTERS)),)
    words = (b"include-tag",) if data.draw(st.booleans()) else ()
    ask = Ask(tuple(data.draw(some(case.tips, 4, 1))), (), extra, words)
    theirs, ours = await case.answers(ask, version)
    assert bool(theirs.error) == bool(ours.error), (theirs.error, ours.error)
    if theirs.error:
        assert ours.error == theirs.error
        return
    case.check_ends(ask, theirs, ours)
    sent, gits = case.objects(ours), case.objects(theirs)
    assert sent ^ gits <= case.either(ask.wants, inner=True)


@JUDGED
@given(data=st.data())
async def test_later_fetches_give_what_is_lacking_and_no_more_than_git(
    cases: list[Case], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(cases))
    version = data.draw(st.sampled_from([0, 2]))
    haves = tuple(data.draw(some(case.commits, 3, 1)))
    shallows: tuple[str, ...] = ()
    if data.draw(st.booleans()):
        first = gits_answer(case.folder, Ask(haves, (), draw_deepening(data, case)), kind=case.kind)
        if first.error:
            return
        shallows = tuple(sorted(first.shallow))
    told = tuple(b"shallow " + each.encode() for each in shallows)
    extra = told
    if data.draw(st.booleans()):
        # Depths relative to the boundary are counted in another way since git 2.54.
        extra += draw_deepening(data, case, relative=judge_version() >= (2, 54))
    words = tuple(each for each in extra if each == b"deepen-relative")
    extra = tuple(each for each in extra if each not in words)
    ask = Ask(tuple(data.draw(some(case.commits + case.tips, 4, 1))), haves, extra, words)
    theirs, ours = await case.answers(ask, version)
    if case.ends and "pack-objects died" in theirs.error:
        return  # where git's server follows what it told
    assert bool(theirs.error) == bool(ours.error), (theirs.error, ours.error)
    if theirs.error:
        assert ours.error == theirs.error
        return
    case.check_ends(ask, theirs, ours)
    sent, gits = case.objects(ours), case.objects(theirs)
    owned = case.owned(haves, shallows)
    assert gits - sent <= owned  # whatever the client lacks is there
    assert sent <= gits | owned  # and nothing that git would not send to one who lacks it


@JUDGED
@given(data=st.data())
async def test_filters_together_pass_what_each_of_them_passes(
    cases: list[Case], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(cases))
    wants = tuple(data.draw(some(case.tips, 3, 1)))
    parts = data.draw(st.lists(st.sampled_from(FILTERS), min_size=2, max_size=3))
    alone = [
        case.objects((await case.answers(Ask(wants, (), (b"filter " + each,)), 2))[1])
        for each in parts
    ]
    spec = b"filter combine:" + b"+".join(each.replace(b":", b"%3A") for each in parts)
    theirs, ours = await case.answers(Ask(wants, (), (spec,)), 2)
    sent = case.objects(ours)
    assert sent == set.intersection(*alone)
    assert case.objects(theirs) <= sent  # git forgets what it met on another path first


@JUDGED
@given(data=st.data())
async def test_what_is_wanted_by_id_is_sent_whatever_the_filter(
    cases: list[Case], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(cases))
    everything = sorted(listed(case.folder, ["--all"]) - set(case.commits))
    wants = tuple(data.draw(some(everything, 6, 1)))
    haves = tuple(data.draw(some(case.commits, 2)))
    spec = data.draw(st.sampled_from([each for each in FILTERS if b"sparse" not in each]))
    words = (b"filter " + spec,)
    theirs, ours = await case.answers(Ask(wants, haves, words), 2)
    sent = case.objects(ours)
    either = case.either(wants)
    # git sends some of what the client has.
    assert case.objects(theirs) - sent <= case.owned(haves, ()) | either
    assert set(wants) <= sent | either
    if haves:
        return
    # One at a time: a tree that git met deep in another one is not seen again at the top.
    alone = [
        case.objects(gits_answer(case.folder, Ask((each,), (), words), kind=case.kind))
        for each in wants
    ]
    assert sent | either == set(wants).union(*alone, either)
