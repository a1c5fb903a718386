"""Settings by key: ``receive.deny_deletes``, ``fsck.severities.missingEmail``; values as JSON."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from shardgit.errors import InvalidArgument
from shardgit.service.settings import DEFAULTS, RepositorySettings
from shardgit.service.sizes import size_in

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET_KEYS = ("signed_push.nonce_seed",)  # shown only when asked for by name, never in an error
HIDDEN = "(secret)"
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s\"]+(?=@)")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@functools.cache
def known_keys() -> dict[str, Any]:
    """Return every key with the type of its value, in the order of the sections."""
    out = {}
    for section, kind in get_type_hints(RepositorySettings).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            for name, inner in get_type_hints(kind).items():
                out[f"{section}.{name}"] = inner
        else:
            out[section] = kind
    return out


def type_of(key: str) -> Any:
    """Return the type of a key's value; InvalidArgument names the known keys."""
    known = known_keys()
    if key in known:
        return known[key]
    table, _, entry = key.rpartition(".")
    if entry and get_origin(known.get(table)) is dict:
        return get_args(known[table])[1]
    section = key.partition(".")[0]
    near = [each for each in known if each.partition(".")[0] == section] or list(known)
    raise InvalidArgument("unknown setting", key=key[:200], known=", ".join(near))


def value_of(settings: RepositorySettings, key: str) -> Any:
    """Return a key's value as plain data; None for an entry that a table has not."""
    type_of(key)
    found: Any = _plain(settings)
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if found is None and key in known_keys():  # a default, which builtins leave out
        found = DEFAULTS
        for part in key.split("."):
            found = getattr(found, part)
        found = _plain(found)
    return found


def _plain(value: Any) -> Any:
    """Return what JSON makes of a value: lists, not tuples."""
    return msgspec.json.decode(msgspec.json.encode(value))


def all_values(settings: RepositorySettings) -> dict[str, Any]:
    """Return every key's value as plain data."""
    return {key: value_of(settings, key) for key in known_keys()}


def set_keys(settings: RepositorySettings) -> list[str]:
    """Return the keys whose values differ from the defaults."""
    return [key for key in known_keys() if value_of(settings, key) != value_of(DEFAULTS, key)]


def changed(settings: RepositorySettings, changes: Mapping[str, Any]) -> RepositorySettings:
    """Return settings with some keys set (plain data) or back at their defaults (None).

    Errors: InvalidArgument that names the key, and what is known.
    """
    tree: dict[str, Any] = _plain(settings)
    for key, value in changes.items():
        kind = type_of(key)
        *path, last = key.split(".", 2)
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        if value is None:
            at.pop(last, None)
        else:
            at[last] = _checked(key, value, kind)
    return msgspec.convert(tree, RepositorySettings)


def _checked(key: str, value: Any, kind: Any) -> Any:
    try:
        return _plain(msgspec.convert(value, kind))
    except msgspec.ValidationError as cause:
        facts = {"cause": str(cause)}
        if get_origin(kind) is Literal:
            facts = {"known": "|".join(get_args(kind))}
        raise InvalidArgument(
            "setting has a bad value", key=key, value=shown(key, value), **facts
        ) from cause


def parse_value(key: str, text: str) -> Any:
    """Return the plain data that a user's words stand for.

    Booleans and sizes (500m, 2GiB) as people write them, lists of words joined by commas, all else
    as JSON. Errors: InvalidArgument.
    """
    kind = type_of(key)
    if kind is bool:
        word = text.strip().lower()
        if word in _TRUE + _FALSE:
            return word in _TRUE
    elif kind is int:
        size = size_in(text)
        if size is not None:
            return size
    elif kind is str or get_origin(kind) is Literal:
        return text
    elif kind == tuple[str, ...] and not text.lstrip().startswith("["):
        return [text] if "\n" in text else [word for word in text.split(",") if word]
    else:
        try:
            return json.loads(text)
        except ValueError as cause:
            raise InvalidArgument(
                "setting's value is not JSON", key=key, value=shown(key, text), cause=str(cause)
            ) from cause
    raise InvalidArgument(
        "setting has a bad value", key=key, value=shown(key, text), expected=_word(kind)
    )


def shown(key: str, value: Any) -> Any:
    """Return a value as an error may repeat it: errors are logged, so a secret is left out."""
    if key in SECRET_KEYS:
        return HIDDEN
    if isinstance(value, int | float):
        return value
    return without_password(value if isinstance(value, str) else str(value))[:80]


def without_password(text: str) -> str:
    """Return a text without the credentials of the URLs in it."""
    return _URL_PASSWORD.sub("***", text)


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by key as a listing shows them."""
    return {key: HIDDEN if value and key in SECRET_KEYS else value for key, value in values.items()}


def _word(kind: Any) -> str:
    return {bool: "true|false", int: "a number, such as 500m"}.get(kind, "a value")
