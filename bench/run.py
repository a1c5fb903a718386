"""Compare shardgit with git on one repository, in one run, alternating; write bench/RESULTS.md.

    python bench/run.py [--repo PATH] [--rounds 5] [--out bench/RESULTS.md] [--work bench/out]

Without --repo a repository of 20,000 commits is generated (seeded). Ratios stand first: below 1 is less than git.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate import generate
from measure import Cost, Peak, children_of, cpu_of, median, memory_of, run
from servers import Server, clone_body, discard, head, http_backend, shardgit, tips
from traffic import fetches, million_refs, one_commit_pushes, rows_of

MIB = 1 << 20
PARTIAL = {"depth 1 clone": b"deepen 1", "blob:none clone": b"filter blob:none"}


def prepare(source: Path, work: Path) -> Path:
    """Copy heads and tags of the source into one pack with bitmap and commit-graph, as a careful host keeps it."""
    target = work / "bench.git"
    if target.exists():
        shutil.rmtree(target)
    subprocess.run(["git", "init", "--quiet", "--bare", str(target)], check=True)
    git = ["git", "-C", str(target)]
    refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
    subprocess.run(
        [*git, "fetch", "--quiet", "--no-tags", f"file://{source.resolve()}", *refs], check=True
    )
    head = subprocess.run(
        ["git", "-C", str(source), "symbolic-ref", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    if head.returncode == 0:
        subprocess.run([*git, "symbolic-ref", "HEAD", head.stdout.strip()], check=True)
    subprocess.run([*git, "config", "uploadpack.allowFilter", "true"], check=True)
    # The source's deltas are kept: only packed together, with what makes http-backend fast.
    subprocess.run([*git, "repack", "-adbq"], check=True)
    subprocess.run([*git, "commit-graph", "write", "--reachable", "--no-progress"], check=True)
    subprocess.run([*git, "config", "uploadpack.allowFilter", "true"], check=True)
    return target


def pack_of(repository: Path) -> Path:
    """Return the one pack of a repository."""
    (pack,) = (repository / "objects" / "pack").glob("*.pack")
    return pack


def imports(repository: Path, work: Path, rounds: int) -> dict[str, Cost]:
    """Time imports and git index-pack, alternating."""
    pack = pack_of(repository)
    rows: dict[str, list[Cost]] = {"import": [], "import without .idx": [], "git index-pack": []}
    bare = work / "no-index.git"
    for number in range(rounds):
        for name, costs in rows.items():
            store = work / (f"store-{number}" if name == "import" else "store-without")
            shutil.rmtree(store, ignore_errors=True)
            if name == "git index-pack":
                target = work / "indexed.idx"
                target.unlink(missing_ok=True)
                costs.append(run(["git", "index-pack", "-o", str(target), str(pack)]))
                continue
            source = repository
            if name != "import":
                shutil.rmtree(bare, ignore_errors=True)
                shutil.copytree(repository, bare, copy_function=os.link)
                for index in (bare / "objects" / "pack").glob("*.idx"):
                    index.unlink()
                source = bare
            shardgit_command = [sys.executable, "-m", "shardgit"]
            subprocess.run(
                [*shardgit_command, "init", str(store)], check=True, stdout=subprocess.DEVNULL
            )
            costs.append(
                run(
                    [
                        *shardgit_command,
                        "repo",
                        "import",
                        "bench",
                        str(source),
                        "--data",
                        str(store),
                    ]
                )
            )
            if name != "import" or number:
                shutil.rmtree(store)
    return {name: median(costs) for name, costs in rows.items()}


def stored_bytes(store: Path) -> tuple[int, int]:
    """Return (bytes that the store's files take, those of journal and shards as LMDB counts live)."""
    files = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    disk = sum(path.stat().st_blocks * 512 for path in store.rglob("*") if path.is_file())
    return files, disk


def served(server: Server, body: bytes, clients: int = 1) -> Cost:
    """Serve a clone (or several at once) to clients that discard it."""
    pids = children_of(server.pid)
    base = sum(map(memory_of, pids))
    cpu = sum(map(cpu_of, pids))
    begun = time.monotonic()
    with Peak(server.pid) as peak, ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: discard(server.url, body), range(clients)))
    wall = time.monotonic() - begun
    pids = children_of(server.pid)
    return Cost(wall, sum(map(cpu_of, pids)) - cpu, max(0, peak.bytes - base))


