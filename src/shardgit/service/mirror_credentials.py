"""Secrets that mirrors show to their sources: named in the configuration, kept in files or variables."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.errors import InvalidArgument, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SECRET_MAX_BYTES = 8_192


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the secrets for sources lie, by name: ``/absolute/file`` or ``$VARIABLE``; read when they are needed."""

    places: Mapping[str, str]

    @classmethod
    def of(cls, entries: Iterable[str]) -> Credentials:
        """Return what ``NAME=/file`` and ``NAME=$VARIABLE`` say. Errors: InvalidArgument."""
        places: dict[str, str] = {}
        for entry in entries:
            name, _, place = entry.partition("=")
            if not name or not place.startswith(("/", "$")) or len(place) < 2:
                raise InvalidArgument("credential is not NAME=/file or NAME=$VARIABLE", name=name)
            places[name] = place
        return cls(places)

    def authorization(self, name: str) -> str:
        """Return the header for a name: Basic of USER:PASSWORD, Bearer of all else. Errors: Refused."""
        if not name:
            return ""
        place = self.places.get(name, "")
        text = os.environ.get(place[1:], "") if place.startswith("$") else _read(place)
        first = text.strip().partition("\n")[0].strip()
        if not first or not first.isprintable():
            raise Refused("credential of the mirror is not there", credential=name)
        if ":" in first:
            return f"Basic {base64.b64encode(first.encode()).decode()}"
        return f"Bearer {first}"


NO_CREDENTIALS = Credentials({})


def _read(place: str) -> str:
    if not place:
        return ""
    try:
        with Path(place).open("rb") as file:
            return file.read(SECRET_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
