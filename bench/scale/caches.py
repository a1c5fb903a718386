"""The node's tier under a Zipf load: its own policy, simulated, beside the best that any could do."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left
from collections import defaultdict

from scale.given import given, harmonic
from scale.pages import percent, size, table
from shardgit.blocks.frequency import COUNT_MAX
from shardgit.blocks.generations import CARRIED, GENERATIONS
from shardgit.blocks.tier import VICTIMS

ALPHAS = (0.7, 0.9, 1.1)
ITEMS = 20_000  # blocks of one node in the simulation; a real one has 48 times as many
REQUESTS = 80_000
SAMPLE = (
    10  # requests a block that it has room for, until counts are halved; as in blocks/frequency.py
)


class Tier:
    """Generations in a row: what is read from the oldest goes on to the newest, the oldest is dropped whole."""

    def __init__(self, capacity: int, dice: random.Random, *, foreign: bool) -> None:
        self.room = max(capacity // GENERATIONS, 1)
        self.capacity = capacity
        self.dice = dice
        self.foreign = foreign
        self.where: dict[int, int] = {}
        self.members: dict[int, list[int]] = {0: []}
        self.newest = 0
        self.counts: defaultdict[int, int] = defaultdict(int)
        self.asked = 0

    def read(self, item: int) -> bool:
        """Ask for a block; a miss fetches and offers it."""
        if self.foreign:
            self._count(item)
        at = self.where.get(item)
        if at is None:
            if not self.foreign or self._admits(item):
                self.put(item)
            return False
        ages = self.newest - at >= GENERATIONS - CARRIED
        if ages and (not self.foreign or self.counts[item] > 1):
            self.put(item)
        return True

    def put(self, item: int) -> None:
        """Write a block to the newest generation; an older copy stays where it is until that goes."""
        if len(self.members[self.newest]) >= self.room:
            self.newest += 1
            self.members[self.newest] = []
            gone = self.newest - GENERATIONS
            for old in self.members.pop(gone, ()):
                if self.where.get(old) == gone:
                    del self.where[old]
        self.members[self.newest].append(item)
        self.where[item] = self.newest

    def _count(self, item: int) -> None:
        self.counts[item] = min(self.counts[item] + 1, COUNT_MAX)
        self.asked += 1
        if self.asked >= SAMPLE * self.capacity:
            self.asked = 0
            for key in list(self.counts):
                self.counts[key] //= 2
                if not self.counts[key]:
                    del self.counts[key]

    def _admits(self, item: int) -> bool:
        oldest = self.members.get(self.newest - GENERATIONS + 1)
        if not oldest:
            return True
        some = sorted(self.counts.get(self.dice.choice(oldest), 0) for _ in range(VICTIMS))
        return self.counts[item] > some[VICTIMS // 2]


def owned(alpha: float, part: float, *, admits: bool = False) -> tuple[float, float]:
    """Return hits of the simulated tier of that part of a node's share, and of the best choice of so many blocks."""
    dice = random.Random(3)
    # A node has blocks of some of all pools: one in ``stride`` ranks.
    stride = given("repositories") / ITEMS
    weights = [(stride * (n + 0.5)) ** -alpha for n in range(ITEMS)]
    sums = list(itertools.accumulate(weights))
    tier = Tier(int(ITEMS * part), dice, foreign=admits)
    filled = list(range(ITEMS))
    dice.shuffle(filled)
    for item in filled:  # written through, in the order of pushes
        tier.put(item)
    hits = 0
    for number, item in enumerate(dice.choices(range(ITEMS), cum_weights=sums, k=2 * REQUESTS)):
        found = tier.read(item)
        hits += found and number >= REQUESTS
    best = sums[min(int(ITEMS * part), ITEMS) - 1] / sums[-1]
    return hits / REQUESTS, best


def foreign(alpha: float, pools: int, requests: int, seed: int) -> tuple[float, float]:
    """Return hits of a node's foreign part that holds so many pools, behind that many requests, and the best."""
    dice = random.Random(seed)
    every = given("repositories")
    # Ranks by their sums: exact for the first 10,000, then by steps of 1%.
    ranks = [float(n) for n in range(1, 10_001)]
    while ranks[-1] < every:
        ranks.append(min(ranks[-1] * 1.01, every))
    sums = [harmonic(rank, alpha) for rank in ranks]
    tier = Tier(pools, dice, foreign=True)
    hits = 0
    for number in range(2 * requests):
        at = bisect_left(sums, dice.random() * sums[-1])
        low = ranks[at - 1] if at else 0.0
        rank = int(low + dice.random() * (ranks[at] - low)) if at >= 10_000 else at
        found = tier.read(rank)
        hits += found and number >= requests
    return hits / requests, harmonic(pools, alpha) / sums[-1]


def caches() -> tuple[str, dict[str, float]]:
    """Tell of hits; returns the page, and some rates for what clones cost."""
    share = given("repositories") * given("bytes of a repository, mean") / given("nodes")
    parts = (0.1, 0.25, 0.5, 1.0, 1.25, 1.5)
    rates: dict[str, float] = {}
    rows = []
    for part in parts:
        row = [percent(part, 0), size(part * share)]
        for alpha in ALPHAS:
            hit, best = owned(alpha, part)
            row.append(f"{percent(hit)} ({percent(best)})")
            if alpha == 0.9 and part in (0.1, 0.5, 1.25):
                rates[f"{percent(part, 0)} of the share, Zipf 0.9"] = hit
        row.append(percent(owned(0.9, part, admits=True)[0]) if part < 1 else "")
        rows.append(row)
    far = []
    mean = given("bytes of a repository, mean")
    daily = given("reads a day (fetch, clone, ls-remote)") / given("nodes")
    for pools in (2_000, 20_000):
        row = [size(pools * mean), f"{pools:,}"]
        for alpha in ALPHAS:
            hit, best = foreign(alpha, pools, 80_000, 4)
            row.append(f"{percent(hit)} ({percent(best)})")
        far.append(row)
    heads = [f"Zipf {alpha}: hits (best)" for alpha in ALPHAS]
    top = [percent(1 / harmonic(given("repositories"), alpha), 2) for alpha in ALPHAS]
    page = f"""## Hits in the nodes' tiers

The tier's policy (generations, what is read from the oldest two of eight goes on, TinyLFU for foreign blocks)
  simulated with {ITEMS:,} blocks
and {REQUESTS:,} requests after as many to warm up; "best" holds the most popular blocks from the start. With
  one replica a node's share is {size(share)}.

Blocks that the ring gives the node:

{table(["disk / share", "disk", *heads, "0.9, if owned blocks were admitted like foreign ones"], rows)}
- Holding everything takes more disk than the share: what is carried on leaves its old copy behind until its
  generation goes, and a
  generation that is dropped takes unread blocks along. With a quarter more than the share nearly nothing is
  missed. Blocks
  that come and go meanwhile are not simulated; they want room besides.
- Where the disk is smaller than the share, letting all blocks in costs hits: the policy for foreign blocks
  does better there.

Foreign blocks, whole repositories at a node that is chosen by chance, 80,000 requests after as many
  ({160_000 / daily:.2g} days of a node's load):

{table(["foreign part", "repositories", *heads], far)}
- The most asked repository has {", ".join(top)} of all requests (Zipf {", ".join(map(str, ALPHAS))}). Its
  blocks lie on a few nodes: they get that load, but
  for what the foreign parts of all the others take off them.
"""
    return page, rates
