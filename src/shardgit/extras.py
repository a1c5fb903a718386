"""What is installed only where it is asked for: the extras of the package, and what is said without them."""

from __future__ import annotations

from importlib.util import find_spec

from shardgit.errors import Refused

MODULES = {"ssh": "asyncssh", "s3": "obstore"}


def has_extra(extra: str) -> bool:
    """Say whether what an extra brings is installed; loads nothing."""
    return find_spec(MODULES[extra]) is not None


def lacking(extra: str, what: str, *, instead: str = "") -> Refused:
    """Return the error of what needs an extra that is not installed: it says how to install it."""
    words = f"{what} needs {MODULES[extra]}: pip install 'shardgit[{extra}]'"
    return Refused(f"{words}, or {instead}" if instead else words)
