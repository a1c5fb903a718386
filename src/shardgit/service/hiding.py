"""Refs that are not shown: patterns as in git's transfer.hideRefs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardgit.service.settings import RepositorySettings


class HiddenRefs:
    """Names and hierarchies that are hidden: ``refs/x`` hides refs/x and all below refs/x/.

    ``!refs/x`` shows it again; of several that match, the last counts. ``^`` before the name (it
    stands behind ``!``) means the name without a namespace, which here is the name. An empty
    pattern hides nothing. False when nothing is hidden.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules: list[tuple[bytes, bool]] = []
        for text in patterns:
            shows = text.startswith("!")
            name = text.removeprefix("!").removeprefix("^").rstrip("/").encode()
            if name:
                self._rules.append((name, not shows))
        self._rules.reverse()
        self.key = repr(self._rules).encode()  # equal for those that hide the same

    def __bool__(self) -> bool:
        """Whether any name may be hidden."""
        return any(hides for _, hides in self._rules)

    def hides(self, name: bytes) -> bool:
        """Return whether a ref's full name is hidden."""
        for start, hides in self._rules:
            if name.startswith(start) and name[len(start) : len(start) + 1] in (b"", b"/"):
                return hides
        return False

    def prefixes(self) -> list[bytes]:
        """Return hierarchies without trailing slash that are hidden whole: a walk over refs may
        leap over them. Where anything is shown again, there are none.
        """
        return [name for name, _ in self._rules] if all(hides for _, hides in self._rules) else []


NONE_HIDDEN = HiddenRefs(())


def hidden_from_fetch(settings: RepositorySettings) -> HiddenRefs:
    """Return what fetches do not see."""
    return _hidden((*settings.transfer.hidden_refs, *settings.fetch.hidden_refs))


def hidden_from_push(settings: RepositorySettings) -> HiddenRefs:
    """Return what pushes neither see nor touch."""
    return _hidden((*settings.transfer.hidden_refs, *settings.receive.hidden_refs))


@functools.lru_cache(maxsize=256)
def _hidden(patterns: tuple[str, ...]) -> HiddenRefs:
    return HiddenRefs(patterns)
