"""Is a history of refs linearizable? Wing and Gong's search with Lowe's memory, as porcupine has it.

Refs that no operation touches together are checked apart (a history is linearizable when that of
each object is); refs that one operation touches are one object, so a read of two refs that an atomic
change moves is held against both. In a search of one object, three things keep 100,000 operations
cheap: what puts nothing is taken as soon as it fits, since it forbids nothing that was possible
before; a state of the search is what is left before the last operation that was taken, which is
short; and operations of unknown outcome, which stay possible for ever, are found by the value that
they expect.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.history.operation import Operation, Outcome, Touch, Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STEPS_MAX = 5_000_000  # about a minute
SHOWN = 8  # operations before a violation that are told


@dataclass(frozen=True, slots=True)
class Violation:
    """Refs whose history nothing explains, and how far the best explanation came."""

    refs: tuple[str, ...]
    operations: int
    explained: int
    state: tuple[Touch, ...]
    last: tuple[Operation, ...]
    stuck: tuple[Operation, ...]

    def __str__(self) -> str:
        """Tell it on several lines."""
        shown = ", ".join(str(touch) for touch in self.state)
        lines = [f"{self.explained} of {self.operations} operations fit, up to {shown}; the last:"]
        lines += [f"  {operation}" for operation in self.last]
        lines += ["none of these can be next:", *(f"  {operation}" for operation in self.stuck)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found; ``undecided`` are refs whose search was given up."""

    violations: tuple[Violation, ...]
    undecided: tuple[tuple[str, ...], ...]
    objects: int
    steps: int

    @property
    def good(self) -> bool:
        """All of the history is explained."""
        return not self.violations and not self.undecided


def check(
    history: Iterable[Operation],
    *,
    initial: Mapping[str, Value] | None = None,
    steps_max: int = STEPS_MAX,
) -> Verdict:
    """Return whether one order of the operations explains all of them, for all refs.

    ``initial`` are the refs that were there before; ``steps_max`` bounds the search of each object.
    """
    violations: list[Violation] = []
    undecided: list[tuple[str, ...]] = []
    objects = steps = 0
    for refs, operations in _apart(history):
        search = _Search(refs, operations, initial or {})
        decided = search.run(steps_max)
        objects += 1
        steps += search.steps
        if decided is None:
            undecided.append(refs)
        elif not decided:
            violations.append(search.violation())
    return Verdict(tuple(violations), tuple(undecided), objects, steps)


def _apart(history: Iterable[Operation]) -> list[tuple[tuple[str, ...], list[Operation]]]:
    """Return operations by the refs that hang together."""
    above: dict[str, str] = {}

    def root(ref: str) -> str:
        while above.setdefault(ref, ref) != ref:
            above[ref] = ref = above[above[ref]]
        return ref

    operations = [operation for operation in history if operation.refs]
    for operation in operations:
        first, *others = operation.refs
        for other in others:
            above[root(other)] = root(first)
    groups: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        groups[root(next(iter(operation.refs)))].append(operation)
    names: dict[str, list[str]] = defaultdict(list)
    for ref in above:
        names[root(ref)].append(ref)
    return sorted((tuple(sorted(names[key])), group) for key, group in groups.items())


@dataclass(slots=True)
class _Frame:
    """A choice that was made: how to take it back, and what else there was."""

    before: tuple[Value, ...]
    unknown: int  # number among the unknown; -1 for a known operation
    lifted: list[int]  # calls, in the order in which they were taken
    high: int
    options: list[int]


@dataclass(slots=True)
class _Work:
    """An operation with refs as numbers."""

    operation: Operation
    expects: tuple[tuple[int, Value], ...]
    puts: tuple[tuple[int, Value], ...]
    quiet: bool = field(init=False)  # changes nothing

    def __post_init__(self) -> None:
        self.quiet = self.operation.outcome is Outcome.CONFLICT or not self.puts

    def fits(self, state: Sequence[Value]) -> bool:
        held = all(state[at] == value for at, value in self.expects)
        return held != (self.operation.outcome is Outcome.CONFLICT)


