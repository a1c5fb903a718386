"""Index a pack by a library that has no command for it.

python bench/peers/index_pack.py libgit2|dulwich PACK FOLDER
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path

PIECE_BYTES = 1 << 20


def libgit2_library() -> Path | None:
    """Return the libgit2 that pygit2 brings along."""
    found = importlib.util.find_spec("pygit2")
    if found is None or found.origin is None:
        return None
    beside = Path(found.origin).parent.parent / "pygit2.libs"
    return next(iter(sorted(beside.glob("libgit2*.so*"))), None)


def by_libgit2(pack: Path, folder: Path) -> None:
    """Feed a pack to libgit2's indexer, as its clone does; pygit2 has no binding for it."""
    import pygit2  # noqa: F401  it loads what libgit2 needs, and starts it

    library = ctypes.CDLL(str(libgit2_library()))
    library.git_libgit2_init()

    def check(code: int) -> None:
        if code < 0:
            raise SystemExit(f"libgit2: {code}")

    indexer = ctypes.c_void_p()
    progress = ctypes.create_string_buffer(128)  # git_indexer_progress: seven counters
    library.git_indexer_append.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    check(library.git_indexer_new(ctypes.byref(indexer), str(folder).encode(), 0o600, None, None))
    with pack.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            check(library.git_indexer_append(indexer, piece, len(piece), progress))
    check(library.git_indexer_commit(indexer, progress))


def by_dulwich(pack: Path, folder: Path) -> None:
    """Resolve a pack and write its index."""
    from dulwich.object_format import DEFAULT_OBJECT_FORMAT
    from dulwich.pack import PackData

    with PackData(str(pack), object_format=DEFAULT_OBJECT_FORMAT) as data:
        data.create_index(str(folder / "pack.idx"))


def main() -> None:
    """Index by the library that was named."""
    which, pack, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    {"libgit2": by_libgit2, "dulwich": by_dulwich}[which](pack, folder)


if __name__ == "__main__":
    main()