def clones(ours: Server, theirs: Server, rounds: int) -> dict[str, dict[str, Cost]]:
    """Time clones from both servers, alternating, after one of each to warm up."""
    wants = tips(theirs.url)
    assert set(wants) == set(tips(ours.url)), "the servers show different refs"
    body = clone_body(wants)
    sizes = {server.name: discard(server.url, body) for server in (ours, theirs)}
    rows: dict[str, dict[str, list[Cost]]] = {"full clone": {}, "4 clones at once": {}}
    partial = {what: clone_body([head(theirs.url)], extra=extra) for what, extra in PARTIAL.items()}
    for part in partial.values():
        discard(ours.url, part)
    for _ in range(rounds):
        for server in (ours, theirs):
            for what, part in partial.items():
                costs = rows.setdefault(what, {}).setdefault(server.name, [])
                costs.append(served(server, part))
            rows["full clone"].setdefault(server.name, []).append(served(server, body))
            rows["4 clones at once"].setdefault(server.name, []).append(served(server, body, 4))
    out = {what: {name: median(costs) for name, costs in by.items()} for what, by in rows.items()}
    print({name: f"{size / MIB:.1f} MiB" for name, size in sizes.items()})
    return out


def first_clones(
    store: Path, repository: Path, work: Path, rounds: int, extra: bytes = b""
) -> dict[str, Cost]:
    """Time the first clone that a newly started server serves; files are in the page cache."""
    rows: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        for server in (shardgit(store), http_backend(repository, work / "lighttpd")):
            with server as running:
                wants = [head(running.url)] if extra else tips(running.url)
                body = clone_body(wants, extra=extra)
                rows.setdefault(running.name, []).append(served(running, body))
    return {name: median(costs) for name, costs in rows.items()}


def receives(repository: Path, work: Path, rounds: int) -> list[tuple[str, Cost, Cost]]:
    """Time receives of the whole repository with and without checks, and git index-pack likewise."""
    script = str(Path(__file__).parent / "receive.py")
    store, target = work / "received", work / "indexed.idx"
    index = ["git", "index-pack", "-o", str(target)]
    pack = str(pack_of(repository))
    commands = {
        "ours": [sys.executable, script, str(store), str(repository)],
        "ours, unchecked": [sys.executable, script, str(store), str(repository), "--no-fsck"],
        "git": [*index, "--strict", pack],
        "git, unchecked": [*index, pack],
    }
    rows: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(store, ignore_errors=True)
            target.unlink(missing_ok=True)
            rows[name].append(run(command, cwd=repository))
    shutil.rmtree(store, ignore_errors=True)
    costs = {name: median(some) for name, some in rows.items()}
    return [
        ("strict receive / unchecked, ours", costs["ours"], costs["ours, unchecked"]),
        ("strict / unchecked, git index-pack", costs["git"], costs["git, unchecked"]),
        ("strict receive, ours / git index-pack --strict", costs["ours"], costs["git"]),
    ]


def table(title: str, rows: list[tuple[str, Cost, Cost]]) -> list[str]:
    """Return a Markdown table, ratios first."""
    out = [
        f"## {title}",
        "",
        "| what | CPU ratio | wall ratio | CPU s | git CPU s | wall s | git wall s | memory MiB |",
    ]
    out.append("|---|---|---|---|---|---|---|---|")
    for what, ours, theirs in rows:
        cpu, wall = ours.cpu_s / max(theirs.cpu_s, 1e-9), ours.wall_s / max(theirs.wall_s, 1e-9)
        out.append(
            f"| {what} | **{cpu:.2f}** | {wall:.2f} | {ours.cpu_s:.2f} | {theirs.cpu_s:.2f} | {ours.wall_s:.2f} "
            f"| {theirs.wall_s:.2f} | {ours.memory_bytes / MIB:.0f} |"
        )
    return [*out, ""]


