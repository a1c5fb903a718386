"""How long it takes until the cluster is warm again when a zone is lost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scale.given import given, harmonic
from scale.pages import count, dollars, percent, size, span, table

if TYPE_CHECKING:
    from scale.rings import Lost

ALPHAS = (0.7, 0.9, 1.1)


def warm_by_demand(alpha: float, transfers: float) -> float:
    """Return the part of requests for lost repositories that find them fetched, after so many requests for any."""
    every = given("repositories")
    total = harmonic(every, alpha)
    cold, low = 0.0, 0.5
    while low < every:
        high = low * 1.02 if low > 100 else low + 1
        middle = (low + high) / 2
        mass = (high - low) * middle**-alpha / total
        cold += mass * math.exp(-transfers * middle**-alpha / total)
        low = high
    return 1 - cold


def until(alpha: float, part: float) -> float:
    """Return the seconds until that part is warm by demand alone, at the average load."""
    a_second = given("reads a day (fetch, clone, ls-remote)") / 86_400
    a_second *= given("part of the reads that send a repository whole")
    low, high = 0.0, 1e9
    for _ in range(60):
        middle = (low + high) / 2
        if warm_by_demand(alpha, middle * a_second) < part:
            low = middle
        else:
            high = middle
    return high


def zones(lost: dict[int, Lost]) -> str:
    """Tell of the time to copy everything, and of demand alone."""
    stored = given("repositories") * given("bytes of a repository, mean")
    partition = stored / 65_536
    nodes = given("nodes") * (1 - 1 / given("zones"))
    speed = given("node's network for warming")
    rows = []
    for replicas, one in sorted(lost.items()):
        seconds = one.gained_max * partition / speed
        blocks = one.moved * partition / given("bytes of a block")
        from_s3 = replicas == 1
        rows.append(
            [
                str(replicas),
                size(one.moved * partition),
                size(one.gained_max * partition),
                span(seconds),
                "S3" if from_s3 else "peers",
                count(blocks / seconds) + "/s" if from_s3 else "0",
                dollars(blocks * given("get, 1,000") / 1_000) if from_s3 else "$0",
                "a third" if from_s3 else "none",
            ]
        )
    demand = [
        [f"{alpha}", *(span(until(alpha, part)) for part in (0.5, 0.8, 0.9, 0.99))]
        for alpha in ALPHAS
    ]
    limit = given("prefixes") * given("gets a second and prefix")
    single = lost[1]
    rate = (
        single.moved
        * partition
        / given("bytes of a block")
        / (single.gained_max * partition / speed)
    )
    head = [
        "replicas",
        "bytes copied",
        "most to one node",
        "time",
        "from",
        "S3 gets",
        "USD",
        "reads that miss at first",
    ]
    return f"""## A zone is lost

{nodes:.0f} nodes are left. Moves are those of the real builder, above; each node spends {size(speed)}/s on warming.

{table(head, rows)}
- With one replica the whole third comes from S3 at {count(rate)} gets a second, {percent(rate / limit, 0)} of
  what {given("prefixes"):.0f} split prefixes allow: bandwidth
  is the limit, not requests, once S3 has split them. Unsplit ({count(given("gets a second and prefix"))} a
  second) it would take
  {span(single.moved * partition / given("bytes of a block") / given("gets a second and prefix"))}: what is
  asked for goes first.
- With three replicas nothing needs to be copied: two zones have everything. Copying a third one is
  {size(lost[3].moved * partition)} for nothing, and again back.
- The same holds in the small: a node that is away for minutes should not move its partitions. Reads go to S3
  or to the other replicas meanwhile.

Without any copying, by demand alone (whole repositories at the average rate): time until that part of the
  requests for what was lost is warm:

{table(["Zipf", "50%", "80%", "90%", "99%"], demand)}
- Demand warms the head of a steep load in minutes, of a flat one in hours, the tail in weeks. Copying in the
  background is for the tail,
  so what clients ask for must go before it.
"""
