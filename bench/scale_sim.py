"""1,000 nodes, 100 million repositories, 10 billion refs: writes docs/scale.md.

.venv/bin/python bench/scale_sim.py            docs/scale.md anew, in less than a minute
.venv/bin/python bench/scale_sim.py --print    to the terminal
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scale.caches import caches
from scale.cells import Rows, cells
from scale.given import GIVEN, Given
from scale.pages import count, flow, size, table
from scale.pushes import clones, pushes, settling
from scale.rings import rings
from scale.zones import zones

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"


def page() -> str:
    """Compute everything."""
    ring = rings()
    tiers, hits = caches()
    cell = cells(settling(600.0).settles_a_push)
    sources = table(
        ["given", "value", "from"],
        [[name, _shown(one), one.source] for name, one in GIVEN.items()],
    ).replace("|---|---:|---:|", "|---|---:|---|")
    parts = (
        "# Scale\n\nWritten by `bench/scale_sim.py`; seeds are fixed, so it comes out the same. A cluster of"
        " 1,000 nodes, 100 million repositories and 10 billion refs, computed and simulated: nothing of"
        " this size was run.\n",
        _summary(cell.ways[0], cell.ways[-1]),
        ring.page,
        cell.page,
        pushes(),
        clones(hits),
        tiers,
        zones(ring.lost),
        f"## Given\n\nEvery number that is not computed, and where it is from.\n\n{sources}",
    )
    return flow("\n".join(parts))


def _shown(one: Given) -> str:
    if one.unit.startswith("B"):
        return size(one.value) + one.unit[1:]
    return f"{count(one.value)} {one.unit}".strip()


def _summary(today: Rows, best: Rows) -> str:
    copies = [size(way.replica_bytes) for way in (today, best)]
    return f"""## What follows for the design

1. The ring holds: its partitions are fine enough for all the nodes that its format can name, but not for very
  unequal ones.
2. Journal rows that never go away are the largest cost: {today.cells:,} cells as the code is, {best.cells}
  when quiet repositories keep two rows.
3. A full replica of the journal on every node is {copies[1]} a node, {copies[0]} as the code is; 12 nodes a
  cell are enough, the others ask them.
4. etcd's compaction has to go by time, not by 1,000 revisions, or each restart of a node builds its replicas anew.
5. Group commit helps few busy nodes, not a thousand quiet ones; settling a quiet pool after a day, not ten
  minutes, saves more.
6. Where zones are billed, a peer in another zone costs more than S3: peers of the own zone first, then S3.
7. The tier wants a quarter more disk than a node's share to hold all of it, and should choose where it has less.
8. A lost zone needs no copying with three replicas, and the ring must not begin it; with one, what is asked
  for goes first.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", dest="printed")
    words = parser.parse_args()
    begun = time.monotonic()
    text = page()
    if words.printed:
        print(text)
    else:
        PAGE.write_text(text)
        print(f"{PAGE}: {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
