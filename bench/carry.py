"""Get all blocks of a bucket, 32 side by side, and throw them away: prints seconds and bytes.

python bench/carry.py URL       credentials and endpoint come from the environment
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from obstore import store

SIDE_BY_SIDE = 32


def main() -> None:
    """Do it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    bucket = store.from_url(
        sys.argv[1], client_options={"allow_http": endpoint.startswith("http://")}
    )
    names = [one["path"] for some in bucket.list("blocks") for one in some]

    def size_of(name: str) -> int:
        return len(bucket.get(name).bytes())

    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        begun = time.monotonic()
        size = sum(threads.map(size_of, names))
        sys.stdout.write(f"{time.monotonic() - begun:.6f} {size}\n")


if __name__ == "__main__":
    main()
