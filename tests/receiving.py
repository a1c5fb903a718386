"""A receive-pack that speaks through our protocol and keeps what it heard.

Run by git as ``--receive-pack``: the folder that it is given holds ``advertisement``; what the
client sent is left in ``request``. Words of ``refuse`` (ref, error) go into the report.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from shardgit.oid import HashKind
from shardgit.protocol.receive_pack import CommandResult, PushReader, end_of_answer, report


def main(folder: Path) -> None:
    """Serve one push."""
    kind = HashKind.from_git_name((folder / "format").read_text())
    sys.stdout.buffer.write((folder / "advertisement").read_bytes())
    sys.stdout.buffer.flush()
    reader, heard, rest = PushReader(kind), b"", None
    while rest is None and (piece := os.read(0, 7)):
        heard += piece
        rest = reader.receive(piece)
    request = reader.finish()
    if request is not None and request.has_pack:
        heard += sys.stdin.buffer.read()
    (folder / "request").write_bytes(heard)
    if request is not None:
        refused = dict(line.split(" ", 1) for line in (folder / "refuse").read_text().splitlines())
        results = [
            CommandResult(each, refused.get(each.name.decode())) for each in request.commands
        ]
        sys.stdout.buffer.write(end_of_answer(request, report(request, None, results)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
