"""Ref names: the rules of ``git check-ref-format``, and a length."""

from __future__ import annotations

import re

from shardgit.errors import InvalidRefName
from shardgit.limits import DEFAULT

_FORBIDDEN = re.compile(
    rb"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\A/|/\Z|\.\Z|(?:\A|/)\.|\.lock(?:/|\Z)"
)


def is_ref_name(name: bytes) -> bool:
    """Return whether ``git check-ref-format`` takes a full name such as refs/heads/main."""
    return b"/" in name and name != b"@" and not _FORBIDDEN.search(name)


def check_ref_name(name: bytes, *, max_bytes: int = DEFAULT.ref_name_max_bytes) -> None:
    """Raise InvalidRefName unless ``name`` is HEAD or a full name under refs/ of a sane length."""
    if len(name) > max_bytes:
        raise InvalidRefName("ref name is too long", bytes=len(name), limit=max_bytes)
    if name != b"HEAD" and not (name.startswith(b"refs/") and is_ref_name(name)):
        raise InvalidRefName("not a valid ref name", name=name.decode("utf-8", "replace"))
