"""What a push costs in S3: group commit, settles, dollars."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from scale.given import below, given, lognormal
from scale.pages import count, dollars, percent, table

SPREAD = 0.4  # sigma of an upload's time
WINDOW_MS = 2.0  # the shortest window
RECENTS_SETTLE = 64  # limits.recents_settle
PUSHES = 8_000  # simulated for each row
STORES = ("SeaweedFS", "S3 Express One Zone", "S3 Standard")


@dataclass(frozen=True, slots=True)
class Grouped:
    """Group commit on one node."""

    pushes_a_put: float
    p50_ms: float
    p99_ms: float


def group(rate: float, put_ms: float, window_ms: float, seed: int) -> Grouped:
    """Simulate one node: pushes come by chance, one upload at a time takes all that wait when it begins."""
    dice = random.Random(seed)
    now, arrivals = 0.0, []
    for _ in range(PUSHES):
        now += dice.expovariate(rate) * 1_000
        arrivals.append(now)
    free, at, puts = 0.0, 0, 0
    waits: list[float] = []
    while at < PUSHES:
        start = max(arrivals[at] + window_ms, free)
        free = start + put_ms * math.exp(dice.gauss(0, SPREAD))
        puts += 1
        while at < PUSHES and arrivals[at] <= start:
            waits.append(free - arrivals[at])
            at += 1
    waits.sort()
    return Grouped(PUSHES / puts, waits[PUSHES // 2], waits[PUSHES * 99 // 100])


@dataclass(frozen=True, slots=True)
class Settling:
    """Settles under one age at which quiet pools are settled."""

    age_s: float
    settles_a_push: float
    puts_a_push: float
    waiting: float


def settling(age_s: float) -> Settling:
    """Return how many settles pushes lead to, over repositories of all rates."""
    repositories = given("repositories")
    rates = lognormal(given("pushes a day") / repositories, given("spread of pushes a day"))
    age = age_s / 86_400
    settles = sum(rate / (1 + min(rate * age, RECENTS_SETTLE - 1)) for rate in rates) / sum(rates)
    mean, sigma = (
        given("bytes of a repository, mean"),
        given("spread of bytes: sigma of the lognormal"),
    )
    small = below(given("pool that is settled whole, at most"), mean, sigma)
    blocks = small * given("blocks a settle puts, small pool")
    blocks += (1 - small) * given("blocks a settle puts, other pool")
    waiting = sum(min(rate * age, RECENTS_SETTLE) for rate in rates) / len(rates) * repositories
    return Settling(age_s, settles, settles * blocks, waiting)


def pushes() -> str:
    """Tell of group commit and of what a push costs."""
    per_node = given("pushes a day") / given("nodes") / 86_400
    peak = per_node * given("peak / average")
    rates = (per_node, peak, 10.0, 100.0, 1_000 / 3, 1_000.0)
    rows = []
    for rate in rates:
        row = [count(rate)]
        for store in STORES:
            done = group(rate, given(f"blob put, {store}"), WINDOW_MS, 1)
            row.append(f"{done.pushes_a_put:.1f} ({done.p50_ms:.0f} / {done.p99_ms:.0f})")
        rows.append([*row, f"{20_000 / rate:,.0f}"])
    wide = group(1_000 / 3, given("blob put, SeaweedFS"), 20_000 / (1_000 / 3), 1)
    ages = [settling(age) for age in (600.0, 3_600.0, 86_400.0, 7 * 86_400.0)]
    at_peak = group(peak, given("blob put, S3 Standard"), WINDOW_MS, 1).pushes_a_put
    put = given("put, 1,000") / 1_000
    cost = []
    for one in ages:
        each = (1 / at_peak + one.puts_a_push) * put
        cost.append(
            [
                f"{one.age_s / 3600:.3g} h",
                f"{one.settles_a_push:.2f}",
                f"{1 / at_peak + one.puts_a_push:.2f}",
                dollars(each),
                dollars(each * given("pushes a day") * 30),
                count(one.waiting),
            ]
        )
    stored = given("repositories") * given("bytes of a repository, mean") / 1e9
    more = ages[2].waiting / given("rows of an etcd cell")
    gain = ages[0].puts_a_push / ages[2].puts_a_push
    stores = [f"{store}: pushes a put (p50 / p99 ms)" for store in STORES]
    return f"""## S3: pushes

