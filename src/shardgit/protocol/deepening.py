"""What a fetch says of shallow boundaries: where the client's stand, and where they shall. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, LimitExceeded, ShardgitError
from shardgit.protocol.numbers import parse_int, parse_time
from shardgit.protocol.pktline import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgit.limits import Limits
    from shardgit.oid import ObjectId

INFINITE_DEPTH = 0x7FFFFFFF
_ALL_AGES = (1 << 64) - 1  # git takes -1 as no time


@dataclass(frozen=True, slots=True)
class Deepening:
    """``shallows`` are the client's boundary. It moves to ``depth`` (0: none was asked for), or to what is no older
    than ``since`` (None: not asked for, 0: any age) and what the refs ``without`` do not reach.
    """

    shallows: tuple[ObjectId, ...] = ()
    depth: int = 0
    relative: bool = False
    since: int | None = None
    without: tuple[bytes, ...] = ()

    @property
    def asked(self) -> bool:
        """Whether the boundary shall move."""
        return bool(self.depth or self.by_commits)

    @property
    def by_commits(self) -> bool:
        """Whether it is asked for by age or by refs."""
        return self.since is not None or bool(self.without)


AS_IT_IS = Deepening()


class DeepeningReader:
    """Collects the lines of a request that tell of shallow boundaries."""

    def __init__(self, oid: Callable[[bytes], ObjectId], limits: Limits) -> None:
        self._oid = oid
        self._limits = limits
        self._shallows: dict[ObjectId, None] = {}
        self._depth = 0
        self._since: int | None = None
        self._without: dict[bytes, None] = {}

    def take(self, text: bytes) -> bool:
        """Take a line; False when it tells of something else. Errors, in git's words: InvalidArgument."""
        word, blank, rest = text.partition(b" ")
        if not blank:
            return False
        if word == b"shallow":
            try:
                self._shallows[self._oid(rest)] = None
            except ShardgitError as cause:
                raise _invalid("invalid shallow line", text) from cause
        elif word == b"deepen":
            depth = parse_int(rest)
            if depth is None or depth <= 0:
                raise _invalid("Invalid deepen", text)
            self._depth = depth
        elif word == b"deepen-since":
            since = parse_time(rest)
            if since is None or since == _ALL_AGES:
                raise _invalid("Invalid deepen-since", text)
            self._since = since
        elif word == b"deepen-not":
            if len(self._without) >= self._limits.deepen_not_max:
                raise LimitExceeded("too many deepen-not", limit=self._limits.deepen_not_max)
            self._without[rest] = None
        else:
            return False
        return True

    def finish(self, *, relative: bool) -> Deepening:
        """Return what was told."""
        made = Deepening(
            tuple(self._shallows), self._depth, relative, self._since, tuple(self._without)
        )
        if made.depth and made.by_commits:
            raise InvalidArgument(
                "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together"
            )
        return made


def _invalid(what: str, text: bytes) -> InvalidArgument:
    shown = one_line(text[:200].decode("utf-8", "replace")).decode()
    return InvalidArgument(f"{what}: {shown}")