class _Search:
    """One object's search: a list of calls and returns that are left, linked, and a stack of choices."""

    def __init__(
        self, refs: tuple[str, ...], operations: list[Operation], initial: Mapping[str, Value]
    ) -> None:
        self.refs = refs
        self.steps = 0
        numbers = {ref: number for number, ref in enumerate(refs)}

        def work(operation: Operation) -> _Work:
            expects, puts = (
                tuple((numbers[touch.ref], touch.value) for touch in touches)
                for touches in (operation.expects, operation.puts)
            )
            return _Work(operation, expects, puts)

        known = [work(one) for one in operations if one.returned_ns is not None]
        self.known = len(known)
        self.state: tuple[Value, ...] = tuple(initial.get(ref) for ref in refs)
        self._link(known)
        self.unknown = sorted(
            (work(one) for one in operations if one.returned_ns is None and one.puts),
            key=lambda one: one.operation.called_ns,
        )
        self.by_value: dict[tuple[int, Value] | None, list[int]] = defaultdict(list)
        for number, one in enumerate(self.unknown):
            self.by_value[one.expects[0] if one.expects else None].append(number)
        self.taken = 0  # bits of unknown
        self.high = 0  # the last call that was taken
        self.left = self.known
        self.best: tuple[int, tuple[Value, ...], list[Operation]] | None = None
        self.stuck: tuple[Operation, ...] = ()

    def _link(self, known: list[_Work]) -> None:
        """Make the list: entry 0 is its head; calls stand before returns of the same moment."""
        marks = [(one.operation.called_ns, 0, number) for number, one in enumerate(known)]
        marks += [(one.operation.returned_ns or 0, 1, number) for number, one in enumerate(known)]
        marks.sort()
        size = len(marks) + 1
        self.works: list[_Work | None] = [None] * (size + 1)  # of calls; None for returns
        self.times = [0] + [mark[0] for mark in marks]
        self.returns = [0] * size  # of a call
        self.after = list(range(1, size + 1))
        self.before = list(range(-1, size))
        calls: dict[int, int] = {}
        for at, (_, is_return, number) in enumerate(marks, 1):
            if is_return:
                self.returns[calls[number]] = at
            else:
                calls[number] = at
                self.works[at] = known[number]
        self.end = size

    def run(self, steps_max: int) -> bool | None:
        """Return whether an order was found; None when the search was given up."""
        seen: set[tuple[object, ...]] = set()
        frames: list[_Frame] = []
        first: list[int] = []
        self._settle(first)
        options = self._options()
        while self.left:
            if not options:
                self._note(first, frames)
                if not frames:
                    return False
                frame = frames.pop()
                self._undo(frame)
                options = frame.options
                continue
            if self.steps >= steps_max:
                return None
            self.steps += 1
            frame = self._take(options.pop(), options)
            key = self._key()
            if key in seen:
                self._undo(frame)
                continue
            seen.add(key)
            frames.append(frame)
            options = self._options()
        return True

    def violation(self) -> Violation:
        """Tell the best that was found."""
        assert self.best is not None
        left, state, last = self.best
        shown = tuple(Touch(ref, value) for ref, value in zip(self.refs, state, strict=True))
        return Violation(
            self.refs, self.known, self.known - left, shown, tuple(last[-SHOWN:]), self.stuck
        )

    # ---- the list ----

    def _lift(self, call: int) -> None:
        after, before = self.after, self.before
        for at in (call, self.returns[call]):
            after[before[at]] = after[at]
            before[after[at]] = before[at]

    def _unlift(self, call: int) -> None:
        after, before = self.after, self.before
        for at in (self.returns[call], call):
            after[before[at]] = at
            before[after[at]] = at

    def _settle(self, lifted: list[int]) -> None:
        """Take what changes nothing and fits, as far as the first return that is left."""
        again = True
        while again:
            again = False
            at = self.after[0]
            while (work := self.works[at]) is not None:
                if work.quiet and work.fits(self.state):
                    self._lift(at)
                    lifted.append(at)
                    self.high = max(self.high, at)
                    self.left -= 1
                    again = True
                at = self.after[at]

    def _take(self, option: int, options: list[int]) -> _Frame:
        """Take an operation (below 0: an unknown one), then what fits the state that it leaves."""
        frame = _Frame(self.state, -1, [], self.high, options)
        if option < 0:
            frame.unknown = ~option
            self.taken |= 1 << frame.unknown
            work = self.unknown[frame.unknown]
        else:
            found = self.works[option]
            assert found is not None
            work = found
            self._lift(option)
            frame.lifted.append(option)
            self.high = max(self.high, option)
            self.left -= 1
        state = list(self.state)
        for at, value in work.puts:
            state[at] = value
        self.state = tuple(state)
        self._settle(frame.lifted)
        return frame

    def _undo(self, frame: _Frame) -> None:
        for call in reversed(frame.lifted):
            self._unlift(call)
        self.left += len(frame.lifted)
        self.state, self.high = frame.before, frame.high
        if frame.unknown >= 0:
            self.taken ^= 1 << frame.unknown

    def _options(self) -> list[int]:
        """Return what can be next and changes the state; known operations come last, to be tried first."""
        known = []
        at = self.after[0]
        while (work := self.works[at]) is not None:
            if not work.quiet and work.fits(self.state):
                known.append(at)
            at = self.after[at]
        until = self.times[at] if at < self.end else 0  # of the first return
        found = []
        for key in (*enumerate(self.state), None):
            for number in self.by_value.get(key, ()):
                work = self.unknown[number]
                if work.operation.called_ns > until:
                    break
                if not self.taken >> number & 1 and work.fits(self.state):
                    found.append(~number)
        return found + known[::-1]

    def _key(self) -> tuple[object, ...]:
        """Return what the future depends on: the calls left before the last one taken, and the state."""
        left = []
        at = self.after[0]
        while at < self.high:
            if self.works[at] is not None:
                left.append(at)
            at = self.after[at]
        return (self.high, tuple(left), self.taken, self.state)

    def _note(self, first: list[int], frames: list[_Frame]) -> None:
        """Keep the farthest that the search came, for the report."""
        if self.best is not None and self.best[0] <= self.left:
            return
        done: list[Operation] = []
        for frame in frames[-SHOWN:]:
            if frame.unknown >= 0:
                done.append(self.unknown[frame.unknown].operation)
            done += self._operations(frame.lifted)
        if not frames:
            done = self._operations(first)
        calls = []
        at = self.after[0]
        while self.works[at] is not None:
            calls.append(at)
            at = self.after[at]
        self.best = (self.left, self.state, done)
        self.stuck = tuple(self._operations(calls))

    def _operations(self, calls: Iterable[int]) -> list[Operation]:
        return [work.operation for at in calls if (work := self.works[at]) is not None]
