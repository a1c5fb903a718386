"""etcd cells: rows, bytes, transactions, and who watches them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scale.given import given, harmonic, lognormal
from scale.pages import count, percent, size, span, table

QUIET_DAYS = 7.0
LOOSE_MAX = 1_024  # refs/change.py
LOG_KEPT_MIN, LOG_DAYS = 100, 90  # operate/trimming.py
FIXED = 5  # I, N, P, H, and HEAD, which is always a loose row
EVENT_BYTES = 30  # of a row in a watch's answer, beside key and value: three revisions and tags
PUSH_ROWS = (90, 56, 69, 153, 40)  # key and value of S (a reference), R, H, L and the slot


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of all repositories under one way of keeping them."""

    name: str
    fixed: float
    loose: float
    log: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.fixed + self.loose + self.log

    @property
    def cells(self) -> int:
        """Cells that they need."""
        return math.ceil(self.total / given("rows of an etcd cell"))

    @property
    def replica_bytes(self) -> float:
        """Bytes of LMDB for a copy of all."""
        overhead = given("LMDB a row") - given("key and value of such a row")
        log = given("key and value of a log row") + overhead
        return (self.fixed + self.loose) * given("LMDB a row") + self.log * log


@dataclass(frozen=True, slots=True)
class Cells:
    """What the other parts take from here."""

    page: str
    ways: tuple[Rows, ...]


def ways() -> tuple[Rows, ...]:
    """Return the rows as the code keeps them today, and with less of them."""
    repositories = given("repositories")
    refs = lognormal(given("refs") / repositories, given("spread of refs"))
    loose = sum(one if one <= LOOSE_MAX else LOOSE_MAX / 2 for one in refs) / len(refs)
    rates = lognormal(given("pushes a day") / repositories, given("spread of pushes a day"))
    age = given("age of a repository, mean")
    log = sum(min(r * age, max(LOG_KEPT_MIN, r * LOG_DAYS)) for r in rates) / len(rates)
    awake = sum(1 - math.exp(-r * QUIET_DAYS) for r in rates) / len(rates)
    young = sum(rates) / len(rates) * QUIET_DAYS
    few = sum(min(one, 64) for one in refs) / len(refs)
    every = repositories
    return (
        Rows("as the code is", FIXED * every, loose * every, log * every),
        Rows("quiet refs folded", FIXED * every, awake * loose * every, log * every),
        Rows("and old log rows in blocks", FIXED * every, awake * loose * every, young * every),
        Rows(
            "and I, P, H, HEAD in one row, 64 loose", 2 * every, awake * few * every, young * every
        ),
    )


def cells(settles_a_push: float) -> Cells:
    """Tell of all ways; ``settles_a_push`` are commits beside the push's own."""
    found = ways()
    members = 3
    rows = [
        [
            way.name,
            count(way.fixed),
            count(way.loose),
            count(way.log),
            f"{way.cells:,}",
            size(way.total / way.cells * given("etcd heap a row")),
            size(way.total * members * given("etcd heap a row")),
            size(way.replica_bytes),
        ]
        for way in found
    ]
    today, best = found[0], found[-1]
    peak = given("peak / average") / 86_400
    commits = given("pushes a day") * peak * (1 + settles_a_push)
    reads = given("reads a day (fetch, clone, ls-remote)") * peak + given("pushes a day") * peak
    head = [
        "way",
        "fixed",
        "loose refs",
        "log",
        "cells",
        "heap a member",
        "heap of all",
        "a full copy",
    ]
    page = f"""## etcd cells

A cell is three etcd members; a repository lies in one. Every repository has {FIXED} rows that never go away
  (`I`, `N`, `P`, `H` and
`HEAD`), loose refs until {LOOSE_MAX:,} of them are folded, and its {LOG_KEPT_MIN} newest log rows however old
  they are. Refs are taken to have
come by pushes; imported ones lie in snapshots. "Quiet" is no push for {QUIET_DAYS:.0f} days.

{table(head, rows)}
- **Rows that nobody touches decide.** As the code is, {percent(today.log / today.total, 0)} of the rows
  are old log rows and
  {percent(today.loose / today.total, 0)} loose refs that nobody moves: {today.cells:,} cells and
  {size(today.total * members * given("etcd heap a row"))} of heap. Folding what is quiet
  (the fold exists; something has to begin it) and moving old log rows into log blocks (whose format exists) brings
  it to {found[2].cells}
  cells; one record for `I`, `P`, `H` and `HEAD` and a fold at 64 rows to {best.cells}.
- Names want cells of their own ({math.ceil(given("repositories") / given("rows of an etcd cell"))} of them, by
  hash of the name): the cell of a repository is
  found in its name's row.
- Bytes are no limit: a cell's file has {size(given("rows of an etcd cell") * given("etcd file a row"))}, the
  quota is 8 GiB. Memory is: {size(given("rows of an etcd cell") * given("etcd heap a row"))} a member.
- Transactions are no limit: {count(commits)} a second at the peak (pushes and settles) are
  {commits / best.cells:.0f} a cell of {best.cells}, of
  {given("etcd transactions a second"):,.0f}. Freshness is one linearizable read for each request at the least
  shared case: {count(reads)} a second
  at the peak, {reads / best.cells:.0f} a cell.

{_fan_out(today, best, commits, reads)}"""
    return Cells(page, found)


