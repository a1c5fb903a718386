"""What the tests of the cluster share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shardgit.etcd.client import Etcd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcds import Etcds


@pytest.fixture
def etcd(etcds: Etcds) -> Iterator[Etcd]:
    made = Etcd(etcds.access())
    yield made
    made.close()
