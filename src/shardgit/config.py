"""Configuration: a TOML file, then SHARDGIT_* variables, then flags. Unknown keys are errors."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shardgit.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "SHARDGIT_"


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``shardgit serve`` needs. Addresses are HOST:PORT; port 0 takes a free one."""

    data: str = "./data"
    workers: int = 0  # 0: one a core
    grpc: str = "127.0.0.1:7420"
    http: str = "127.0.0.1:7421"
    admin: str = "127.0.0.1:7423"
    log_level: str = "info"
    drain_s: float = 30.0  # how long a stopping worker waits for its requests

    def __post_init__(self) -> None:
        """Check what the types do not."""
        for name in ("grpc", "http", "admin"):
            split_address(getattr(self, name), name)
        if not 0 <= self.workers <= 256:
            raise InvalidArgument("workers must be 0 to 256", workers=self.workers)
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise InvalidArgument("log_level must be debug, info, warning or error", log_level=self.log_level)
        if self.drain_s < 0:
            raise InvalidArgument("drain_s must not be negative", drain_s=self.drain_s)

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return Path(self.data)


def split_address(text: str, name: str = "address") -> tuple[str, int]:
    """Return host and port of HOST:PORT or [HOST]:PORT; InvalidArgument otherwise."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise InvalidArgument("not an address; write HOST:PORT", key=name, value=text)
    return host, int(port)


def load_config(
    file: Path | None, *, environment: Mapping[str, str] = os.environ, flags: Mapping[str, object] | None = None
) -> ServeConfig:
    """Return the configuration; InvalidArgument names the key that is off."""
    merged: dict[str, object] = {}
    if file is not None:
        try:
            merged |= tomllib.loads(file.read_text("utf-8"))
        except OSError as cause:
            raise InvalidArgument("configuration file cannot be read", path=str(file)) from cause
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
            raise InvalidArgument("configuration file is not TOML", path=str(file), cause=str(cause)) from cause
    for field in msgspec.structs.fields(ServeConfig):
        text = environment.get(PREFIX + field.name.upper())
        if text is not None:
            merged[field.name] = text
    merged |= {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return msgspec.convert(merged, ServeConfig, strict=False)
    except msgspec.ValidationError as cause:
        raise InvalidArgument("configuration is off", cause=str(cause)) from cause
