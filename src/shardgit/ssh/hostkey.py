"""The host key: made once, kept in the store's folder, shared by all workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shardgit.errors import Refused
from shardgit.extras import lacking

if TYPE_CHECKING:
    from types import ModuleType

HOST_KEY_FILE = "ssh_host_ed25519_key"


def asyncssh_or_refuse() -> ModuleType:
    """Return asyncssh; Refused, with what to do, where it is not installed."""
    try:
        import asyncssh
    except ImportError as cause:
        raise lacking("ssh", "serving over SSH", instead="serve with --ssh off") from cause
    return asyncssh


def make_host_key(folder: Path, file: str = "") -> Path:
    """Return the path of the host key: ``file``, else one in the store's folder.

    It is made (mode 0600, durably) unless it is there.

    Errors: Refused when it cannot be written, or is no private key, or others may read it.
    """
    asyncssh = asyncssh_or_refuse()
    path = Path(file) if file else folder / HOST_KEY_FILE
    try:
        if not path.exists():
            fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
            key = asyncssh.generate_private_key("ssh-ed25519", comment="shardgit")
            _write_durably(fresh, key.export_private_key())
            try:
                path.hardlink_to(fresh)
            except FileExistsError:
                pass  # another process was faster; its key stands
            finally:
                fresh.unlink()
        if path.stat().st_mode & 0o077:
            raise Refused("SSH host key may be read by others; chmod 600", path=str(path))
        asyncssh.read_private_key(path)
    except OSError as cause:
        raise Refused(
            "SSH host key cannot be made or read", path=str(path), cause=cause.strerror
        ) from cause
    except (asyncssh.KeyImportError, ValueError) as cause:
        raise Refused("SSH host key is damaged", path=str(path)) from cause
    return path


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
