"""The checker of histories: right where all orders can be tried, and for all histories that are known."""

from __future__ import annotations

import random

import pytest
from cluster.history.checker import check
from cluster.history.operation import Operation, Outcome, Touch, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.linear import explained
from reference.registers import SPOILERS, Shape, simulate, spoil

PAIRS = Shape(objects=(("a",), ("b",), ("c", "d"), ("e", "f")), clients=6, unknown=0.05)
VALUES: list[Value] = [None, b"1", b"2"]


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    refs = draw(st.sampled_from([("a",), ("a",), ("b",), ("a", "b")]))
    touches = [Touch(ref, draw(st.sampled_from(VALUES))) for ref in refs]
    outcome = draw(st.sampled_from(Outcome))
    called = draw(st.integers(0, 9))
    returned = None if outcome is Outcome.UNKNOWN else called + draw(st.integers(0, 5))
    puts = draw(st.booleans())
    expects = tuple(touches) if not puts or draw(st.integers(0, 3)) else ()
    put = tuple(Touch(ref, draw(st.sampled_from(VALUES))) for ref in refs) if puts else ()
    return Operation(0, called, returned, outcome, expects, put)


@settings(max_examples=300, deadline=None)
@given(st.lists(operations(), max_size=6))
def test_the_checker_agrees_with_the_definition(history: list[Operation]) -> None:
    assert check(history, initial={"b": b"1"}).good == explained(history, {"b": b"1"})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 8))
def test_histories_of_a_right_store_are_explained(seed: int, clients: int) -> None:
    shape = Shape(PAIRS.objects, clients=clients, operations=200, unknown=0.1)
    assert check(simulate(random.Random(seed), shape)).good


@pytest.mark.parametrize("how", SPOILERS)
def test_histories_that_were_made_wrong_are_not(how: str) -> None:
    found = 0
    for seed in range(30):
        dice = random.Random(seed)
        wrong = spoil(dice, simulate(dice, PAIRS), how)
        if wrong is not None:
            found += 1
            (violation,) = check(wrong).violations
            assert violation.stuck
            assert violation.explained < violation.operations
    assert found >= 10


@pytest.mark.parametrize(("refs", "length"), [(1, 100_000), (200, 20_000)])
def test_a_hundred_thousand_operations_take_a_step_each_at_most(refs: int, length: int) -> None:
    objects = tuple((f"r{number}",) for number in range(refs))
    shape = Shape(objects, clients=16, operations=length, unknown=0.01)
    history = simulate(random.Random(7), shape)
    verdict = check(history)
    assert verdict.good
    assert verdict.objects == refs
    assert verdict.steps < length
    wrong = spoil(random.Random(8), history[-2_000:], "denied")
    assert wrong is not None
    (violation,) = check(history[:-2_000] + wrong).violations
    assert violation.operations > 0


def test_a_search_that_would_not_end_is_given_up() -> None:
    free = [Operation(n, 0, 100 + n, Outcome.DONE, (), (Touch("a", b"%d" % n),)) for n in range(20)]
    never = Operation(99, 300, 400, Outcome.DONE, (Touch("a", b"never"),))
    assert check([*free, never], steps_max=2_000).undecided == (("a",),)


def test_what_is_unknown_may_happen_long_after_the_client_gave_up() -> None:
    cut = Operation(0, 0, None, Outcome.UNKNOWN, (Touch("a", None),), (Touch("a", b"1"),))
    before = Operation(1, 10, 11, Outcome.DONE, (Touch("a", None),))
    after = Operation(1, 20, 21, Outcome.DONE, (Touch("a", b"1"),))
    gone = Operation(1, 30, 31, Outcome.DONE, (Touch("a", None),))
    assert check([cut, before, after]).good
    violation = check([cut, before, after, gone]).violations[0]
    assert violation.explained == 2
    assert "none of these can be next" in str(violation)
