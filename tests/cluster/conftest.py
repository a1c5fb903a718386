"""Servers that the tests of the cluster share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster.etcds import Etcds, binary, running

from shardgit.etcd.client import Etcd

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def etcds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcds]:
    """Three members for tests that leave them as they are."""
    if binary() is None:
        pytest.skip("etcd is not there: .ci/cluster-setup")
    with running(tmp_path_factory.mktemp("etcd")) as started:
        yield started


@pytest.fixture
def etcd(etcds: Etcds) -> Iterator[Etcd]:
    made = Etcd(etcds.access())
    yield made
    made.close()
