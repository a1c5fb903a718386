"""What attributes do to a file on its way out: ident, line ends, encoding, export-subst. No I/O."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardgit.attributes import Value

_IDENT = re.compile(rb"\$Id(?:\$|:([^$\n]*)\$)")
_LONE_LF = re.compile(rb"(?<!\r)\n")
_FORMAT = re.compile(rb"\$Format:([^$]*)\$")
_BINARY_RATIO = 7  # more than one byte in 128 that is not printable
# Python's own, which iconv does not know; the first two take hours for a file of some megabytes.
_NO_CHARSETS = ("punycode", "idna", "unicode-escape", "raw-unicode-escape")
_ODD = bytes(c for c in range(32) if c not in b"\b\t\n\r\x1b\x0c") + b"\x7f"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is done to a file; ``crlf`` is "", "text" or "auto"."""

    ident: bool = False
    crlf: str = ""
    encoding: str = ""
    subst: bool = False

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return self.ident or self.subst or bool(self.crlf) or bool(self.encoding)

    def apply(self, data: bytes, oid: bytes, subst: Callable[[bytes], bytes] | None) -> bytes:
        """Return the file as it goes out; ``oid`` is its id in hex, ``subst`` expands a format."""
        if self.ident:
            data = _IDENT.sub(lambda found: _identified(found, oid), data)
        if self.crlf and _gains_crlf(data, self.crlf):
            data = _LONE_LF.sub(b"\r\n", data)
        if self.encoding:
            data = _encoded(data, self.encoding)
        if self.subst and subst is not None:
            expand = subst
            data = _FORMAT.sub(lambda found: expand(found[1]), data)
        return data


def conversion(attributes: Mapping[bytes, Value]) -> Conversion:
    """Return what attributes ask for; line ends are LF where they leave it open, as on Unix."""
    text = attributes.get(b"text")
    if not _decides(text):
        text = attributes.get(b"crlf")
    crlf = ""
    if text is not False and attributes.get(b"eol") == b"crlf":
        crlf = "auto" if text == b"auto" else "text"
    encoding = attributes.get(b"working-tree-encoding")
    return Conversion(
        ident=attributes.get(b"ident") is True,
        crlf=crlf,
        encoding=encoding.decode("ascii", "replace") if isinstance(encoding, bytes) else "",
        subst=attributes.get(b"export-subst") is True,
    )


def _decides(text: Value) -> bool:
    return text in (True, False, b"auto", b"input") and text is not None


def _identified(found: re.Match[bytes], oid: bytes) -> bytes:
    """Return an expanded $Id$; one that another system expanded stays."""
    told = found[1]
    if told is not None and b" " in told[:-1].removeprefix(b" "):
        return found[0]
    return b"$Id: " + oid + b" $"


def _gains_crlf(data: bytes, mode: str) -> bool:
    if not _LONE_LF.search(data):
        return False
    if mode == "text":
        return True
    return b"\r" not in data and not _is_binary(data)


def _is_binary(data: bytes) -> bool:
    """Return whether git's line-end conversion takes a file without CRs for binary."""
    if b"\0" in data:
        return True
    odd = len(data) - len(data.translate(None, _ODD)) - data.endswith(b"\x1a")
    printable = len(data) - odd - data.count(b"\n")
    return printable >> _BINARY_RATIO < odd


def _encoded(data: bytes, name: str) -> bytes:
    """Return UTF-8 text in another encoding; as it is when that fails."""
    mark = b""
    upper = name.upper()
    if upper in ("UTF-16LE-BOM", "UTF-16-LE-BOM"):
        mark, name = codecs.BOM_UTF16_LE, "utf-16-le"
    elif upper in ("UTF-16BE-BOM", "UTF-16-BE-BOM"):
        mark, name = codecs.BOM_UTF16_BE, "utf-16-be"
    try:
        found = codecs.lookup(name).name
        if found == "utf-8" or found in _NO_CHARSETS:
            return data
        return mark + data.decode("utf-8").encode(name)
    except (LookupError, ValueError):
        return data
