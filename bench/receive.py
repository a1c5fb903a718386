"""Receive one pack as a push does, into a new store, and end: what `run.py` times with and without checks.

python bench/receive.py STORE REPOSITORY [--no-fsck] [--ignore=FAULT ...]
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.protocol.receive_pack import Command, PushRequest
from shardgit.service.access import trusted
from shardgit.service.configuring import Configuring
from shardgit.service.push import Push


def main() -> None:
    """Create the store, push all refs of the repository with its one pack."""
    folder, repository = Path(sys.argv[1]), Path(sys.argv[2])
    words = ["git", "-C", str(repository), "for-each-ref", "--format=%(objectname) %(refname)"]
    rows = subprocess.run(words, capture_output=True, check=True).stdout.split(b"\n")
    commands = tuple(
        Command(name, None, ObjectId(bytes.fromhex(oid.decode())))
        for oid, name in (row.split(b" ", 1) for row in rows if row)
    )
    (pack,) = (repository / "objects" / "pack").glob("*.pack")
    create_store(folder)
    with open_store(folder) as store, pack.open("rb") as file:
        store.create_repository("bench")
        if "--no-fsck" in sys.argv:
            Configuring(store).update("bench", {"receive.fsck_objects": False})
        passed = [word.partition("=")[2] for word in sys.argv if word.startswith("--ignore=")]
        if passed:
            severities = {f"fsck.severities.{name}": "ignore" for name in passed}
            Configuring(store).update("bench", severities)
        push = Push(store, "bench", PushRequest(commands), principal=trusted("bench"))
        push.take(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        push.check()
        failed = [result for result in push.commit().results if result.error]
        if failed:
            raise SystemExit(f"{failed[0].command.name!r}: {failed[0].error}")


if __name__ == "__main__":
    main()
