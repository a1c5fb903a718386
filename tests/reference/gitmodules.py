"""The rules for names and URLs of submodules, slowly and by parts: the witness for the kernel."""

from __future__ import annotations

import re

_SEPARATOR = rb"[/\\]"
_CLIMBS_AS_PART = re.compile(rb"(?:^|[/\\])\.\.(?:[/\\]|\Z)", re.DOTALL)
_RELATIVE = re.compile(rb"\.\.?" + _SEPARATOR)
_DOTS = re.compile(rb"(?:\.\.?" + _SEPARATOR + rb")+")
_CURL_HELPER = re.compile(rb"(?:https?|ftps?)::", re.DOTALL)
_CURL_URL = re.compile(rb"(?:https?|ftps?)://", re.DOTALL)
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://", re.DOTALL)
_HOST = re.compile(rb"[A-Za-z0-9.\-_\[:\]]*")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")


def is_name(name: bytes) -> bool:
    """Whether a submodule may have this name, which becomes a folder's."""
    return bool(name) and not (b".." in name and _CLIMBS_AS_PART.search(name))


def is_url(url: bytes) -> bool:
    """Whether a submodule may be cloned from this URL.

    No option of a command; no newline, however escaped, where a credential helper would read it; no host that is
    missing or stands in the path of a relative URL.
    """
    if url.startswith(b"-"):
        return False
    if _RELATIVE.match(url) or url.startswith(b"git://"):
        scheme = max(url.find(b":"), 0)  # up to there git decodes nothing
        if b"\n" in url[:scheme] or has_newline(url[scheme:]):
            return False
        dots = _DOTS.match(url)
        climbs = dots is not None and re.search(rb"\.\." + _SEPARATOR, dots[0]) is not None
        return not (climbs and dots is not None and url[dots.end() :].startswith((b":", b"/")))
    if helper := _CURL_HELPER.match(url):
        return is_plain_url(url[helper.end() :])
    if _CURL_URL.match(url):
        return is_plain_url(url)
    return True


def has_newline(text: bytes) -> bool:
    """Whether a newline stands in text, as it is or as an escape."""
    return b"\n" in text or any(found[1] in (b"0a", b"0A") for found in _ESCAPE.finditer(text))


def is_plain_url(url: bytes) -> bool:
    """Whether ``scheme://host/path`` can be normalized (RFC 3986) and holds no newline then."""
    scheme = _SCHEME.match(url)
    if not scheme:
        return False
    rest = url[scheme.end() :]
    cut = re.search(rb"[/?#]", rest)
    authority, rest = (rest[: cut.start()], rest[cut.start() :]) if cut else (rest, b"")
    user, at, host = authority.partition(b"@")
    if not at:
        user, host = b"", authority
    path, tail = re.fullmatch(rb"([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    kept = kept_segments(path)
    return (
        kept is not None
        and all(has_whole_escapes(part) for part in (user, path, tail))
        and is_host(host, is_file=scheme[1].lower() == b"file")
        and not any(has_newline(part) for part in (user, *kept, tail))
    )


def has_whole_escapes(text: bytes) -> bool:
    """Whether two hex digits follow each percent sign."""
    return all(found[1] for found in _ESCAPE.finditer(text))


def is_host(host: bytes, *, is_file: bool) -> bool:
    """Whether ``name`` or ``name:port`` is a host; only a file's URL may leave it out, and it has no port."""
    missing = host.startswith(b":") or not host
    if missing and not is_file:
        return False
    colon = max(host.rfind(b":"), host.rfind(b"]"))
    name, port = host, None
    if colon >= 0 and host[colon : colon + 1] == b":":
        name, port = host[:colon], host[colon + 1 :]
    if _HOST.fullmatch(name) is None:
        return False
    if not port:  # none, or none after its colon
        return True
    return not missing and port.isdigit() and 0 < int(port.lstrip(b"0")[:6] or 0) <= 65_535


def kept_segments(path: bytes) -> list[bytes] | None:
    """Return what is left of a path's segments without "." and ".."; None when it climbs out."""
    kept: list[bytes] = []
    for segment in path.removeprefix(b"/").split(b"/"):
        plain = re.sub(rb"%2[eE]", b".", segment)
        if plain == b"..":
            if not kept:
                return None
            kept.pop()
        elif plain != b".":
            kept.append(segment)
    return kept
