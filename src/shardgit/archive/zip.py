"""Zip archives, with Unix modes, times, and sizes over 4 GiB where they are needed. No I/O."""

from __future__ import annotations

import struct
import time as clock
import zlib
from dataclasses import dataclass

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_LARGE = 0xFFFFFFFF
_UNIX = 0x0317
PATH_MAX = 0xFFFF
STORED, DEFLATED = 0, 8
_STREAMED, _UTF8 = 0x08, 0x800


@dataclass(slots=True)
class _Entry:
    path: bytes
    mode: int
    offset: int
    method: int
    flags: int
    crc: int = 0
    size: int = 0
    packed: int = 0
    text: bool = False


class ZipWriter:
    """Makes the pieces of an archive whose entries are all of one time.

    ``whole`` gives a file that is at hand; ``begin``, ``data`` and ``finish`` one that comes in
    pieces. It keeps about 100 bytes and the path for each entry, for the directory at the end.
    """

    def __init__(self, *, time: int, level: int, comment: bytes = b"") -> None:
        moment = clock.gmtime(min(max(time, 315_532_800), 4_354_819_199))  # 1980 to 2107
        self._date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
        self._clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
        self._extra = struct.pack("<HHBI", 0x5455, 5, 1, time & 0xFFFFFFFF)
        self._level = level
        self._comment = comment
        self._offset = 0
        self._entries: list[_Entry] = []
        self._deflate: zlib._Compress | None = None

    def whole(self, path: bytes, mode: int, data: bytes) -> bytes:
        """Return an entry: a folder (a path that ends in a slash), a link's target, a file."""
        method, packed = STORED, data
        if mode & 0o170000 == 0o100000 and self._level and data:
            deflate = zlib.compressobj(self._level, zlib.DEFLATED, -15)
            smaller = deflate.compress(data) + deflate.flush()
            if len(smaller) < len(data):
                method, packed = DEFLATED, smaller
        entry = self._new(path, mode, method, 0)
        entry.crc, entry.size, entry.packed = zlib.crc32(data), len(data), len(packed)
        entry.text = mode & 0o170000 in (0o100000, 0o120000) and b"\0" not in data[:8_000]
        return self._out(self._local(entry, b"") + packed)

    def begin(self, path: bytes, mode: int, size: int) -> bytes:
        """Return the start of a file whose bytes come in pieces."""
        entry = self._new(path, mode, DEFLATED if self._level else STORED, _STREAMED)
        self._deflate = zlib.compressobj(self._level, zlib.DEFLATED, -15) if self._level else None
        entry.size = size
        large = struct.pack("<HHQQ", 1, 16, size, 0) if size > 0x7FFFFFFF else b""
        out = self._local(entry, large)
        entry.size = 0
        return self._out(out)

    def data(self, piece: bytes) -> bytes:
        """Return a piece of that file as it is stored."""
        entry = self._entries[-1]
        entry.crc = zlib.crc32(piece, entry.crc)
        entry.size += len(piece)
        out = self._deflate.compress(piece) if self._deflate else piece
        entry.packed += len(out)
        return self._out(out)

    def finish(self, size: int) -> bytes:
        """Return the end of that file; ``size`` as it was given to ``begin``."""
        entry = self._entries[-1]
        out = self._deflate.flush() if self._deflate else b""
        self._deflate = None
        entry.packed += len(out)
        form = "<IIQQ" if size > 0x7FFFFFFF else "<IIII"
        return self._out(out + struct.pack(form, 0x08074B50, entry.crc, entry.packed, entry.size))

    def end(self) -> bytes:
        """Return the directory."""
        start = self._offset
        rows = b"".join(self._central(entry) for entry in self._entries)
        count, size = len(self._entries), len(rows)
        out = [rows]
        if count > 0xFFFF or size > _LARGE or start > _LARGE:
            out.append(_END64.pack(0x06064B50, 44, _UNIX, 45, 0, 0, count, count, size, start))
            out.append(_LOCATOR.pack(0x07064B50, 0, start + size, 1))
        count = min(count, 0xFFFF)
        out.append(
            _END.pack(
                0x06054B50,
                0,
                0,
                count,
                count,
                min(size, _LARGE),
                min(start, _LARGE),
                len(self._comment),
            )
        )
        return b"".join(out) + self._comment

    def _out(self, data: bytes) -> bytes:
        self._offset += len(data)
        return data

    def _new(self, path: bytes, mode: int, method: int, flags: int) -> _Entry:
        if not path.isascii():
            try:
                path.decode("utf-8")
                flags |= _UTF8
            except UnicodeDecodeError:
                pass
        entry = _Entry(path, mode, self._offset, method, flags)
        self._entries.append(entry)
        return entry

    def _local(self, entry: _Entry, large: bytes) -> bytes:
        streamed = bool(entry.flags & _STREAMED)
        told = _LARGE if large else (0 if streamed else entry.packed)
        full = _LARGE if large else (0 if streamed else entry.size)
        head = _LOCAL.pack(
            0x04034B50,
            45 if large else (20 if streamed else 10),
            entry.flags,
            entry.method,
            self._clock,
            self._date,
            entry.crc,
            told,
            full,
            len(entry.path),
            len(self._extra) + len(large),
        )
        return head + entry.path + self._extra + large

    def _central(self, entry: _Entry) -> bytes:
        kind = entry.mode & 0o170000
        outside = 0
        if kind in (0o040000, 0o160000):
            outside = 16
        elif kind == 0o120000:
            outside = (entry.mode | 0o777) << 16
        elif entry.mode & 0o111:
            outside = entry.mode << 16
        large = b"".join(
            struct.pack("<Q", value)
            for value in (entry.size, entry.packed, entry.offset)
            if value >= _LARGE
        )
        extra = self._extra + (struct.pack("<HH", 1, len(large)) + large if large else b"")
        unix = kind == 0o120000 or (kind == 0o100000 and entry.mode & 0o111)
        streamed = bool(entry.flags & _STREAMED)
        head = _CENTRAL.pack(
            0x02014B50,
            _UNIX if unix else 0,
            45 if large else (20 if streamed else 10),
            entry.flags,
            entry.method,
            self._clock,
            self._date,
            entry.crc,
            min(entry.packed, _LARGE),
            min(entry.size, _LARGE),
            len(entry.path),
            len(extra),
            0,
            0,
            int(entry.text),
            outside & 0xFFFFFFFF,
            min(entry.offset, _LARGE),
        )
        return head + entry.path + extra
