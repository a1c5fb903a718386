"""Make RESULTS.md and its plots of the JSON files of a folder.

    python bench/render.py [FOLDER] [--out bench/RESULTS.md]

Ratios stand first; below 1 is less than the peer. SHORT.md says of paths that miss their goals what a profile showed.
Nothing else is used: rendering twice gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from result import Goal, Result, Row, Side, place_of, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
MIB = 1 << 20
NAMES = {
    "cpu": "CPU",
    "wall": "wall",
    "p50": "p50",
    "p95": "p95",
    "p99": "p99",
    "rate": "rate",
    "throughput": "bytes/s",
    "memory": "memory",
    "size": "bytes",
}
RATIOS = ("cpu", "wall", "memory", "size", "p50", "p99", "rate")
INTRO = """# Results

Written by `make bench` (bench/run.py): we and peers in turn, in one run, on one machine; medians of the rounds. A ratio
is ours / the peer's: below 1 is less than the peer (of a rate, above 1 is more). CPU is user + system time of the
server with its children, or of the process; memory is the peak of anonymous and shared pages beyond what was there
before. "Share" is the part of a measured limit of the machine that ours reaches. N/A: the peer cannot do it, is not
installed, or would take many times longer than all else.
"""


# ---- figures ----


def ratio(value: float | None) -> str:
    """Return a ratio with three digits at most."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"


def seconds(value: float) -> str:
    """Return a time with its unit."""
    if value <= 0:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def amount(value: float) -> str:
    """Return bytes with their unit."""
    if value <= 0:
        return ""
    for unit, scale in (("GiB", 1 << 30), ("MiB", MIB), ("KiB", 1 << 10)):
        if value >= 0.99 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def _plain(what: str, value: float) -> str:
    if what in ("memory", "size"):
        return amount(value)
    if what == "throughput":
        return f"{value / 1e9:.2f} GB/s"
    return f"{value:,.0f}/s" if what == "rate" else seconds(value)


def goal_text(row: Row, goal: Goal) -> str:
    """Return what was wanted, what was reached, and whether that is enough."""
    reached = row.reached(goal)
    bounds = [
        (sign, bound) for sign, bound in (("<=", goal.at_most), (">=", goal.at_least)) if bound
    ]
    said = (lambda value: _plain(goal.what, value)) if goal.absolute else ratio
    against = f" of {goal.peer}" if goal.peer else ""
    wanted = " and ".join(f"{sign} {said(bound)}" for sign, bound in bounds)
    if reached is None:
        return f"{NAMES[goal.what]} {wanted}{against}: not measured"
    mark = "met" if goal.met(reached) else "**missed**"
    return f"{NAMES[goal.what]} {wanted}{against}: {said(reached)}, {mark}"


