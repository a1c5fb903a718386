"""The interop matrix: every flow with every client over every transport.

    python tests/interop/run.py [--work DIR] [--git PATH ...] [--client NAME ...] [--flow NAME ...]

Clients that can be had are installed into the work folder; one that cannot, and each flow that a client has not, is
named with the reason. ``--git`` adds another version of C git: the path of its program (built git trees have
bin-wrappers/git).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

import served  # noqa: E402
from interop import clients  # noqa: E402
from interop.clients import Absent, Client, Failed, GitClient, Unsupported  # noqa: E402
from interop.flows import FLOWS, Stage  # noqa: E402

from shardgit.node import open_store  # noqa: E402
from shardgit.oid import HashKind  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


NOT_IN_OLD_GIT = (
    ("partial", (2, 17), "has no partial clone"),
    ("atomic", (2, 4), "has no push --atomic"),
    ("atomic", (2, 24), "asks no HTTP server for an atomic push, whatever it is told"),
    ("SHA-256", (2, 29), "has no SHA-256"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """How one flow ended for one client."""

    state: str
    why: str = ""
    seconds: float = 0.0


@contextmanager
def staged(work: Path) -> Iterator[Stage]:
    """Serve a new store for flows to play on."""
    sources = {HashKind.SHA1: served.small_repository(work / "source", commits=6)}
    sources[HashKind.SHA256] = work / "source256"
    sources[HashKind.SHA256].mkdir()
    made = sources[HashKind.SHA256]
    served.git(made, "init", "--quiet", "--initial-branch=main", "--object-format=sha256")
    (made / "README.md").write_text("SHA-256\n")
    served.git(made, "add", ".")
    served.git(made, "commit", "--quiet", "-m", "first")
    served.git(made, "tag", "-a", "v1", "-m", "the first")
    data = work / "data"
    done = served.shardgit("init", str(data), cwd=work)
    if done.returncode:
        raise SystemExit(done.stderr)
    with served.serving(data) as server, open_store(data) as store:
        yield Stage(store, server, sources, work)


def other_git(path: str) -> Client:
    """Return another version of git."""
    if not shutil.which(path):
        raise Absent(f"{path} is not a program")
    client = GitClient("git", "http")
    client.program = path
    version = client.version()
    numbers = tuple(int(part) for part in version.split(".")[:2])
    for flow, since, why in NOT_IN_OLD_GIT:
        if numbers < since and flow not in client.missing:
            client.missing[flow] = f"git {version} {why}"
    return client


def git_over(transport: str, work: Path) -> Client:
    """Return the machine's git over a transport."""
    client = GitClient("git", transport)
    if transport == "ssh":
        if not shutil.which("ssh"):
            raise Absent("ssh is not installed; Debian's openssh-client has it")
        options = "-F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        client.variables["GIT_SSH_COMMAND"] = f"ssh {options} -o LogLevel=ERROR"
    if transport == "shardgit":
        programs = work / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        helper = programs / "git-remote-shardgit"
        helper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m shardgit.remote_helper "$@"\n')
        helper.chmod(0o755)
        client.variables["PATH"] = f"{programs}:{os.environ['PATH']}"
        client.missing["LFS"] = "git-lfs knows no shardgit:// URL; it takes an HTTP URL in lfs.url"
    return client


def had(others: list[str], work: Path) -> Iterator[tuple[str, Client | Absent]]:
    """Return every client by its row's name, or why it cannot be had."""
    makers: list[tuple[str, Callable[[], Client]]] = [
        *((f"git, {way}", partial(git_over, way, work)) for way in ("http", "ssh", "shardgit")),
        *((f"git at {path}", partial(other_git, path)) for path in others),
        ("dulwich", partial(clients.python_client, "dulwich", "dulwich")),
        ("pygit2", partial(clients.python_client, "pygit2", "pygit2")),
        ("jgit-cli", clients.jgit),
        ("JGit", partial(clients.jgit_library, work)),
        ("isomorphic-git", partial(clients.isomorphic, work)),
        ("go-git", partial(clients.gogit, work)),
        ("gitoxide", partial(clients.gix, work)),
    ]
    for row, make in makers:
        try:
            client = make()
            version = client.version()
        except (Absent, Failed) as error:
            yield row, error if isinstance(error, Absent) else Absent(str(error))
            continue
        yield f"{row.split(' at ')[0]} {version}".strip(), client


def play(stage: Stage, client: Client, flow: str) -> Cell:
    """Play one flow."""
    if flow in client.missing:
        return Cell("n/a", client.missing[flow])
    begun = time.monotonic()
    try:
        FLOWS[flow](stage, client)
    except Unsupported as error:
        return Cell("n/a", str(error))
    except (Failed, AssertionError, OSError) as error:
        return Cell("FAIL", str(error), time.monotonic() - begun)
    return Cell("ok", "", time.monotonic() - begun)


def show(table: dict[str, dict[str, Cell] | Absent], flows: list[str]) -> bool:
    """Print the matrix and the reasons; return whether nothing failed."""
    wide = max(len(row) for row in table)
    print("client".ljust(wide), *(flow.ljust(8) for flow in flows))
    notes: dict[str, list[str]] = {"FAIL": [], "n/a": [], "absent": []}
    for row, cells in table.items():
        if isinstance(cells, Absent):
            print(row.ljust(wide), "absent")
            notes["absent"].append(f"{row}: {cells}")
            continue
        print(row.ljust(wide), *(cells[flow].state.ljust(8) for flow in flows))
        for flow in flows:
            if cells[flow].why:
                notes[cells[flow].state].append(f"{row}, {flow}: {cells[flow].why}")
    for state, lines in notes.items():
        if lines:
            print(f"\n{state}")
            print("\n".join(f"  {line}" for line in lines))
    counts = {
        state: sum(
            cell.state == state
            for cells in table.values()
            if not isinstance(cells, Absent)
            for cell in cells.values()
        )
        for state in ("ok", "FAIL", "n/a")
    }
    print(f"\n{counts['ok']} passed, {counts['FAIL']} failed, {counts['n/a']} skipped")
    return not counts["FAIL"]


def main() -> int:
    """Play what is asked for."""
    parser = argparse.ArgumentParser(description="every flow with every Git client")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "interop")
    parser.add_argument("--git", action="append", default=[], help="another git program's path")
    parser.add_argument("--client", action="append", default=[], help="rows that start so")
    parser.add_argument("--flow", action="append", default=[], choices=list(FLOWS))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    flows = asked.flow or list(FLOWS)
    table: dict[str, dict[str, Cell] | Absent] = {}
    scratch = Path(tempfile.mkdtemp(prefix="interop-"))
    try:
        with staged(scratch) as stage:
            for row, client in had(asked.git, asked.work):
                if asked.client and not any(row.startswith(each) for each in asked.client):
                    continue
                if isinstance(client, Absent):
                    table[row] = client
                    continue
                print(f"{row} ...", file=sys.stderr)
                table[row] = {flow: play(stage, client, flow) for flow in flows}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0 if show(table, flows) else 1


if __name__ == "__main__":
    sys.exit(main())