def machine() -> str:
    """Return what the machine is."""
    model = next(
        (
            row
            for row in Path("/proc/cpuinfo").read_text().splitlines()
            if row.startswith("model name")
        ),
        "",
    )
    git = subprocess.run(
        ["git", "version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 30)
    return f"{os.cpu_count()} cores ({model.partition(': ')[2]}), {memory} GiB, {platform.system()}, {git}"


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repo", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commits", type=int, default=20_000)
    parser.add_argument("--refs", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "RESULTS.md")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument(
        "--smoke", action="store_true", help="small and once; writes nothing but to --work"
    )
    words = parser.parse_args()
    if words.smoke:
        words.rounds, words.commits, words.refs = 1, 300, 2_000
        words.out = words.work / "RESULTS.md"
    words.work.mkdir(parents=True, exist_ok=True)
    source = words.repo or generate(words.work / "generated.git", commits=words.commits)
    repository = prepare(source, words.work)
    pack = pack_of(repository)
    pack_bytes = pack.stat().st_size + pack.with_suffix(".idx").stat().st_size
    count = subprocess.run(
        ["git", "-C", str(repository), "count-objects", "-v"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    objects = next(row.split()[1] for row in count.splitlines() if row.startswith("in-pack"))
    print(f"{source}: {objects} objects, {pack_bytes / MIB:.1f} MiB of pack and idx")
    timed = imports(repository, words.work, words.rounds)
    store = words.work / "store-0"
    files, disk = stored_bytes(store)
    with shardgit(store) as ours, http_backend(repository, words.work / "lighttpd") as theirs:
        cloned = clones(ours, theirs, words.rounds)
        fetched = fetches(ours, theirs, repository, words.rounds)
    pushed = one_commit_pushes(words.work, words.rounds)
    listed = million_refs(words.work, words.refs, words.rounds)
    strict = receives(repository, words.work, words.rounds)
    first = {"first clone of a server": first_clones(store, repository, words.work, words.rounds)}
    for what, extra in PARTIAL.items():
        first[f"first {what} of a server"] = first_clones(
            store, repository, words.work, words.rounds, extra
        )
    cloned = first | cloned
    rival = timed["git index-pack"]
    lines = [
        "# Results",
        "",
        f"Written by `make bench`. {machine()}. Medians of {words.rounds}, we and git in turn in one run.",
        "Ratios are ours / git's: below 1 is less than git. Memory is the peak of anonymous and shared pages.",
        "",
        f"Repository: {source.name if words.repo else 'generated'}, {objects} objects, "
        f"{pack_bytes / MIB:.1f} MiB of pack and idx.",
        "",
        *table(
            "Import against git index-pack",
            [(name, cost, rival) for name, cost in timed.items() if cost is not rival],
        ),
        "An import is durable and readable when it returns; index-pack writes an .idx. A path with an .idx beside its",
        "pack spares us the pass that finds the entries; the second row has none.",
        "",
        *table(
            "Server of a clone, against git http-backend with bitmaps behind lighttpd",
            [(what, by["shardgit"], by["git http-backend"]) for what, by in cloned.items()],
        ),
        "Clients discard the stream. CPU is the server's, its CGI children included. One worker. The first clone",
        "hashes the pack and checks every block against its id; a worker knows the trailer of a pack that it sent, so",
        "later clones of the same objects hash nothing. It keeps the entries that it deflates for shallow clones,",
        "32 MiB of them: the first pays, later ones copy.",
        "",
        "## Pushes, fetches and refs, against the same",
        "",
        *rows_of(pushed | fetched | listed),
        "",
        "A push is two requests (the refs, the pack) on a connection that stays open, durable when it is answered;",
        "each client has a repository of its own, two workers of ours serve them. http-backend runs without fsck,",
        "ours with it.",
        "Fetches and refs: one worker. Latencies are over all rounds; clients share the two cores with the servers.",
        "",
        *table("Strict receive", strict),
        "Ratios are of the two sides that the row names. Ours parses, resolves, computes ids, runs fsck, checks",
        "connectivity, writes durably and moves all refs; index-pack writes an .idx.",
        "",
        "## Storage",
        "",
        f"{files / pack_bytes:.3f}x of pack and idx in files ({disk / pack_bytes:.3f}x on disk): "
        f"{files / MIB:.1f} MiB against {pack_bytes / MIB:.1f} MiB.",
        "",
    ]
    words.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
