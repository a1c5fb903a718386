"""git-upload-archive without I/O: the arguments read, options parsed, the answer framed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, LimitExceeded, MalformedPacket
from shardgit.protocol.pktline import FLUSH_BYTES, Mark, PacketReader, band, line, one_line
from shardgit.protocol.upload_pack import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

ARGUMENTS_MAX = 64  # git's own
ACCEPTED = line(b"ACK\n") + FLUSH_BYTES
FORMATS = (b"tar", b"tgz", b"tar.gz", b"zip")
_VALUED = (b"format", b"prefix", b"mtime")
_FLAGS = (b"list", b"verbose", b"worktree-attributes")
_REFUSED = (b"output", b"remote", b"exec", b"add-file", b"add-virtual-file")
_SHORT = {b"l": b"list", b"v": b"verbose"}
_MTIME = re.compile(rb"@?(\d{1,18})(?: [+-]\d{4})?")


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """What is to be archived, and how. ``level`` is -1 where it was left open."""

    treeish: bytes = b""
    paths: tuple[bytes, ...] = ()
    format: bytes = b"tar"
    prefix: bytes = b""
    level: int = -1
    mtime: int | None = None
    list_formats: bool = False
    verbose: bool = False
    attributes: bool = True  # the tree's own; --worktree-attributes leaves a bare repository none


class ArchiveReader:
    """Reads the arguments up to their flush. Errors: MalformedPacket, LimitExceeded."""

    def __init__(self) -> None:
        self._packets = PacketReader()
        self._arguments: list[bytes] = []
        self.ended = False

    def receive(self, data: bytes) -> None:
        """Take the next piece; what follows the flush is passed over."""
        if self.ended:
            return
        for packet in self._packets.receive(data):
            if packet is Mark.FLUSH:
                self.ended = True
                return
            if not isinstance(packet, bytes) or not packet.startswith(b"argument "):
                raise MalformedPacket("'argument' token or flush expected")
            if len(self._arguments) == ARGUMENTS_MAX:
                raise LimitExceeded(f"Too many options (>{ARGUMENTS_MAX - 1})")
            self._arguments.append(packet.removesuffix(b"\n")[9:])

    def finish(self) -> list[bytes] | None:
        """Return the arguments; None when the client said nothing at all."""
        if not self.ended:
            self._packets.finish()
            if self._arguments:
                raise MalformedPacket("request ends before its flush")
            return None
        return self._arguments


def parse_arguments(arguments: Sequence[bytes]) -> ArchiveRequest:
    """Return what arguments of git archive ask for. Errors: InvalidArgument, in git's words."""
    values: dict[bytes, bytes] = {}
    flags: set[bytes] = set()
    plain: list[bytes] = []
    level = -1
    waiting = list(reversed(arguments))
    while waiting:
        text = waiting.pop()
        if text == b"--":
            plain += reversed(waiting)
            break
        if not text.startswith(b"-") or text == b"-":
            plain.append(text)
            continue
        if text[1:].isdigit():
            level = int(text[1:5])
            continue
        if not text.startswith(b"--"):
            for letter in (text[at : at + 1] for at in range(1, len(text))):
                if letter not in _SHORT:
                    if letter == b"o":
                        raise InvalidArgument("Unexpected option --output")
                    raise InvalidArgument(f"unknown switch `{shown(letter)}'")
                flags.add(_SHORT[letter])
            continue
        name, equals, value = text[2:].partition(b"=")
        name = _option(name)
        if name in _FLAGS:
            flags.add(name)
            continue
        if not equals:
            if not waiting:
                raise InvalidArgument(f"option `{name.decode()}' requires a value")
            value = waiting.pop()
        values[name] = value
    return _request(values, flags, plain, level)


def _option(name: bytes) -> bytes:
    """Return an option by its name or an unambiguous start of it."""
    known = (*_VALUED, *_FLAGS, *_REFUSED)
    found = [each for each in known if each == name] or [
        each for each in known if name and each.startswith(name)
    ]
    if len(found) != 1:
        raise InvalidArgument(f"unknown option `{shown(name)}'")
    if found[0].startswith(b"add-"):
        raise InvalidArgument("options '--add-file' and '--remote' cannot be used together")
    if found[0] in _REFUSED:
        raise InvalidArgument(f"Unexpected option --{found[0].decode()}")
    return found[0]


def _request(
    values: dict[bytes, bytes], flags: set[bytes], plain: list[bytes], level: int
) -> ArchiveRequest:
    if b"list" in flags:
        if plain:
            raise InvalidArgument(f"extra command line parameter '{shown(plain[0])}'")
        return ArchiveRequest(list_formats=True)
    form = values.get(b"format", b"tar")
    if not plain:
        raise InvalidArgument("usage: git archive [<options>] <tree-ish> [<path>...]")
    if form not in FORMATS:
        raise InvalidArgument(f"Unknown archive format '{shown(form)}'")
    if level >= 0 and (form == b"tar" or level > 9):
        raise InvalidArgument(f"Argument not supported for format '{form.decode()}': -{level}")
    return ArchiveRequest(
        treeish=plain[0],
        paths=tuple(path for path in plain[1:] if path),
        format=form,
        prefix=values.get(b"prefix", b""),
        level=level,
        mtime=_seconds(values[b"mtime"]) if b"mtime" in values else None,
        verbose=b"verbose" in flags,
        attributes=b"worktree-attributes" not in flags,
    )


def _seconds(text: bytes) -> int:
    found = _MTIME.fullmatch(text.strip())
    if found:
        return int(found[1])
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text.decode("ascii").strip())
    except ValueError:
        raise InvalidArgument(
            f"--mtime takes seconds since 1970 or an ISO date, not '{shown(text)}'"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def data_band(piece: bytes) -> bytes:
    """Return a piece of the archive as it travels."""
    return band(1, piece)


def message_band(text: bytes) -> bytes:
    """Return text that the client shows."""
    return band(2, text)


def failure(text: str) -> bytes:
    """Return the last words: what is wrong, and that no archive comes."""
    told = band(2, b"fatal: " + one_line(text) + b"\n")
    return told + band(3, b"git upload-archive: archiver died with error\n")
