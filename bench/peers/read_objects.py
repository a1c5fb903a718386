"""Read objects of a repository by id with a library, one after another, and throw them away.

python bench/peers/read_objects.py dulwich|pygit2 REPOSITORY FILE_OF_HEX_IDS
"""

from __future__ import annotations

import sys
from pathlib import Path


def by_dulwich(repository: str, ids: list[bytes]) -> int:
    """Read with dulwich's object store."""
    from dulwich.repo import Repo

    with Repo(repository) as repo:
        return sum(len(repo.object_store.get_raw(oid)[1]) for oid in ids)


def by_pygit2(repository: str, ids: list[bytes]) -> int:
    """Read with libgit2's object database."""
    import pygit2

    pygit2.settings.enable_strict_hash_verification(
        False
    )  # as the others: git does not hash either
    odb = pygit2.Repository(repository).odb
    return sum(len(odb.read(oid.decode())[1]) for oid in ids)


def main() -> None:
    """Read all."""
    how, repository, names = sys.argv[1:]
    ids = Path(names).read_bytes().split()
    print({"dulwich": by_dulwich, "pygit2": by_pygit2}[how](repository, ids))


if __name__ == "__main__":
    main()
