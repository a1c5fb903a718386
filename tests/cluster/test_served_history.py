"""A cluster that is served, under faults: whoever asks any node sees one order of all changes of refs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster.history.served_runs import run_served

if TYPE_CHECKING:
    from pathlib import Path

    from seaweed import Seaweed

pytestmark = pytest.mark.cluster
SECONDS = 15.0


def test_refs_of_three_nodes_are_linearizable(
    tmp_path: Path, s3_server: Seaweed, s3_url: str
) -> None:
    port = int(s3_server.endpoint.rpartition(":")[2])
    ran = run_served(tmp_path / "run", 1, seconds=SECONDS, url=s3_url, s3_port=port)
    assert not ran.verdict.violations, str(ran.verdict.violations[0])
    assert ran.verdict.good
    assert ran.recorder.counts["done"]
