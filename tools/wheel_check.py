"""Try the shardgit that is installed beside this interpreter: kernels, a server, git and the client against it.

Run with -I outside the source tree: ``python -I wheel_check.py [--bare | --ssh | --full]``, by what is installed:
nothing beside the wheel's own needs, the extra ``ssh``, or all extras. cibuildwheel runs it for each wheel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = Path(__file__).resolve().parents[1]
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "shardgit")
GIT = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -q",
}
PROTOBUF = ("v1.object_pb2", "v1.shard_pb2_grpc", "etcdpb.etcd_pb2")
KERNELS = (
    "_bits",
    "_delta",
    "_fastpack",
    "_fsck",
    "_graph",
    "_layout",
    "_objects",
    "_packstream",
    "_pktline",
    "_refpage",
    "_segment",
)


def main() -> None:
    """Try everything; a traceback says what does not work."""
    what = sys.argv[1] if len(sys.argv) > 1 else "--bare"
    imported()
    with tempfile.TemporaryDirectory() as folder:
        serve_and_clone(Path(folder), ssh=what != "--bare" and shutil.which("ssh") is not None)
        if what == "--bare":
            refused_without_extras(Path(folder))
    print(
        f"wheel_check: {what[2:]} works: {sys.version.split()[0]}, {run(PROGRAM, 'version').split()[1]}"
    )


def imported() -> None:
    """Look at what was installed: not the source tree, all kernels, protobuf modules, libdeflate inside."""
    import importlib

    import shardgit
    from shardgit._fastpack import features

    place = Path(shardgit.__file__).parent
    assert TREE not in place.parents or "site-packages" in place.parts, place
    for name in (*PROTOBUF, *KERNELS):
        importlib.import_module(f"shardgit.{name}")
    found = features()
    assert "libdeflate" in found["inflate"], found
    assert (place / "py.typed").exists()


def serve_and_clone(folder: Path, *, ssh: bool) -> None:
    """Make a repository, import, serve, clone, push, and read by the client."""
    import shardgit

    run("git", "init", "--quiet", "--initial-branch=main", "source", cwd=folder)
    (folder / "source" / "a.txt").write_text("one\n" * 1_000)
    run("git", "add", ".", cwd=folder / "source")
    run("git", "commit", "--quiet", "-m", "first", cwd=folder / "source")
    run(PROGRAM, "init", "data", "--shards", "2", cwd=folder)
    run(PROGRAM, "repo", "import", "demo", "source", cwd=folder)
    with serving(folder) as facts:
        url = f"http://{facts['http']}/demo.git"
        run("git", "clone", "--quiet", url, "copy", cwd=folder)
        (folder / "copy" / "b.txt").write_text("two\n")
        run("git", "add", ".", cwd=folder / "copy")
        run("git", "commit", "--quiet", "-m", "second", cwd=folder / "copy")
        run("git", "push", "--quiet", "origin", "main", cwd=folder / "copy")
        with shardgit.connect(facts["grpc"]) as store:
            assert store.repo("demo").read("main", "b.txt") == b"two\n"
            assert [c.message for c in store.repo("demo").log("main")] == [b"second\n", b"first\n"]
        if ssh:
            run(
                "git",
                "clone",
                "--quiet",
                f"ssh://git@{facts['ssh']}/demo.git",
                "by-ssh",
                cwd=folder,
            )
            assert (folder / "by-ssh" / "b.txt").read_text() == "two\n"
    run(PROGRAM, "repo", "verify", "demo", cwd=folder)


def refused_without_extras(folder: Path) -> None:
    """Look that what an extra brings says so in one line where it is not installed."""
    for words, extra in (
        (("serve", "--ssh", "127.0.0.1:0", "--check"), "ssh"),
        (("backup", "list", "s3://bucket/prefix"), "s3"),
    ):
        done = subprocess.run(
            [PROGRAM, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1, done
        assert f"pip install 'shardgit[{extra}]'" in done.stderr, done
        assert done.stderr.count("\n") == 1, done


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Serve ./data on free ports; gives the addresses."""
    import importlib.util

    keys = ["http", "grpc", "admin"] + (["ssh"] if importlib.util.find_spec("asyncssh") else [])
    words = [word for key in keys for word in (f"--{key}", "127.0.0.1:0")]
    process = subprocess.Popen(
        [PROGRAM, "serve", "--json", "--workers", "1", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        yield json.loads("".join(lines))
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


def run(*words: str, cwd: Path | None = None) -> str:
    """Run a program; return what it prints."""
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **GIT},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
