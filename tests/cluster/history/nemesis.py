"""Who breaks things while clients work, and mends them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cluster.history.link import Link, State

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence


class Fault(Protocol):
    """Something that can go wrong, and be well again; healing what is well does nothing."""

    name: str

    async def strike(self) -> None:
        """Make it go wrong."""

    async def heal(self) -> None:
        """Mend it."""


@dataclass
class Signalled:
    """One of some processes gets a signal: SIGKILL, or SIGSTOP until it is healed."""

    name: str
    processes: Callable[[], Sequence[int]]
    dice: random.Random
    sign: signal.Signals
    _stopped: list[int] = field(default_factory=list)

    async def strike(self) -> None:
        """Send it."""
        processes = self.processes()
        if processes:
            chosen = self.dice.choice(processes)
            self._stopped.append(chosen)
            self._send(chosen, self.sign)

    async def heal(self) -> None:
        """Let go on what was stopped."""
        while self._stopped:
            process = self._stopped.pop()
            if self.sign == signal.SIGSTOP:
                self._send(process, signal.SIGCONT)

    def _send(self, process: int, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, what)


@dataclass
class Broken:
    """Some links are in a state other than open."""

    name: str
    links: Sequence[Link]
    state: State
    delay_s: float = 0.0

    async def strike(self) -> None:
        """Break them."""
        for link in self.links:
            link.set(self.state, delay_s=self.delay_s)

    async def heal(self) -> None:
        """Open them."""
        for link in self.links:
            link.set(State.OPEN)


@dataclass
class Called:
    """What two functions do and undo, each in a thread."""

    name: str
    striking: Callable[[], object]
    healing: Callable[[], object]
    _struck: bool = False

    async def strike(self) -> None:
        """Call the first."""
        self._struck = True
        await asyncio.to_thread(self.striking)

    async def heal(self) -> None:
        """Call the second, if the first was."""
        if self._struck:
            await asyncio.to_thread(self.healing)
        self._struck = False


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault and when it was there, in the clock of the history."""

    name: str
    from_ns: int
    until_ns: int


class Nemesis:
    """Strikes with one fault after another, by the dice."""

    def __init__(self, faults: Sequence[Fault], dice: random.Random) -> None:
        self.faults = faults
        self.dice = dice
        self.strikes: list[Strike] = []

    @property
    def counts(self) -> Counter[str]:
        """How often each fault struck."""
        return Counter(strike.name for strike in self.strikes)

    async def run(self, seconds: float, *, quiet_s: float = 0.5, held_s: float = 0.7) -> None:
        """Strike for a time; quiet and faults last these seconds on average. All is healed at the end."""
        end = time.monotonic() + seconds  # what was begun by then is mended in its own time
        while self.faults and time.monotonic() < end:
            await asyncio.sleep(self.dice.random() * 2 * quiet_s)
            fault = self.dice.choice(self.faults)
            begun = time.monotonic_ns()
            try:
                await fault.strike()
                await asyncio.sleep(self.dice.random() * 2 * held_s)
            finally:
                await fault.heal()
                self.strikes.append(Strike(fault.name, begun, time.monotonic_ns()))
        await asyncio.sleep(max(0.0, end - time.monotonic()))
