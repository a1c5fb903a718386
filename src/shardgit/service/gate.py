"""How many requests are let in: at once and in a minute, of a repository, an actor, an address; fewer under load."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit import metrics
from shardgit.errors import Overloaded, RateLimited

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.service.access import Principal

KNOWN_MAX = 20_000  # of whom a rate is kept in memory
LOOK_S = 0.25  # between two looks at load and memory
OVERLOAD_RETRY_S, FULL_RETRY_S = 5, 2
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds of one process; 0 is none. Rates are requests a minute, of which a quarter may come at once."""

    repository_requests: int = 0
    actor_requests: int = 0
    address_requests: int = 0
    actor_rate: int = 0
    address_rate: int = 0
    wait_s: float = (
        0.0  # of the job that waits longest for a thread, from which on no more are let in
    )
    memory_free: float = 0.0  # share of the memory, below which no more are let in


class Rates:
    """Who has asked how often lately: a bucket of tokens each, of those that were seen last."""

    def __init__(self, a_minute: int) -> None:
        self._a_second = a_minute / MINUTE_S
        self._most = max(1.0, a_minute / 4)
        self._seen: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, as of when

    def take(self, who: str) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        now = time.monotonic()
        left, then = self._seen.pop(who, (self._most, now))
        left = min(self._most, left + (now - then) * self._a_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._a_second
        self._seen[who] = (left if wait else left - 1, now)
        if len(self._seen) > KNOWN_MAX:
            self._seen.popitem(last=False)
        return wait


class Gate:
    """Counts the requests under way of one process. Used on one event loop.

    ``waited_s`` tells how long work waits for a thread, ``memory_free`` which share of the memory is left.
    Who has shown that it is an admin is let in whatever the load, but for those for whom a front end asks.
    """

    def __init__(
        self, caps: Caps, waited_s: Callable[[], float], memory_free: Callable[[], float]
    ) -> None:
        self._caps = caps
        self._waited_s = waited_s
        self._memory_free = memory_free
        self._repositories: Counter[str] = Counter()
        self._actors: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._actor_rates = Rates(caps.actor_rate) if caps.actor_rate else None
        self._address_rates = Rates(caps.address_rate) if caps.address_rate else None
        self._looked = float("-inf")
        self._load = ""

    def enter(self, principal: Principal) -> None:
        """Let a request in; ``leave`` is due then. Errors: RateLimited, Overloaded."""
        caps = self._caps
        actor = principal.name if principal.proved else ""
        if not (principal.proved and principal.rights.admin and not principal.delegated):
            self._check_load()
            if actor and caps.actor_requests and self._actors[actor] >= caps.actor_requests:
                raise _full("actor", "requests of that actor are under way; try again")
            if (
                principal.address
                and caps.address_requests
                and self._addresses[principal.address] >= caps.address_requests
            ):
                raise _full("address", "requests from that address are under way; try again")
            self._check_rate(self._actor_rates, actor, "actor")
            self._check_rate(self._address_rates, principal.address, "address")
        if actor:
            self._actors[actor] += 1
        if principal.address:
            self._addresses[principal.address] += 1

    def leave(self, principal: Principal) -> None:
        """Take note that a request has ended."""
        if principal.proved:
            _less(self._actors, principal.name)
        if principal.address:
            _less(self._addresses, principal.address)

    def enter_repository(self, name: str) -> None:
        """Let a request at a repository; ``leave_repository`` is due then. Errors: RateLimited."""
        most = self._caps.repository_requests
        if most and self._repositories[name] >= most:
            raise _full("repository", "requests at that repository are under way; try again")
        self._repositories[name] += 1

    def leave_repository(self, name: str) -> None:
        """Take note that a request at a repository has ended."""
        _less(self._repositories, name)

    @staticmethod
    def _check_rate(rates: Rates | None, who: str, why: str) -> None:
        wait = rates.take(who) if rates is not None and who else 0.0
        if wait:
            metrics.REQUESTS_REFUSED.labels(f"{why}_rate").inc()
            raise RateLimited("too many requests in a minute", retry_after_s=int(wait) + 1)

    def _check_load(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._load = self._look()
        if self._load:
            metrics.REQUESTS_REFUSED.labels(self._load).inc()
            raise Overloaded(
                "server is busy; try again", why=self._load, retry_after_s=OVERLOAD_RETRY_S
            )

    def _look(self) -> str:
        caps = self._caps
        if caps.wait_s and self._waited_s() > caps.wait_s:
            return "cpu"
        if caps.memory_free and self._memory_free() < caps.memory_free:
            return "memory"
        return ""


def _full(why: str, message: str) -> RateLimited:
    metrics.REQUESTS_REFUSED.labels(f"{why}_requests").inc()
    return RateLimited(f"too many {message}", retry_after_s=FULL_RETRY_S)


def _less(counts: Counter[str], key: str) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]


def memory_free(root: Path = Path("/")) -> float:
    """Return which share of the memory is left, of the machine and of our control group; files in memory count as free.

    1 where neither tells.
    """
    groups = root / "sys/fs/cgroup"
    return min(
        _of_machine(root / "proc/meminfo"), _of_group(groups), _of_group(_own_group(root, groups))
    )


def _own_group(root: Path, groups: Path) -> Path:
    """Return the folder of this process' own control group (version 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return groups
    own = [line.removeprefix("0::") for line in lines if line.startswith("0::/")]
    return groups / own[0].lstrip("/") if own else groups


def _of_machine(file: Path) -> float:
    try:
        rows = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        total, free = (int(rows[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return 1.0
    return free / total if total else 1.0


def _of_group(folder: Path) -> float:
    try:
        most = int((folder / "memory.max").read_text())  # "max" without a bound
        used = int((folder / "memory.current").read_text())
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        files = int(rows.get("file", 0)) - int(rows.get("shmem", 0))
    except (OSError, ValueError):
        return 1.0
    return 1 - (used - files) / most if most else 1.0
