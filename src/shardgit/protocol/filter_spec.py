"""Filters of partial clones as they stand in requests: ``blob:none``, ``tree:2``, ``combine:...``. No I/O."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from shardgit.errors import InvalidArgument, LimitExceeded
from shardgit.limits import DEFAULT, Limits
from shardgit.protocol.numbers import parse_size
from shardgit.protocol.pktline import one_line


class FilterKind(enum.Enum):
    """What a filter looks at, by git's name for it."""

    BLOB_NONE = "blob:none"
    BLOB_LIMIT = "blob:limit"
    TREE_DEPTH = "tree"
    SPARSE = "sparse:oid"
    OBJECT_TYPE = "object:type"


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter; a request holds several that all must let an object pass.

    ``number`` is the limit in bytes of BLOB_LIMIT, the depth of TREE_DEPTH, the type of OBJECT_TYPE
    (1 commit, 2 tree, 3 blob, 4 tag); ``name`` is the revision of SPARSE.
    """

    kind: FilterKind
    number: int = 0
    name: bytes = b""


_TYPES = {b"commit": 1, b"tree": 2, b"blob": 3, b"tag": 4}
_RESERVED = re.compile(rb"[\x00- ~`!@#$^&*()\[\]{}\\;'\",<>?]")
_PERCENT = re.compile(rb"%([0-9a-fA-F]{2})")


def parse_filter(spec: bytes, *, limits: Limits = DEFAULT) -> tuple[Filter, ...]:
    """Return the filters that a spec names; ``combine:`` may stand inside ``combine:``.

    Errors: InvalidArgument in git's words, LimitExceeded.
    """
    found: list[Filter] = []
    waiting = [(spec, 0)]
    while waiting:
        text, depth = waiting.pop()
        if not text.startswith(b"combine:"):
            found.append(_simple(text))
        elif depth == limits.filter_depth_max:
            raise LimitExceeded("filter is nested too deeply", limit=limits.filter_depth_max)
        else:
            parts = [(_decoded(part), depth + 1) for part in text[8:].split(b"+") if part]
            if not parts:
                raise InvalidArgument("expected something after combine:")
            waiting += reversed(parts)
        if len(found) + len(waiting) > limits.filters_max:
            raise LimitExceeded("filter has too many parts", limit=limits.filters_max)
    return tuple(found)


def _simple(text: bytes) -> Filter:
    name, _, value = text.partition(b":")
    if text == b"blob:none":
        return Filter(FilterKind.BLOB_NONE)
    if name == b"tree":
        depth = parse_size(value)
        if depth is None:
            raise InvalidArgument("expected 'tree:<depth>'")
        return Filter(FilterKind.TREE_DEPTH, depth)
    key, equals, value = text.partition(b"=")
    if equals and key == b"blob:limit":
        size = parse_size(value)
        if size is not None:
            return Filter(FilterKind.BLOB_LIMIT, size)
    elif equals and key == b"object:type":
        if value not in _TYPES:
            shown = _shown(value)
            raise InvalidArgument(f"'{shown}' for 'object:type=<type>' is not a valid object type")
        return Filter(FilterKind.OBJECT_TYPE, _TYPES[value])
    elif equals and key == b"sparse:oid":
        return Filter(FilterKind.SPARSE, name=value)
    elif equals and key == b"sparse:path":
        raise InvalidArgument("sparse:path filters support has been dropped")
    elif text == b"auto":
        raise InvalidArgument("'auto' filter not supported by this command")
    raise InvalidArgument(f"invalid filter-spec '{_shown(text)}'")


def _decoded(part: bytes) -> bytes:
    found = _RESERVED.search(part)
    if found is not None:
        char = chr(found[0][0]) if found[0][0] >= 32 else "?"
        raise InvalidArgument(f"must escape char in sub-filter-spec: '{char}'")
    return _PERCENT.sub(_byte, part)


def _byte(match: re.Match[bytes]) -> bytes:
    value = int(match[1], 16)
    return bytes([value]) if value else match[0]


def _shown(text: bytes) -> str:
    return one_line(text[:200].decode("utf-8", "replace")).decode()
