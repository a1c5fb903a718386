"""Make a store and import repositories into it, all in one process.

python bench/new_store.py STORE SHARDS [NAME=REPOSITORY ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from shardgit.node import create_store, open_store
from shardgit.service.importing import import_repository


def main() -> None:
    """Make the store and import."""
    folder = Path(sys.argv[1])
    create_store(folder, shards=int(sys.argv[2]))
    with open_store(folder) as store:
        for word in sys.argv[3:]:
            name, _, source = word.partition("=")
            import_repository(store, name, source)


if __name__ == "__main__":
    main()
