"""Tar archives as git writes them: ustar with pax headers, byte for byte. No I/O."""

from __future__ import annotations

RECORD = 512
BLOCK = 20 * RECORD
SIZE_MAX = 0o77777777777  # what eleven octal digits hold
NAME_MAX, PREFIX_MAX, LINK_MAX = 100, 155, 100
UMASK = 0o002
_TYPES = {0o040000: b"5", 0o160000: b"5", 0o120000: b"2", 0o100000: b"0"}


class TarWriter:
    """Makes headers, padding and the end of an archive whose entries are all of one time.

    The bytes of a file follow its header, and ``pad`` follows them.
    """

    def __init__(self, *, time: int) -> None:
        self._time = min(max(time, 0), SIZE_MAX)
        self._time_told = time
        self._done = 0  # bytes so far, to fill the last block

    def begin(self, commit: bytes) -> bytes:
        """Return the global header: the commit's id in hex, b"" for a tree."""
        text = _record(b"comment", commit) if commit else b""
        if self._time_told > SIZE_MAX:
            text += _record(b"mtime", b"%d" % self._time_told)
        if not text:
            return b""
        head = self._header(b"pax_global_header", 0o100666, len(text), b"g")
        return self._out(head + _padded(text))

    def entry(self, path: bytes, mode: int, oid: bytes, size: int, link: bytes = b"") -> bytes:
        """Return an entry's headers. ``oid`` is its id in hex; ``link`` a symbolic link's target."""
        kind = mode & 0o170000
        extended = b""
        name, prefix = path, b""
        if len(path) > NAME_MAX:
            cut = _cut(path)
            if cut > 0 and len(path) - cut - 1 <= NAME_MAX:
                prefix, name = path[:cut], path[cut + 1 :]
            else:
                name = oid + b".data"
                extended += _record(b"path", path)
        if kind == 0o120000 and len(link) > LINK_MAX:
            extended += _record(b"linkpath", link)
            link = b"see " + oid + b".paxheader"
        told = size if kind == 0o100000 else 0
        if told > SIZE_MAX:
            extended += _record(b"size", b"%d" % told)
            told = 0
        out = b""
        if extended:
            head = self._header(oid + b".paxheader", 0o100666, len(extended), b"x")
            out = head + _padded(extended)
        flag = _TYPES[kind]
        return self._out(
            out + self._header(name, _shown(mode), told, flag, prefix=prefix, link=link)
        )

    def data(self, size: int) -> bytes:
        """Return what pads a file of ``size`` bytes, which was sent."""
        self._done += size
        return self._out(bytes(-size % RECORD))

    def end(self) -> bytes:
        """Return the end: at least two empty records, to the end of a block."""
        rest = BLOCK - self._done % BLOCK
        return bytes(rest if rest >= 2 * RECORD else rest + BLOCK)

    def _out(self, data: bytes) -> bytes:
        self._done += len(data)
        return data

    def _header(
        self,
        name: bytes,
        mode: int,
        size: int,
        flag: bytes,
        *,
        prefix: bytes = b"",
        link: bytes = b"",
    ) -> bytes:
        start = (
            name.ljust(100, b"\0")
            + b"%07o\0" % (mode & 0o7777)
            + b"0000000\x000000000\0"
            + b"%011o\0" % size
            + b"%011o\0" % self._time
        )
        rest = (
            flag
            + link.ljust(100, b"\0")
            + b"ustar\x0000"
            + b"root".ljust(32, b"\0")
            + b"root".ljust(32, b"\0")
            + b"0000000\x000000000\0"
            + prefix.ljust(155, b"\0")
            + bytes(12)
        )
        total = sum(start) + sum(rest) + 8 * 0x20
        return start + b"%07o\0" % total + rest


def _shown(mode: int) -> int:
    kind = mode & 0o170000
    if kind in (0o040000, 0o160000):
        return (mode | 0o777) & ~UMASK
    if kind == 0o120000:
        return mode | 0o777
    return (mode | (0o777 if mode & 0o100 else 0o666)) & ~UMASK


def _cut(path: bytes) -> int:
    """Return where a path is cut into prefix and name; 0 where it cannot be."""
    at = len(path)
    if at > 1 and path[at - 1] == 0x2F:
        at -= 1
    at = min(at, PREFIX_MAX)
    return max(path.rfind(b"/", 0, at), 0)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a pax record, which starts with its own length."""
    length = len(key) + len(value) + 3
    digits = 1
    while len(b"%d" % (length + digits)) > digits:
        digits += 1
    return b"%d %s=%s\n" % (length + digits, key, value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % RECORD)