Group commit on one node, simulated: one upload at a time, at least {WINDOW_MS:.0f} ms after the first push
  that waits; it takes all
that wait when it begins. Times are until the object is durable, without the etcd transaction.

{table(["pushes a second and node", *stores, "window for 20 a put, ms"], rows)}
- At {given("nodes"):,.0f} nodes a node sees {peak:.1f} pushes a second at the peak: **group commit saves next
  to nothing at this
  size**, and need not: see the money below. It matters on few busy nodes.
- The goal of 1/20 put a push at 1,000 pushes/s over three nodes needs a window of {20_000 / (1_000 / 3):.0f}
  ms a node, whatever the store, since only
  what comes to one node in one window shares a put (and twice that with two processes a node, unless they
  share uploads). With it: {wide.pushes_a_put:.0f} a put, {wide.p50_ms:.0f} ms at the median, {wide.p99_ms:.0f}
  at p99. Windows of 2 to
  10 ms reach it only where uploads under load take as long by themselves.

Settles: blocks that a settle puts are measured; pools are settled when {RECENTS_SETTLE} recents wait or the
  oldest has lain for an age.

{table(["age", "settles a push", "puts a push", "USD a push", "USD a month", "recents waiting"], cost)}
- Most pushes go to repositories that see the next one much later: at the age of today (ten minutes)
  {percent(ages[0].settles_a_push, 0)} of the pushes lead to a settle. A day instead divides the settles' puts
  by {gain:.1f}, and {count(ages[2].waiting)} recents wait in etcd as references:
  {more:.0f} cells more.
- Storage is {dollars(stored * given("storage, GB and month"))} a month for {stored / 1e6:.3g} PB (deletes are
  free). Bundles live until the last recent in them is settled: an age
  bounds that too.
"""


def clones(hits: dict[str, float]) -> str:
    """Tell what a clone costs, for some rates of hits in the nodes' tiers."""
    block = given("bytes of a block")
    get = given("get, 1,000") / 1_000
    whole = given("reads a day (fetch, clone, ls-remote)") * given(
        "part of the reads that send a repository whole"
    )
    zones = given("zones")
    across = 2 * given("between zones, GB and direction") / 1e9
    rows = []
    for name, bytes_ in (
        ("mean repository", given("bytes of a repository, mean")),
        ("git.git", 303.3 * (1 << 20)),
        ("10 GB", 10e9),
    ):
        gets = math.ceil(bytes_ / block) + 20
        far = bytes_ * (1 - 1 / zones) * across
        rows.append(
            [name, f"{gets:,}", dollars(gets * get), dollars(far), f"{far / (gets * get):.0f}"]
        )
    mean = given("bytes of a repository, mean")
    monthly = [
        [
            name,
            percent(hit),
            count(whole / 86_400 * given("peak / average") * (1 - hit) * mean / block),
            dollars(whole * 30 * (1 - hit) * (mean / block) * get),
            dollars(whole * 30 * hit * mean * (1 - 1 / zones) * across),
        ]
        for name, hit in hits.items()
    ]
    limit = given("prefixes") * given("gets a second and prefix")
    return f"""## S3: clones

A cold clone gets each block once: at most one get a MiB and 20 more (the bound that the cluster is held to).
  Gets within a region cost
no transfer; bytes between zones do, in both directions.

{table(["repository", "gets, cold", "USD of gets", "USD, from peers of any zone", "ratio"], rows)}
{table(["tier", "hits", "gets at the peak, 1/s", "USD of gets a month", "USD between zones a month"], monthly)}
- **Where bytes between zones are billed, reading a block from a peer in another zone costs more than getting
  it from S3.** So: replicas one a
  zone and reads from one's own, or peers of the own zone only and S3 behind them.
- {given("prefixes"):.0f} prefixes allow {count(limit)} gets a second once S3 has split them,
  {count(given("gets a second and prefix"))} before; splits take 30 to 60 minutes
  (repost.aws), so a cold start is throttled: 503 is retried with backoff.
"""