def _fan_out(today: Rows, way: Rows, commits: float, reads: float) -> str:
    nodes = given("nodes")
    a_cell = commits / way.cells
    event = sum(PUSH_ROWS) + EVENT_BYTES * len(PUSH_ROWS)
    cell_bytes = way.replica_bytes / way.cells
    rows = []
    for copies in (6, 12, 24, 100, int(nodes)):
        held = way.cells * copies / nodes
        out = a_cell * event * copies / 3
        whole = cell_bytes * copies / 3 / given("range reads of a member for replicas")
        rows.append(
            [
                f"{copies:,}",
                f"{held:.2g}" if held < 10 else f"{held:.0f}",
                size(cell_bytes * held),
                f"{a_cell * held:,.0f}",
                size(out) + "/s",
                percent(out / given("watch bytes of an etcd member"), 2),
                span(whole),
                percent(1 - copies / nodes),
                f"{reads / way.cells / copies:,.1f}",
            ]
        )
    head = [
        "nodes with a cell's replica",
        "cells a node",
        "bytes a node",
        "commits applied a node, 1/s",
        "watch out of a member",
        "of its limit",
        "all replicas of a cell built anew",
        "requests that land elsewhere",
        "reads a replica, 1/s",
    ]
    keep = 1_000 / a_cell
    hot = [reads / harmonic(given("repositories"), alpha) for alpha in (0.9, 1.1)]
    return f"""### Which nodes watch which cell

The last way's {way.cells} cells at the peak, {a_cell:.0f} commits a second each, {event} bytes of events a commit.

{table(head, rows)}
- A replica of everything on each of {nodes:,.0f} nodes is {size(way.replica_bytes)} a node
  ({size(today.replica_bytes)} with the rows of today), all commits of the
  cluster applied everywhere, and an hour to build when all nodes need it: each member sends its cell
  {nodes / 3:,.0f} times. Watching is the
  least of it. **12 nodes a cell** (four a zone) have {size(cell_bytes * way.cells * 12 / nodes)} each, build
  in a minute, outlive a zone, and serve {reads / way.cells / 12:.0f}
  reads a second each, where a worker lists refs 800 times a second (bench/RESULTS.md).
- Then nearly every request lands on a node without the replica. Its snapshot is a few rows: that node asks one
  that has
  it (one round trip within the zone, what `fresh()` costs anyway) and does the rest, walk and blocks, itself.
  Commits go from
  any node straight to the cell: they compare revisions, and need no replica.
- One repository that is asked for by everybody is one cell's load: the first of a Zipf load of 0.9 has
  {hot[0]:,.0f} requests a second at the
  peak, of 1.1 {hot[1]:,.0f}, each with a freshness read unless it waits beside another of its node. The latter
  is more than the
  {given("etcd transactions a second"):,.0f} transactions measured on two cores; reads are cheaper, and not measured.
- Placing cells needs no second mechanism: a ring of {way.cells} partitions with 12 replicas, or rendezvous
  hashing of the cell's
  number over nodes by zone.
- **Compaction by 1,000 revisions is {span(keep)}** of the peak: a node that restarts slower than that builds
  its replica anew.
  `--auto-compaction-mode periodic --auto-compaction-retention 1h` keeps {count(a_cell * 3600)} revisions
  ({size(a_cell * 3600 * event)} of events) and lets it
  resume, if the replica survives a restart.
"""
