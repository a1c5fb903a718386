"""Random histories made by git in one go."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from reference.gits import git

if TYPE_CHECKING:
    from pathlib import Path

COMMITS = 40


def random_history(
    folder: Path, seed: int, algorithm: str = "sha1", *, skewed: bool = False
) -> Path:
    """Make a repository of random merges (``skewed``: dates out of order now and then), folders that move and repeat,
    tags of all kinds, and the sparse specification spec:spec.
    """
    rand = random.Random(seed)
    git(
        folder.parent,
        "init",
        "-q",
        "--bare",
        "-b",
        "b0",
        f"--object-format={algorithm}",
        str(folder),
    )
    out: list[bytes] = []

    def data(text: bytes) -> bytes:
        return b"data %d\n%s\n" % (len(text), text)

    contents = [b"%d" % n * rand.choice((1, 5, 30, 300)) for n in range(25)]
    names = [
        f"{a}{b}".encode() for a in ("", "d/", "d/e/", "d/e/f/", "g/") for b in ("x", "y", "z")
    ]
    clock = 1_700_000_000
    for number in range(1, COMMITS + 1):
        clock += rand.choice((60, 60, 60, 600, -300 if skewed else 0))
        low = max(1, number - 8)
        parents = rand.sample(
            range(low, number), min(number - low, rand.choice((1, 1, 1, 2, 2, 3)))
        )
        if number > 2 and rand.random() < 0.05:
            parents = []  # another root
        out.append(b"commit refs/heads/b%d\nmark :%d\n" % (rand.randrange(5), number))
        out.append(b"committer C <c@d.e> %d +0000\n" % clock + data(b"commit %d" % number))
        out += [
            (b"merge" if at else b"from") + b" :%d\n" % parent for at, parent in enumerate(parents)
        ]
        if not parents and number > 1:
            out[-2] = out[-2].replace(b"refs/heads/b", b"refs/heads/root%d" % number)
        if not parents:
            out.append(b"M 100644 inline d/x\n" + data(b"%d" % number))
        for _ in range(rand.randint(1, 3)):
            if rand.random() < 0.1:
                out.append(b"C d %s\n" % rand.choice((b"copy", b"g/d", b"d2")))
                continue
            path, text = rand.choice(names), rand.choice(contents)
            out.append(b"M 100644 inline %s\n" % path + data(text))
    out.append(b"commit refs/heads/spec\ncommitter C <c@d.e> %d +0000\n" % clock + data(b"spec"))
    out.append(b"M 100644 inline spec\n" + data(b"/d/\n!/d/e/\n/d/e/f/x\ncopy/**/y\nz\n"))
    git(folder, "fast-import", "--quiet", "--force", stdin=b"".join(out))
    commits = git(folder, "rev-list", "--all").decode().split()
    for number, commit in enumerate(rand.sample(commits, 4)):
        git(folder, "tag", f"light{number}", commit)
        git(folder, "tag", "-am", "t", f"tag{number}", commit)
    git(folder, "tag", "-am", "nested", "nested", "tag0")
    git(folder, "tag", "-am", "tree", "treetag", f"{commits[3]}:d", check=False)
    git(folder, "tag", "-am", "blob", "blobtag", "spec:spec")
    git(folder, "symbolic-ref", "HEAD", "refs/heads/spec")
    git(folder, "repack", "-adq", "--depth=20")
    return folder
