"""Certificates to try with: an authority, and one that all nodes of a cluster show."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def certificates(folder: Path, addresses: Sequence[str]) -> dict[str, Path]:
    """Make ca.pem, node.pem and node.key for addresses; returns where they are, by the settings of [cluster]."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=shardgit")
    openssl("req", *curve, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node")
    names = ",".join(f"IP:{one}" for one in addresses)
    (folder / "names").write_text(f"subjectAltName={names}\n")
    openssl(
        *("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-out", "node.pem", "-extfile", "names"),
    )
    return {
        "peer_ca": folder / "ca.pem",
        "peer_certificate": folder / "node.pem",
        "peer_key": folder / "node.key",
    }
