"""Build the peers that are no command and no Python library: gitoxide, go-git and JGit, where their tools are there.

    python bench/peers/build.py [gix] [gogit] [jgit]

Crates, Go modules and jars come from the usual registries. What is built is found by suites in bench/out/peers.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUILT = HERE.parent / "out" / "peers"
NAMES = {"gix": "gitoxide", "gogit": "go-git", "jgit": "JGit"}
TOOLS = {"gix": ("cargo",), "gogit": ("go",), "jgit": ("mvn", "javac")}
STEPS = {
    "gix": [["cargo", "build", "--release", "--quiet"]],
    "gogit": [
        ["go", "get", "github.com/go-git/go-git/v5@latest"],
        ["go", "build", "-o", "gogit-peer", "."],
    ],
    "jgit": [
        ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"],
        ["javac", "-cp", "lib/*", "-d", "classes", "Peer.java"],
    ],
}


def command(name: str) -> list[str] | None:
    """Return how a peer is started, None if it was not built."""
    folder = BUILT / name
    stamp = folder / "built"
    if not stamp.exists() or stamp.read_text() != _source(name):
        return None
    return {
        "gix": [str(folder / "target" / "release" / "gix-peer")],
        "gogit": [str(folder / "gogit-peer")],
        "jgit": ["java", "-cp", f"{folder / 'classes'}:{folder / 'lib'}/*", "Peer"],
    }[name]


def _source(name: str) -> str:
    """Return a hash of a peer's source: what was built of another one is none."""
    files = sorted(path for path in (HERE / name).rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def build(name: str) -> None:
    """Copy a peer's source and build it."""
    if lacking := [tool for tool in TOOLS[name] if shutil.which(tool) is None]:
        print(f"{NAMES[name]}: {', '.join(lacking)} not found", file=sys.stderr)
        return
    folder = BUILT / name
    (folder / "built").unlink(missing_ok=True)
    shutil.copytree(HERE / name, folder, dirs_exist_ok=True)
    for step in STEPS[name]:
        done = subprocess.run(step, cwd=folder, check=False)
        if done.returncode:
            print(f"{NAMES[name]}: {' '.join(step[:2])} failed", file=sys.stderr)
            return
    (folder / "built").write_text(_source(name))
    print(f"{NAMES[name]}: built", file=sys.stderr)


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        build(each)