# ---- tables ----


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return a Markdown table without columns that say nothing."""
    kept = list(rows)
    used = [at for at in range(len(head)) if at == 0 or any(row[at] for row in kept)]
    lines = [[head[at] for at in used], ["---"] * len(used)]
    lines += [[row[at] for at in used] for row in kept]
    return [f"| {' | '.join(line)} |" for line in lines]


def ratios(rows: Iterable[Row]) -> list[str]:
    """Return the first table of a suite: each row against each peer."""
    out = []
    for row in rows:
        goals = "; ".join(goal_text(row, goal) for goal in row.goals)
        share = f"{row.limit_share * 100:.0f}% of {row.limit}" if row.limit else ""
        first = True
        for peer in row.peers:
            cells = [ratio(row.ratio(what, peer.name)) for what in RATIOS]
            cells[-1] *= row.ours.count > 1  # of one operation it is what wall says
            cells[0] = f"**{cells[0]}**" if cells[0] else ""
            tail = [goals, share] if first else ["", ""]
            out.append([row.path if first else "", peer.name, *cells, *tail])
            first = False
        for name in row.absent:
            out.append([row.path if first else "", name, "N/A", *[""] * (len(RATIOS) - 1), "", ""])
            first = False
        if first:
            out.append([row.path, "", *[""] * len(RATIOS), goals, share])
    head = ["path", "against", *(f"{NAMES[what]} ratio" for what in RATIOS), "goal", "share"]
    return table(head, out)


def figures(rows: Iterable[Row]) -> list[str]:
    """Return the second table of a suite: each side by itself."""
    out = []
    for row in rows:
        for side in (row.ours, *row.peers):
            out.append([row.path if side is row.ours else "", side.name, *_figures(side)])
    head = ["path", "side", "CPU each", "±", "wall each", "memory", "bytes each", "p50 / p95 / p99"]
    return table([*head, "per s", "GB/s"], out)


def _figures(side: Side) -> list[str]:
    spread = side.spread("cpu")
    through = side.value("throughput")
    return [
        seconds(side.value("cpu")),
        f"{spread * 100:.0f}%" if spread else "",
        seconds(side.value("wall")),
        amount(side.memory_bytes),
        amount(side.value("size")),
        " / ".join(map(seconds, side.quantiles())),
        f"{side.value('rate'):,.0f}" if side.count > 1 else "",
        f"{through / 1e9:.2f}" if through >= 5e6 else "",
    ]


def limits(rows: Iterable[Row]) -> list[str]:
    """Return the table of the limits suite."""

    def said(value: float, unit: str) -> str:
        return f"{value / 1e9:.2f} G" if unit.startswith("bytes") else f"{value:,.0f}"

    return table(
        ["limit", "figure", "unit"],
        ([row.path, said(row.ours.size_bytes, row.how), row.how] for row in rows),
    )


def section(result: Result) -> list[str]:
    """Return what is said of one suite on one data set."""
    out = [f"### {result.suite}", ""]
    out += [
        f"At {result.revision}, {result.date}, {result.rounds} round{'s' * (result.rounds > 1)}.",
        "",
    ]
    if result.suite == "limits":
        return [*out, *limits(result.rows), ""]
    hows: dict[str, list[str]] = defaultdict(list)
    for row in result.rows:
        if row.how:
            hows[row.how].append(row.path)
    out += [*ratios(result.rows), "", *figures(result.rows), ""]
    for how, paths in hows.items():
        out.append(how if len(hows) == 1 else f"- {', '.join(paths)}: {how}")
    return [*out, ""] if hows else out


def summary(results: list[Result]) -> list[str]:
    """Return all goals in one table."""
    rows = []
    for result in results:
        for row in result.rows:
            for goal in row.goals:
                text = goal_text(row, goal)
                what, _, reached = text.partition(": ")
                rows.append([row.path, result.dataset, what, reached])
    if not rows:
        return []
    return ["## Goals", "", *table(["path", "data", "goal", "reached"], rows), ""]


def profiles(text: str) -> dict[str, str]:
    """Return what SHORT.md says of each path: a heading names it, paragraphs follow."""
    found: dict[str, str] = {}
    for part in text.split("\n## ")[1:]:
        path, _, said = part.partition("\n")
        found[path.strip()] = said.strip()
    return found


def short(results: list[Result], said: dict[str, str]) -> list[str]:
    """Return why rows miss their goals: what a profile says of each path."""
    missed: dict[str, list[str]] = {}
    for result in results:
        for row in result.rows:
            for goal in row.goals:
                reached = row.reached(goal)
                if reached is not None and not goal.met(reached):
                    missed.setdefault(row.path, []).append(
                        f"{result.dataset}: {goal_text(row, goal).replace('**', '')}"
                    )
    out = ["## What falls short, and why", ""] if missed else []
    for path, where in missed.items():
        words = said.get(path, "Not profiled yet.")
        out += [f"**{path}** ({'; '.join(where)}). {words}", ""]
    return out


def document(results: list[Result], plots: list[str], said: dict[str, str]) -> str:
    """Return RESULTS.md; ``said`` is what profiles say of paths that fall short."""
    results = sorted(results, key=lambda one: (one.dataset, place_of(one.suite)))
    machines = sorted({one.machine for one in results})
    out = [INTRO, *(f"Machine: {each}.\n" for each in machines)]
    revisions = sorted({one.revision for one in results})
    if len(revisions) > 1:
        out += ["Suites were measured at several revisions; each says at which.", ""]
    out += summary(results)
    out += short(results, said)
    if plots:
        out += ["## Scaling", "", *(f"![{name}](plots/{name}.svg)" for name in plots), ""]
    for dataset in dict.fromkeys(one.dataset for one in results):
        some = [one for one in results if one.dataset == dataset]
        about = next(
            (one.about for one in some if one.about), "what suites generate for themselves"
        )
        out += [f"## {dataset}", "", f"{about[0].upper()}{about[1:]}.", ""]
        for one in some:
            out += section(one)
    return "\n".join(out).rstrip() + "\n"


# ---- plots ----


def _lines(results: list[Result]) -> dict[str, dict[str, list[tuple[float, float, str, str]]]]:
    """Return, of each plot, its lines: (x, y, label of x, what y is)."""
    found: dict[str, dict[str, list[tuple[float, float, str, str]]]] = defaultdict(dict)
    for result in results:
        for row in result.rows:
            if row.plot is None:
                continue
            others = [side for side in row.peers if not side.name.startswith("shardgit")]
            for side in (row.ours, *others):
                data = result.dataset if result.dataset != "generated" else ""
                words = (data, row.plot.line, side.name)
                name = ", ".join(word for word in words if word)
                point = (row.plot.x, side.value(row.plot.y), row.plot.x_label, row.plot.y)
                found[row.plot.name].setdefault(name, []).append(point)
    return found


def draw(results: list[Result], folder: Path) -> list[str]:
    """Draw all plots; returns their names, none where matplotlib is not installed."""
    found = _lines(results)
    if not found:
        return []
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install --group bench)", file=sys.stderr)
        return []
    matplotlib.use("svg")
    # The same file from the same figures: no random ids, no date, text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "shardgit", "svg.fonttype": "none"})
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    units = {"size": "bytes", "memory": "bytes", "rate": "per s", "throughput": "bytes/s"}
    for name, lines in sorted(found.items()):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
        for label, points in sorted(lines.items()):
            ordered = sorted(points)
            style = "o-" if label.endswith("shardgit") else "s--"
            axes.plot([at[0] for at in ordered], [at[1] for at in ordered], style, label=label)
        _, _, x_label, what = next(iter(lines.values()))[0]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        places = sorted({at[0] for points in lines.values() for at in points})
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(f"{NAMES[what]}, {units.get(what, 's')} each")
        axes.set_title(name.replace("-", " "))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
    return sorted(found)


def write(folder: Path, out: Path | None = None) -> Path:
    """Render a folder of results; beside it, or into another file."""
    results = read_all(folder)
    target = out or folder.parent / "RESULTS.md"
    plots = draw(results, target.parent / "plots")
    said = profiles((HERE / "SHORT.md").read_text())
    target.write_text(document(results, plots, said))
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "results")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    print(write(words.folder, words.out))
