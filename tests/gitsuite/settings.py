"""git's configuration of a repository as shardgit's settings."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from gitsuite.disk import DiskRefused

from shardgit.service.settings import RepositorySettings

if TYPE_CHECKING:
    from gitsuite.disk import DiskRepository


def settings_from(disk: DiskRepository) -> RepositorySettings:
    """Return the settings that stand for a repository's configuration; git's defaults, not ours."""
    fsck = {
        key.removeprefix("receive.fsck."): values[-1].lower()
        for key, values in disk.config.items()
        if key.startswith("receive.fsck.") and key != "receive.fsck.skiplist"
    }
    sections: dict[str, dict[str, object]] = {
        "transfer": {"hidden_refs": hidden(disk, "transfer.hiderefs")},
        "fetch": {
            "allow_filter": disk.flag("uploadpack.allowfilter"),
            "denied_filters": denied_filters(disk),
            "tree_depth_max": tree_depth_max(disk),
            "allow_reachable_wants": disk.flag("uploadpack.allowreachablesha1inwant")
            or disk.flag("uploadpack.allowanysha1inwant"),
            "allow_tip_wants": disk.flag("uploadpack.allowtipsha1inwant"),
            "unborn": disk.value("lsrefs.unborn", "advertise"),
            "allow_ref_in_want": disk.flag("uploadpack.allowrefinwant"),
            "allow_sideband_all": disk.flag("uploadpack.allowsidebandall")
            or disk.environment.get("GIT_TEST_SIDEBAND_ALL", "0") in ("1", "true"),
            "advertise_session_id": disk.flag("transfer.advertisesid"),
            "hidden_refs": hidden(disk, "uploadpack.hiderefs"),
            # In protocol v2 git's server lets any object be wanted.
            "hidden_wants": disk.flag("uploadpack.allowtipsha1inwant")
            or disk.flag("uploadpack.allowanysha1inwant")
            or "version=2" in disk.environment.get("GIT_PROTOCOL", ""),
            **listed_bundles(disk),
            "listed_packs": [
                dict(zip(("object", "pack", "uri"), value.split(" ", 2), strict=True))
                for value in disk.values("uploadpack.blobpackfileuri")
                if value.count(" ") >= 2
            ],
        },
        "receive": {
            "deny_non_fast_forwards": disk.flag("receive.denynonfastforwards"),
            "deny_deletes": disk.flag("receive.denydeletes"),
            "deny_delete_current": current(disk.value("receive.denydeletecurrent", "refuse")),
            "hidden_refs": hidden(disk, "receive.hiderefs"),
            "fsck_objects": disk.flag(
                "receive.fsckobjects", default=disk.flag("transfer.fsckobjects")
            ),
            "atomic": disk.flag("receive.advertiseatomic", default=True),
            "push_options": disk.flag("receive.advertisepushoptions"),
            "shallow_update": disk.flag("receive.shallowupdate"),
            "advertise": "all",
            "max_push_bytes": size(disk.value("receive.maxinputsize", "0")),
        },
        "fsck": {"severities": fsck},
    }
    seed = disk.value("receive.certnonceseed")
    if seed:
        sections["signed_push"] = {
            "mode": "allowed",
            "nonce_seed": seed,
            "nonce_slop_s": int(disk.value("receive.certnonceslop", "0")),
            "gpg_keys": gpg_keys(disk),
            "ssh_signers": ssh_signers(disk),
        }
    return msgspec.convert(sections, RepositorySettings)


def listed_bundles(disk: DiskRepository) -> dict[str, object]:
    """Return the bundles that git's configuration lists."""
    found: dict[str, dict[str, object]] = {}
    if disk.flag("uploadpack.advertisebundleuris"):
        for key, values in disk.config.items():
            section, _, rest = key.partition(".")
            name, _, field = rest.rpartition(".")
            if section == "bundle" and field in ("uri", "filter", "creationtoken"):
                value: object = int(values[-1]) if field == "creationtoken" else values[-1]
                field = field.replace("creationtoken", "creation_token")
                found.setdefault(name, {"id": name})[field] = value
    mode = disk.value("bundle.mode", "all")
    return {"listed_bundles": list(found.values()), "listed_bundles_mode": mode}


def denied_filters(disk: DiskRepository) -> list[str]:
    """Return the filters that are not allowed one by one, or by default."""
    default = disk.flag("uploadpackfilter.allow", default=True)
    names = ("blob:none", "blob:limit", "tree", "sparse:oid", "object:type", "combine")
    found = []
    for name in names:
        allowed = default
        if name == "tree" and disk.value("uploadpackfilter.tree.maxdepth"):
            allowed = True
        if not disk.flag(f"uploadpackfilter.{name}.allow", default=allowed):
            found.append(name)
    return found


def tree_depth_max(disk: DiskRepository) -> int:
    """Return the deepest tree filter that is allowed, -1 for any."""
    text = disk.value("uploadpackfilter.tree.maxdepth", "-1")
    if not text.lstrip("-").isdigit():
        raise DiskRefused(f"unable to parse 'uploadpackfilter.tree.maxdepth' from {text!r}")
    return int(text)


def gpg_keys(disk: DiskRepository) -> list[str]:
    """Return the public keys of the caller's key ring."""
    if not shutil.which("gpg"):
        return []
    done = subprocess.run(
        ["gpg", "--batch", "--armor", "--export"],
        env=disk.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return [done.stdout] if done.stdout else []


def ssh_signers(disk: DiskRepository) -> list[str]:
    """Return the lines of the configured allowed-signers file."""
    path = Path(disk.value("gpg.ssh.allowedsignersfile") or os.devnull)
    return path.read_text().splitlines() if path.is_file() else []


def hidden(disk: DiskRepository, key: str) -> list[str]:
    """Return patterns of hidden refs as seen from inside the caller's namespace."""
    prefix = disk.namespace.decode("utf-8", "surrogateescape")
    found = []
    for pattern in disk.values(key):
        bang = "!" if pattern.startswith("!") else ""
        text = pattern.removeprefix("!")
        if text.startswith("^"):
            text = text[1:]
            if prefix.startswith(text.rstrip("/") + "/"):
                text = "refs"
            elif not text.startswith(prefix):
                continue
            text = text.removeprefix(prefix)
        found.append(bang + text)
    return found


def current(text: str) -> str:
    """Return a receive.deny* value as one of its words."""
    words = {"true": "refuse", "false": "ignore", "yes": "refuse", "no": "ignore"}
    return words.get(text.lower(), text.lower())


def size(text: str) -> int:
    """Return a number with git's unit."""
    units = {"k": 10, "m": 20, "g": 30}
    return int(text[:-1]) << units[text[-1].lower()] if text[-1:].lower() in units else int(text)
