"""A process of a node of a journal on etcd, with clients, to be killed: child.py FOLDER NODE FIRST SEED MEMBER...

``FOLDER/history-FIRST.jsonl`` is what its clients did, numbered from FIRST; a line is printed when they begin.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cluster.history.recorder import Recorder
from cluster.history.rows import RowClients

from shardgit.etcd.access import Access
from shardgit.journal.bundles import FileBundles
from shardgit.journal.etcd import EtcdJournal

CLIENTS = 4


def main() -> None:
    """Work until killed."""
    folder, node, first, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    access = Access(tuple(sys.argv[5:]))
    journal = EtcdJournal(folder / node, access, FileBundles(folder / "bundles"))
    recorder = Recorder(folder / f"history-{first}.jsonl")
    clients = RowClients([journal], recorder, seed, first=first)
    clients.start(CLIENTS)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while not clients.errors:
        time.sleep(0.05)
    clients.stop()


if __name__ == "__main__":
    main()
