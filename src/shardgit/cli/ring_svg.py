"""A plan drawn: what each shard keeps before and after as two rings, and the moves between shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from shardgit.cli.output import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardgit.operate.planning import Flow, RingPlan, ShardChange

WIDTH, HEIGHT = 960, 620
CENTER = 310
OUTER, MIDDLE, INNER, CHORD = 280, 250, 220, 210
GAP = 0.012  # of a turn, between shards
ARC_STEP = 0.05  # radians of a polygon's side
_HUES = 0.61803398875  # golden section: neighbours differ


@dataclass(frozen=True, slots=True)
class _Sector:
    """A shard's part of the circle, in radians."""

    start: float
    end: float


def draw_plan(plan: RingPlan) -> str:
    """Return an SVG document.

    The inner ring shows each shard as it is, the outer one as it will be: the sector is as wide as the larger of the
    two, and each ring fills its part of it. A ribbon is what goes from one shard to another, as wide as its bytes.
    """
    sectors = _sectors(plan.shards)
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="14">',
        f"<title>{escape(_title(plan))}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    used: dict[int, float] = {}
    scale = _scale(plan.shards)
    rows += [_ribbon(flow, sectors, used, scale) for flow in plan.flows if flow.bytes]
    for shard in plan.shards:
        rows += _rings(shard, sectors[shard.id], scale)
    rows += _legend(plan)
    return "\n".join([*rows, "</svg>", ""])


def _title(plan: RingPlan) -> str:
    return (
        f"ring of epoch {plan.epoch}: {human_bytes(plan.moved_bytes)} of {human_bytes(plan.bytes)}"
        f" move ({plan.moved_share:.1%})"
    )


def _scale(shards: Sequence[ShardChange]) -> float:
    """Return radians a byte."""
    widest = sum(max(one.bytes_before, one.bytes_after) for one in shards)
    return 2 * math.pi * (1 - GAP * len(shards)) / widest if widest else 0.0


def _sectors(shards: Sequence[ShardChange]) -> dict[int, _Sector]:
    scale = _scale(shards)
    found: dict[int, _Sector] = {}
    at = -math.pi / 2
    for one in shards:
        width = max(one.bytes_before, one.bytes_after) * scale
        found[one.id] = _Sector(at, at + width)
        at += width + 2 * math.pi * GAP
    return found


def _rings(shard: ShardChange, sector: _Sector, scale: float) -> list[str]:
    color = _color(shard.id)
    before = f"shard {shard.id} before: {human_bytes(shard.bytes_before)}"
    after = f"shard {shard.id} after: {human_bytes(shard.bytes_after)}"
    x, y = _point(OUTER + 16, (sector.start + sector.end) / 2)
    return [
        f'<path class="before" data-shard="{shard.id}" data-bytes="{shard.bytes_before}" fill="{color}" '
        f'fill-opacity="0.55" d="{_band(INNER, MIDDLE, sector.start, shard.bytes_before * scale)}">'
        f"<title>{before}</title></path>",
        f'<path class="after" data-shard="{shard.id}" data-bytes="{shard.bytes_after}" fill="{color}" '
        f'd="{_band(MIDDLE, OUTER, sector.start, shard.bytes_after * scale)}"><title>{after}</title></path>',
        f'<text x="{x:.1f}" y="{y + 5:.1f}" text-anchor="middle">{shard.id}</text>',
    ]


def _ribbon(flow: Flow, sectors: dict[int, _Sector], used: dict[int, float], scale: float) -> str:
    """Return one flow: from the end of its source's sector to the end of its target's."""
    width = flow.bytes * scale
    ends = []
    for shard in (flow.source, flow.target):
        end = sectors[shard].end - used.get(shard, 0.0)
        used[shard] = used.get(shard, 0.0) + width
        ends.append((_point(CHORD, end - width), _point(CHORD, end)))
    (a, b), (c, d) = ends
    title = (
        f"{flow.source} to {flow.target}: {human_bytes(flow.bytes)}, {flow.partitions} partitions"
    )
    return (
        f'<path class="move" data-source="{flow.source}" data-target="{flow.target}" '
        f'data-bytes="{flow.bytes}" fill="{_color(flow.source)}" fill-opacity="0.35" '
        f'd="M{a[0]:.2f},{a[1]:.2f} L{b[0]:.2f},{b[1]:.2f} '
        f"Q{CENTER},{CENTER} {c[0]:.2f},{c[1]:.2f} L{d[0]:.2f},{d[1]:.2f} "
        f'Q{CENTER},{CENTER} {a[0]:.2f},{a[1]:.2f} Z"><title>{title}</title></path>'
    )


def _band(low: float, high: float, start: float, width: float) -> str:
    """Return the path of a piece of a ring."""
    steps = max(1, math.ceil(width / ARC_STEP))
    angles = [start + width * step / steps for step in range(steps + 1)]
    edge = [_point(high, angle) for angle in angles]
    edge += [_point(low, angle) for angle in reversed(angles)]
    return "M" + " L".join(f"{x:.2f},{y:.2f}" for x, y in edge) + " Z"


def _point(radius: float, angle: float) -> tuple[float, float]:
    return CENTER + radius * math.cos(angle), CENTER + radius * math.sin(angle)


def _color(shard: int) -> str:
    return f"hsl({shard * _HUES % 1 * 360:.0f},60%,45%)"


def _legend(plan: RingPlan) -> list[str]:
    moved = f"{human_bytes(plan.moved_bytes)} of {human_bytes(plan.bytes)} move"
    rows = [f'<text x="640" y="40" font-weight="bold">{moved} ({plan.moved_share:.1%})</text>']
    rows.append('<text x="640" y="64">shard: before, after (weight)</text>')
    for number, one in enumerate(plan.shards[:24]):
        y = 92 + 21 * number
        rows.append(f'<rect x="640" y="{y - 11}" width="12" height="12" fill="{_color(one.id)}"/>')
        words = f"{one.id}: {human_bytes(one.bytes_before)}, {human_bytes(one.bytes_after)} ({one.weight:g})"
        rows.append(f'<text x="660" y="{y}">{escape(words)}</text>')
    if len(plan.shards) > 24:
        rows.append(f'<text x="660" y="{92 + 21 * 24}">and {len(plan.shards) - 24} more</text>')
    return rows
